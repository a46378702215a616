"""The networks of C-ViViT, which only ever see one step of a clip and what they remember.

There is no pass over a whole clip: every step runs on tensors of the same shapes however long the
clip is, so that what comes later cannot change a token, down to the last bit. A step costs one
attention over its own places, and one over each place's past.

Names follow the authors' modules. Shapes: B clips, (h, w) places of a step, D wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.quantizers_lfq import GroupedLFQ

_SHARPNESS = 8.0  # of attention: queries and keys have length 1 before their learned scales


@dataclass(frozen=True, kw_only=True)
class CViViTConfig:
    """Sizes of a model.

    Attributes:
        width: of the transformers.
        heads: of the attention, a power of two.
        head_dim: width of one head.
        patch: pixels along a side of a patch.
        span: frames of a step, but for the first step, which is one frame.
        spatial, temporal: blocks of each kind, in the encoder and again in the decoder.
        bits: of a token.

    Raises:
        InputError: the number of heads is no power of two.
    """

    width: int = 32
    heads: int = 4
    head_dim: int = 8
    patch: int = 8
    span: int = 2
    spatial: int = 1
    temporal: int = 1
    bits: int = 8

    def __post_init__(self) -> None:
        if self.heads & (self.heads - 1):
            raise InputError(f"cvivit: heads must be a power of two, got {self.heads}")


class CViViTNetwork(nn.Module):
    """Encoder, quantiser and decoder, one step at a time."""

    def __init__(self, config: CViViTConfig) -> None:
        super().__init__()
        self.config = config
        width, first = config.width, 3 * config.patch**2
        self.spatial_rel_pos_bias = _PlaceBias(width, config.heads)
        self.to_patch_emb_first_frame = _embed(first, width)
        self.to_patch_emb = _embed(first * config.span, width)
        self.enc_spatial_transformer = _Transformer(config, config.spatial, temporal=False)
        self.enc_temporal_transformer = _Transformer(config, config.temporal, temporal=True)
        self.vq = _Signs(width, config.bits)
        self.dec_temporal_transformer = _Transformer(config, config.temporal, temporal=True)
        self.dec_spatial_transformer = _Transformer(config, config.spatial, temporal=False)
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(width, first))
        self.to_pixels = nn.Sequential(nn.Linear(width, first * config.span))

    def start(self, rows: int, columns: int) -> Memory:
        """The memory of a clip of which nothing has been seen, in either direction."""
        count = self.config.temporal
        return Memory(bias=self.spatial_rel_pos_bias(rows, columns), blocks=_empty(count))

    def encode_step(self, frames: Tensor, memory: Memory) -> Tensor:
        """Features (B, h, w, D) of the next frames (B, 1 or span, 3, h * patch, w * patch)."""
        b, f, _, height, width = frames.shape
        p = self.config.patch
        cut = frames.reshape(b, f, 3, height // p, p, width // p, p).permute(0, 3, 5, 2, 1, 4, 6)
        embed = self.to_patch_emb if memory.steps else self.to_patch_emb_first_frame
        x = self.enc_spatial_transformer(embed(cut.flatten(3)), memory)
        features: Tensor = self.enc_temporal_transformer(x, memory)
        memory.steps += 1
        return features

    def decode_step(self, vectors: Tensor, memory: Memory) -> Tensor:
        """The next frames (B, 1 or span, 3, h * patch, w * patch) of vectors (B, h, w, D)."""
        b, rows, columns, _ = vectors.shape
        x = self.dec_spatial_transformer(self.dec_temporal_transformer(vectors, memory), memory)
        p, head = self.config.patch, self.to_pixels if memory.steps else self.to_pixels_first_frame
        cut = head(x).reshape(b, rows, columns, 3, -1, p, p).permute(0, 4, 3, 1, 5, 2, 6)
        memory.steps += 1
        frames: Tensor = cut.reshape(b, -1, 3, rows * p, columns * p)
        return frames


@dataclass
class Past:
    """What one temporal block remembers: keys and values by place, inputs of its convolution."""

    keys: Tensor | None = None
    values: Tensor | None = None
    frames: Tensor | None = None


@dataclass
class Memory:
    """Of one clip in one direction: the bias of its places, and the past of every block."""

    bias: Tensor
    blocks: list[Past]
    steps: int = 0


def _empty(count: int) -> list[Past]:
    return [Past() for _ in range(count)]


def _embed(values: int, width: int) -> nn.Sequential:
    # The first of four is the cutting, which has no weights.
    layers = (nn.LayerNorm(values), nn.Linear(values, width), nn.LayerNorm(width))
    return nn.Sequential(nn.Identity(), *layers)


class _Norm(nn.Module):
    beta: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class _Transformer(nn.Module):
    def __init__(self, config: CViViTConfig, depth: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.layers = nn.ModuleList()
        for _ in range(depth):
            parts = {"1": _Attention(config), "3": _feed_forward(config.width)}
            place = {"0": _Position(config.width)} if temporal else {}
            self.layers.append(nn.ModuleDict({**place, **parts}))
        self.norm_out = _Norm(config.width)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """One step (B, h, w, D): over its places, or for each place over its past."""
        b, h, w, d = x.shape
        rows = x.reshape(b * h * w, 1, d) if self.temporal else x.reshape(b, h * w, d)
        for layer, past in zip(self._blocks(), self._pasts(memory), strict=True):
            if past is not None:
                grid = rows.reshape(b, h, w, d)
                rows = (grid + layer["0"](grid, past)).reshape(rows.shape)
            rows = rows + layer["1"](rows, memory.bias if past is None else past)
            rows = rows + layer["3"](rows)
        made: Tensor = self.norm_out(rows).reshape(x.shape)
        return made

    def _blocks(self) -> list[nn.ModuleDict]:
        return [layer for layer in self.layers if isinstance(layer, nn.ModuleDict)]

    def _pasts(self, memory: Memory) -> list[Past] | list[None]:
        return memory.blocks if self.temporal else [None] * len(self.layers)


class _GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


def _feed_forward(width: int) -> nn.Sequential:
    inner = int(4 * (2 / 3) * width)
    layers = (nn.LayerNorm(width), nn.Linear(width, 2 * inner, bias=False), _GEGLU())
    return nn.Sequential(*layers, nn.Identity(), nn.Linear(inner, width, bias=False))


class _Position(nn.Module):
    """A convolution over three steps, this one and the two before it, and 3 x 3 places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(width, width, 3, groups=width)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        now = F.pad(x.permute(0, 3, 1, 2)[:, :, None], (1, 1, 1, 1))
        before = now.new_zeros(*now.shape[:2], 2, *now.shape[3:])
        window = torch.cat([before if past.frames is None else past.frames, now], dim=2)
        past.frames = window[:, :, 1:]
        made: Tensor = self.dsconv(window)[:, :, 0].permute(0, 2, 3, 1)
        return made


class _Attention(nn.Module):
    def __init__(self, config: CViViTConfig) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_dim
        self.norm = _Norm(config.width)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(config.head_dim))
        self.k_scale = nn.Parameter(torch.ones(config.head_dim))
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, seen: Tensor | Past) -> Tensor:
        """Attend within (N, n, D) under a bias (heads, n, n), or to the past and itself."""
        # Queries come from the normalised input, keys and values from the input as it is.
        parts = (self.to_q(self.norm(x)), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        if isinstance(seen, Past):
            if seen.keys is not None and seen.values is not None:
                k, v = torch.cat([seen.keys, k], dim=2), torch.cat([seen.values, v], dim=2)
            seen.keys, seen.values = k, v
            bias = self._distance(k)
        else:
            bias = seen
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=_SHARPNESS)
        found: Tensor = self.to_out(made.transpose(1, 2).flatten(2))
        return found

    def _distance(self, keys: Tensor) -> Tensor:
        """ALiBi (heads, 1, t): how far each key lies back, times the slope of the head."""
        back = torch.arange(1 - keys.shape[2], 1, device=keys.device, dtype=keys.dtype)
        head = torch.arange(1, self.heads + 1, device=keys.device, dtype=keys.dtype)
        return back * torch.exp2(-8 * head / self.heads)[:, None, None]


class _PlaceBias(nn.Module):
    """A network's answer to the offset between two places, so that any grid has one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.1))
        second = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.1))
        self.net = nn.Sequential(first, second, nn.Linear(width, heads))

    def forward(self, rows: int, columns: int) -> Tensor:
        """(heads, rows * columns, rows * columns), each offset computed once."""
        device = next(self.parameters()).device
        sides = [torch.arange(side, device=device) for side in (rows, columns)]
        apart = [side[:, None] - side + len(side) - 1 for side in sides]
        steps = [torch.arange(1 - len(side), len(side), device=device).float() for side in sides]
        scaled = [step.sign() * torch.log(step.abs() + 1) for step in steps]
        table = self.net(torch.stack(torch.meshgrid(*scaled, indexing="ij"), dim=-1))
        found = table[apart[0][:, None, :, None], apart[1][None, :, None, :]]
        places = rows * columns
        made: Tensor = found.reshape(places, places, -1).permute(2, 0, 1)
        return made


class _Signs(nn.Module):
    """Lookup-free quantisation between two projections; the first channel is the highest bit."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.project_in, self.project_out = nn.Linear(width, bits), nn.Linear(bits, width)
        self.signs = GroupedLFQ(1, bits)

    def ids(self, features: Tensor) -> Tensor:
        """Ids (B, n, 1) of features (B, n, D)."""
        found: Tensor = self.signs(self.project_in(features).flip(-1)).ids
        return found

    def lookup(self, ids: Tensor) -> Tensor:
        """Vectors (B, n, D) of ids (B, n, 1)."""
        made: Tensor = self.project_out(self.signs.lookup(ids).flip(-1))
        return made
