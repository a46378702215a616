"""TiTok: a picture as a short row of tokens without a grid (arXiv 2406.07550).

Authors' code: github.com/bytedance/1d-tokenizer, Apache-2.0. Patches and learned latents go through
a transformer together; the latents, projected to 12 numbers and normalised, are looked up in a
codebook; a second transformer turns mask tokens and latents back into patches.

The released weights were trained with a reshape that lacks a transposition, which mixes all latents
into every token. It is kept for those weights alone (`legacy` in their configuration), and so is
their head, which predicts codes of MaskGIT's VQGAN; the decoder of that, among the same weights,
makes them pixels (mmtok/tokenizers/maskgit_net.py). Weights of the first training stage lack it:
`decode` refuses there, `encode` and `proxy_logits` work. New models transpose and predict pixels.

Pictures of another size than the model's are scaled to it, and back when decoding. Fewer tokens
than all decode, but the model was not trained for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.latents import LatentConfig, Latents
from mmtok.tokenizers.maskgit_net import PixelCodebook, PixelDecoder
from mmtok.tokenizers.network import pick, read_json, shapes_of
from mmtok.tokenizers.quantizers import NormalizedVQ
from mmtok.tokenizers.resize import to_size
from mmtok.tokenizers.vit import Block

_SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
_PROXY_CODES = 1024  # entries of the tokenizer whose codes the released weights predict


@dataclass(frozen=True, kw_only=True)
class TiTokConfig(LatentConfig):
    """Sizes of a model; `patch` is the encoder's.

    `pixels` are the channels of the VQGAN's decoder at each resolution, behind them the width of
    its codebook; empty: none.

    Raises:
        InputError: a patch does not divide the picture's side.
    """

    decoder_patch: int = 8
    tokens: int = 8
    legacy: bool = False
    pixels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.decoder_patch:
            raise InputError(f"patches of {self.decoder_patch} do not divide {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class TiTok(Latents[TiTokConfig], Tokenizer):
    """A picture as K tokens.

    Attributes:
        weights: folder, file or hub id of published weights; None: a small random model.
        seed: of the random model.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="transformer", quantiser="vq", training="joint", streamable=False, domain="image"
    )

    kind: ClassVar[type[TiTokConfig]] = TiTokConfig

    weights: str | None = None
    seed: int = 0

    def inferred(self, file: Path) -> TiTokConfig:
        """From the published config.json beside the weights.

        Raises:
            InputError: it is missing, or names sizes that do not exist.
        """
        said = file.with_name("config.json")
        config = published_config(read_json(said), str(said))
        return replace(config, pixels=_pixels(shapes_of(file))) if config.legacy else config

    def build(self) -> nn.Module:
        """The network of `config`."""
        return TiTokNetwork(self.config)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the VQGAN's decoder where it takes part."""
        used = bool(self.config.pixels)
        return {name: w for name, w in state.items() if used or not name.startswith("pixel_")}

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 3, H, W)."""
        side = self.config.image_size
        latent = self.network.latent(to_size(media, side, side).clamp(0, 1))
        ids: Tensor = self.network.quantize(latent).ids
        return ids

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1).

        Raises:
            InputError: the weights predict codes of another tokenizer, whose decoder they lack.
        """
        network = self.network
        pictures = network.decoder(network.quantize.lookup(ids))
        if self.config.legacy:
            if network.pixel_decoder is None:
                raise InputError(
                    "these weights of titok predict codes of MaskGIT's VQGAN, no pixels"
                )
            pictures = network.pixel_decoder(network.pixel_quantize(pictures))
        return to_size(pictures, shape[-2], shape[-1]).clamp(0, 1)

    @torch.no_grad()
    def proxy_logits(self, ids: Tensor) -> Tensor:
        """Logits (B, 1024, H / patch, W / patch) of ids (B, k, 1), with the released weights."""
        made: Tensor = self.network.decoder(self.network.quantize.lookup(ids.to(self.device)))
        return made


def published_config(values: dict[str, Any], source: str) -> TiTokConfig:
    """The configuration in a published config.json.

    Raises:
        InputError: a value is missing, of another type, or names a size that does not exist.
    """
    model = pick(pick(values, "model", dict, source), "vq_model", dict, source)
    crop = pick(pick(values, "dataset", dict, source), "preprocessing", dict, source)
    names = [pick(model, f"vit_{side}_model_size", str, source) for side in ("enc", "dec")]
    if not set(names) <= _SIZES.keys():
        raise InputError(f"{source}: sizes {names}, expected each one of {', '.join(_SIZES)}")
    return TiTokConfig(
        encoder=_SIZES[names[0]],
        decoder=_SIZES[names[1]],
        patch=pick(model, "vit_enc_patch_size", int, source),
        decoder_patch=pick(model, "vit_dec_patch_size", int, source),
        image_size=pick(crop, "crop_size", int, source),
        tokens=pick(model, "num_latent_tokens", int, source),
        token_size=pick(model, "token_size", int, source),
        entries=pick(model, "codebook_size", int, source),
        legacy=pick(model, "is_legacy", bool, source, True),
    )


def _pixels(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Channels of the VQGAN's decoder and width of its codebook; empty without it."""
    names = (f"pixel_decoder.up.{i}.block.0.conv1.weight" for i in range(len(shapes)))
    channels = [shapes[name][0] for name in takewhile(shapes.__contains__, names)]
    book = shapes.get("pixel_quantize.embedding.weight", ())
    return (*channels, book[1]) if channels and len(book) == 2 else ()


class TiTokNetwork(nn.Module):
    """Encoder, codebook and decoder, under the names of the published weights."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width = config.encoder[0]
        self.latent_tokens = nn.Parameter(torch.randn(config.tokens, width) * width**-0.5)
        self.encoder = _Encoder(config)
        self.quantize = NormalizedVQ(config.token_size, config.entries)
        self.decoder = _Decoder(config)
        self.pixel_quantize: Any = None
        self.pixel_decoder: Any = None
        if config.pixels:
            *channels, width = config.pixels
            self.pixel_quantize = PixelCodebook(_PROXY_CODES, width)
            self.pixel_decoder = PixelDecoder(width, tuple(channels))

    def latent(self, pictures: Tensor) -> Tensor:
        """Latents (B, K, token_size), not normalised yet, of pictures (B, 3, H, W) in [0, 1]."""
        found: Tensor = self.encoder(pictures, self.latent_tokens)
        return found


class _Trunk(nn.Module):
    """What encoder and decoder share: position tables, norms and blocks."""

    def __init__(self, size: tuple[int, int, int], patches: int, tokens: int) -> None:
        super().__init__()
        width, layers, heads = size
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def mix(self, patches: Tensor, latents: Tensor) -> Tensor:
        """[class, patches (B, N, width), latents (B, k, width)] through all blocks."""
        b, k = latents.shape[:2]
        first = torch.cat([self.class_embedding.expand(b, 1, -1), patches], dim=1)
        second = latents + self.latent_token_positional_embedding[:k]
        x: Tensor = self.ln_pre(torch.cat([first + self.positional_embedding, second], dim=1))
        for block in self.transformer:
            x = block(x)
        return x


class _Encoder(_Trunk):
    def __init__(self, config: TiTokConfig) -> None:
        patch = config.patch
        super().__init__(config.encoder, (config.image_size // patch) ** 2, config.tokens)
        width = config.encoder[0]
        self.legacy = config.legacy
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.conv_out = nn.Conv2d(width, config.token_size, 1)

    def forward(self, pictures: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(pictures).flatten(2).transpose(1, 2)
        b, k = len(patches), len(latent_tokens)
        latents = self.ln_post(self.mix(patches, latent_tokens.expand(b, -1, -1))[:, -k:])
        if self.legacy:  # the missing transposition: see the module's docstring
            latents = latents.reshape(b, -1, k)
        else:
            latents = latents.transpose(1, 2)
        found: Tensor = self.conv_out(latents[..., None])[..., 0].transpose(1, 2)
        return found


class _Decoder(_Trunk):
    def __init__(self, config: TiTokConfig) -> None:
        self.side, self.patch = config.image_size // config.decoder_patch, config.decoder_patch
        super().__init__(config.decoder, self.side**2, config.tokens)
        width = config.decoder[0]
        self.legacy = config.legacy
        self.decoder_embed = nn.Linear(config.token_size, width)
        self.mask_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        if config.legacy:
            out = nn.Conv2d(2 * width, _PROXY_CODES, 1)
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), out)
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * self.patch**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), or logits, of quantised latents (B, k, token_size)."""
        masks = self.mask_token.expand(len(vectors), self.side**2, -1)
        x = self.mix(masks, self.decoder_embed(vectors))[:, 1 : 1 + self.side**2]
        x = self.ln_post(x).transpose(1, 2)
        made: Tensor = self.ffn(x.reshape(*x.shape[:2], self.side, self.side))
        if self.legacy:
            return made
        # Channels are (row, column, colour) of a patch; depth-to-space wants (colour, row, column).
        made = made.reshape(len(made), self.patch**2, 3, self.side, self.side)
        made = made.transpose(1, 2).flatten(1, 2)
        pictures: Tensor = self.conv_out(F.pixel_shuffle(made, self.patch))
        return pictures
