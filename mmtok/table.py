"""Plain-text tables: what every ledger, plan and summary on a terminal looks like."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO


def render(rows: Sequence[Sequence[str]], *, total: bool = False, numbers: bool = True) -> str:
    """Header and rows as text.

    Args:
        rows: the first one is the header.
        total: set the last row apart.
        numbers: align all columns but the first to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for index, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if index and numbers else "left", no_wrap=True)
    for row in rows[1:]:
        if total and row is rows[-1]:
            table.add_section()
        table.add_row(*(" ".join(cell.split()) for cell in row))
    out = StringIO()
    Console(file=out, width=200, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"
