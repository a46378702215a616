"""mmtok: fewer visual tokens for Hugging Face vision-language models, and proof of the saving.

Names are resolved on first use, so `import mmtok` imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtok.accounting.ledger import Ledger
    from mmtok.accounting.plan import plan
    from mmtok.codes import Codebook, Codes
    from mmtok.errors import InputError
    from mmtok.models.encoders import load_encoder
    from mmtok.models.load import load
    from mmtok.models.lvlm import LVLM
    from mmtok.models.reduced import reduced
    from mmtok.pipeline import Pipeline, Result
    from mmtok.tokens import Query, Selection, VisualTokens

__version__ = "0.1.0"

_EXPORTS = {
    "Codebook": "mmtok.codes",
    "Codes": "mmtok.codes",
    "InputError": "mmtok.errors",
    "LVLM": "mmtok.models.lvlm",
    "Ledger": "mmtok.accounting.ledger",
    "Pipeline": "mmtok.pipeline",
    "Query": "mmtok.tokens",
    "Result": "mmtok.pipeline",
    "Selection": "mmtok.tokens",
    "VisualTokens": "mmtok.tokens",
    "load": "mmtok.models.load",
    "load_encoder": "mmtok.models.encoders",
    "plan": "mmtok.accounting.plan",
    "reduced": "mmtok.models.reduced",
}

__all__ = [
    "LVLM",
    "Codebook",
    "Codes",
    "InputError",
    "Ledger",
    "Pipeline",
    "Query",
    "Result",
    "Selection",
    "VisualTokens",
    "load",
    "load_encoder",
    "plan",
    "reduced",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'mmtok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
