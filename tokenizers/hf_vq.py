"""The picture tokenizers inside Chameleon, Emu3 and Janus, as transformers has them.

Chameleon (arXiv 2405.09818), Emu3 (arXiv 2409.18869), Janus (arXiv 2501.17811). The networks are
the stock classes; their weights are taken from a folder of the whole model (the tensors under
`vqmodel.` alone are read) or of the tokenizer by itself, and so is the scale of the pixels, from
preprocessor_config.json. Sides that are no multiple of the step are filled up with their last
pixels, and cut back when decoding; places that were trimmed off take the codebook's first entry.

Deviations: Janus decodes from entries of length 1, so its encoder compares directions here; the
stock class compares lengths as well, and would decode another entry than the one it found nearest.
Its decoder takes any grid here, not the configured one alone. The stock Chameleon has no decoder:
it encodes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.models.zoo import located
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.network import Networked, read_json
from mmtok.tokenizers.norms import take_single_values
from mmtok.tokenizers.resize import to_multiple

MAX_TOKENS = 2**14
"""Most tokens of a picture: the stock attention holds a number for every pair of them, and 1024 x
1024 pixels in steps of 8 are as many."""


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Facts about one model; encode and decode take (network, tensor, grid)."""

    classes: str
    entries: str
    tiny: dict[str, Any]
    encode: Callable[[Any, Tensor, tuple[int, int]], Tensor]
    decode: Callable[[Any, Tensor, tuple[int, int]], Tensor] | None


def _chameleon_ids(network: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    found: Tensor = network.encode(pixels).image_tokens
    return found


def _emu3_ids(network: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    return torch.stack(network.encode(pixels, image_sizes=sizes).image_tokens)


def _emu3_pixels(network: Any, ids: Tensor, grid: tuple[int, int]) -> Tensor:
    made: Tensor = network.decode(ids.view(-1, *grid))
    return made


def _janus_ids(network: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    latent = network.quant_conv(network.encoder(pixels))
    entries = F.normalize(network.quantize.embedding.weight, dim=-1)
    ids: Tensor = (latent.permute(0, 2, 3, 1) @ entries.T).argmax(-1)
    return ids


def _janus_pixels(network: Any, ids: Tensor, grid: tuple[int, int]) -> Tensor:
    entries = F.normalize(network.quantize.embedding(ids.view(-1, *grid)), dim=-1)
    made: Tensor = network.decoder(network.post_quant_conv(entries.permute(0, 3, 1, 2)))
    return made


_SMALL: dict[str, Any] = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "embed_dim": 4,
    "latent_channels": 4,
}
_FAMILIES = {
    "chameleon": _Family(
        classes="Chameleon",
        entries="num_embeddings",
        tiny={**_SMALL, "num_embeddings": 64, "resolution": 32},
        encode=_chameleon_ids,
        decode=None,
    ),
    "emu3": _Family(
        classes="Emu3",
        entries="codebook_size",
        tiny={**_SMALL, "codebook_size": 64, "attn_resolutions": [], "hidden_size": 64},
        encode=_emu3_ids,
        decode=_emu3_pixels,
    ),
    "janus": _Family(
        classes="Janus",
        entries="num_embeddings",
        tiny={**_SMALL, "num_embeddings": 64, "num_patches": 4},
        encode=_janus_ids,
        decode=_janus_pixels,
    ),
}


@dataclass(frozen=True, kw_only=True)
class HFVQ(Networked[Any], Tokenizer):
    """A picture as a grid of ids of one codebook.

    Attributes:
        family: chameleon, emu3 or janus.
        weights: folder with the weights of that model; None: a small random one.
        seed: of the random model.

    Raises:
        InputError: there is no such family.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="cnn", quantiser="vq", training="joint+gan", streamable=False, domain="image"
    )

    family: str = "janus"
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in _FAMILIES:
            raise InputError(f"hf_vq: family must be {', '.join(_FAMILIES)}, got {self.family!r}")

    @property
    def _facts(self) -> _Family:
        return _FAMILIES[self.family]

    @cached_property
    def config(self) -> Any:
        """The stock configuration of the tokenizer.

        Raises:
            InputError: the folder has none, or one of another family.
        """
        name = f"{self._facts.classes}VQVAEConfig"
        kind = getattr(import_module(f"transformers.models.{self.family}"), name)
        if self.weights is None:
            return kind(**self._facts.tiny)
        file = located(self.weights) / "config.json"
        values = read_json(file)
        found = values.get("vq_config", values)
        if values.get("model_type") not in (self.family, kind.model_type) or found is None:
            raise InputError(f"{file}: is of {values.get('model_type')!r}, expected {self.family}")
        return kind.from_dict(found)

    def identity(self) -> dict[str, Any]:
        """Family, configuration and scale of the pixels."""
        config = {name: getattr(self.config, name) for name in self._facts.tiny}
        return {"family": self.family, "config": config, "scale": self._scale}

    def build(self) -> nn.Module:
        """The stock network."""
        module = import_module(f"transformers.models.{self.family}.modeling_{self.family}")
        made: nn.Module = getattr(module, f"{self._facts.classes}VQVAE")(self.config)
        take_single_values(made)
        return made

    def read(self, weights: str) -> dict[str, Tensor]:
        """The tokenizer's tensors among those of all safetensors files of the folder."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, Tensor] = {}
        for file in sorted(located(weights).glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    part = cast(Any, opened)
                    names = list(part.keys())
                    whole = any("vqmodel." in name for name in names) or self._is_whole_model
                    for name in names:
                        if not whole or "vqmodel." in name:
                            found[name.split("vqmodel.")[-1]] = part.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file}: no safetensors file ({reason(error):.80})") from None
        return found

    @cached_property
    def _is_whole_model(self) -> bool:
        return "vq_config" in read_json(located(self.weights or "") / "config.json")

    @cached_property
    def _scale(self) -> tuple[list[float], list[float]]:
        """(factor, shift) per colour that pixels in [0, 1] are scaled with; default: to [-1, 1]."""
        file = located(self.weights or "") / "preprocessor_config.json"
        if self.weights is None or not file.is_file():
            return [2.0] * 3, [-1.0] * 3
        said = read_json(file)
        try:
            high = 255 * float(said.get("rescale_factor", 1 / 255))
            mean, std = ([float(x) for x in said[name]] for name in ("image_mean", "image_std"))
            return [high / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"{file}: no image_mean and image_std ({error})") from None

    @property
    def codebook(self) -> Codebook:
        """One codebook."""
        return Codebook(kind="vq", sizes=(int(getattr(self.config, self._facts.entries)),))

    @property
    def entries(self) -> Tensor:
        """(codes, D): what the codes stand for; of length 1 where directions are compared."""
        found: Tensor = self.network.quantize.embedding.weight
        return F.normalize(found, dim=-1) if self.family == "janus" else found

    @property
    def _step(self) -> int:
        return int(2 ** (len(self.config.channel_multiplier) - 1))

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of the latent.

        Raises:
            InputError: no colours, or more than `MAX_TOKENS` tokens.
        """
        if shape[0] != 3:
            raise InputError(f"hf_vq takes RGB, got shape {shape}")
        rows, columns = (-(-side // self._step) for side in shape[1:])
        if rows * columns > MAX_TOKENS:
            raise InputError(
                f"hf_vq: {shape[2]} x {shape[1]} pixels are {rows * columns} tokens, expected at "
                f"most {MAX_TOKENS}, whose attention takes gigabytes: make the picture smaller"
            )
        return rows, columns

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 3, H, W)."""
        factor, shift = (torch.tensor(x, device=media.device).view(3, 1, 1) for x in self._scale)
        pixels = to_multiple(media, self._step) * factor + shift
        ids = self._facts.encode(self.network, pixels, self.grid(tuple(media.shape[1:])))
        return ids.reshape(len(media), -1, 1)

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1).

        Raises:
            InputError: the family has no decoder.
        """
        if self._facts.decode is None:
            raise InputError(f"{self.family} in transformers has no decoder of pictures")
        rows, columns = self.grid(shape)
        padded = F.pad(ids[..., 0], (0, rows * columns - ids.shape[1]))
        pixels = self._facts.decode(self.network, padded, (rows, columns))
        factor, shift = (torch.tensor(x, device=ids.device).view(3, 1, 1) for x in self._scale)
        return ((pixels - shift) / factor)[..., : shape[1], : shape[2]].clamp(0, 1)
