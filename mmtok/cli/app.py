"""The `mmtok` command: one file per sub-command, heavy imports only inside the one that runs.

Exit codes: 0 done, 1 a bug in mmtok, 2 the user's input is wrong, 3 done but some items failed;
130 when interrupted.
"""

from __future__ import annotations

import traceback
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mmtok.cli import (
    decode,
    demo,
    encode,
    export,
    generate,
    inspect,
    listing,
    plan,
    preprocess,
    profile,
    run,
    serve,
    verify,
)
from mmtok.cli import (
    eval as evaluation,
)
from mmtok.cli.output import say, show
from mmtok.errors import InputError


class _Interruptible(TyperGroup):
    """Ends with the shell's exit code for Ctrl-C, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Interruptible,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Fewer visual tokens for vision-language models, and an account of what that saves.",
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("profile")(profile.profile)
app.command("list")(listing.listing)
app.add_typer(evaluation.app, name="eval")
app.command("preprocess")(preprocess.preprocess)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("encode")(encode.encode)
app.command("decode")(decode.decode)
app.command("inspect")(inspect.inspect)
app.command("generate")(generate.generate)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: without the program's name; default: those of the process.
    """
    try:
        get_command(app)(args=arguments, prog_name="mmtok")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except InputError as error:
        say("error: " + " ".join(str(error).split()))
        return 2
    except Exception:
        show(traceback.format_exc().rstrip())
        say("error: this is a bug in mmtok, please report it together with the lines above")
        return 1
    return 0
