"""Codecs whose network is a stock class of transformers, loaded by its own `from_pretrained`.

A weight that is missing or of another shape is refused, where the stock loader makes one up.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.tokenizers.network import Networked


@dataclass(frozen=True, kw_only=True)
class StockFacts:
    """What tells one stock codec from another.

    Attributes:
        name: of the stock classes, before Model and Config; in small letters, the model type.
        settings: attributes of the configuration that decide ids besides weights and their shapes.
        tiny: configuration of the random model.
    """

    name: str
    settings: tuple[str, ...]
    tiny: dict[str, Any]


class Stock(Networked[Any]):
    """What a `Tokenizer` around a stock codec adds; put it before `Tokenizer`."""

    @property
    @abstractmethod
    def facts(self) -> StockFacts:
        """Which codec."""

    def _class(self, kind: str) -> Any:
        import transformers

        name = f"{self.facts.name}{kind}"
        try:
            return getattr(transformers, name)
        except AttributeError:
            raise InputError(
                f"transformers {transformers.__version__} has no {name}: install a newer one"
            ) from None

    @cached_property
    def config(self) -> Any:
        """The stock configuration.

        Raises:
            InputError: there is none, or one of another model.
        """
        kind, model_type = self._class("Config"), self.facts.name.lower()
        if self.weights is None:
            return kind(**self.facts.tiny)
        try:
            values, _ = kind.get_config_dict(self.weights)
            made = kind.from_dict(values)
        except Exception as error:  # transformers raises whatever it trips over
            raise InputError(f"{self.weights}: no configuration ({reason(error)})") from None
        if values.get("model_type") != model_type:
            raise InputError(
                f"{self.weights}: is of {values.get('model_type')!r}, expected {model_type}"
            )
        return made

    def identity(self) -> dict[str, Any]:
        """What decides ids besides the weights."""
        return {"config": {name: getattr(self.config, name) for name in self.facts.settings}}

    def build(self) -> nn.Module:
        """The stock network."""
        made: nn.Module = self._class("Model")(self.config)
        return made

    def read(self, weights: str) -> dict[str, Tensor]:
        """The tensors that the stock loader finds, none of which it made up."""
        try:
            found, said = self._class("Model").from_pretrained(
                weights, config=self.config, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # transformers raises whatever it trips over
            raise InputError(f"{weights}: cannot be loaded ({reason(error)})") from None
        if wrong := [*said["missing_keys"], *said["mismatched_keys"]]:
            shown = ", ".join(str(name) for name in wrong[:3])
            raise InputError(f"{weights}: {len(wrong)} weights missing or of wrong shape: {shown}")
        return dict(found.state_dict())

    @property
    def sample_rate(self) -> int:
        """Hz of the model."""
        return int(self.config.sampling_rate)


def restored(sound: Tensor, samples: int) -> Tensor:
    """Recordings (B, C, S) within [-1, 1], cut or filled with silence to `samples`."""
    made = F.pad(sound.clamp(-1, 1), (0, max(0, samples - sound.shape[-1])))
    return made[..., :samples]
