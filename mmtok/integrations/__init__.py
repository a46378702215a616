"""mmtok inside other people's programs."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """The manifest that lmms-eval finds through the entry-point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmtok", chat_class_path="mmtok.integrations.lmms_eval.MmtokLM")
