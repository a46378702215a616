"""The networks of WavTokenizer: convolutions and an LSTM in, attention and Fourier frames out.

Names follow the published weights, shortened where those are loaded; there, weight normalisation is
folded into the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.norms import GroupNorm
from mmtok.tokenizers.quantizers import VQ

_LOUDEST = 100.0  # of one bin of a frame: an untrained head would overflow


@dataclass(frozen=True, kw_only=True)
class WavTokenizerConfig:
    """Sizes of a model.

    Attributes:
        filters: channels of the encoder's first convolution; they double at every stride.
        ratios: strides of the encoder, in its order.
        latent: width of the codebook's vectors.
        entries: of the codebook.
        width: of the decoder, a multiple of 32.
        hidden: width inside its blocks.
        layers: its blocks.
        conditions: rows of its adaptive norms; decoding uses the first.
        n_fft: samples of a Fourier frame.
        sample_rate: Hz of the recordings.

    Raises:
        InputError: the sizes do not fit each other.
    """

    filters: int = 4
    ratios: tuple[int, ...] = (2, 4, 5, 8)
    latent: int = 16
    entries: int = 64
    width: int = 32
    hidden: int = 48
    layers: int = 2
    conditions: int = 4
    n_fft: int = 1280
    sample_rate: int = 24000

    def __post_init__(self) -> None:
        if self.filters % 2 or self.width % 32 or not self.ratios:
            raise InputError("wavtokenizer: filters must be even, width a multiple of 32")
        if not self.hop <= self.n_fft or (self.n_fft - self.hop) % 2:
            raise InputError(f"wavtokenizer: frames of {self.n_fft} do not fit a hop of {self.hop}")

    @property
    def hop(self) -> int:
        """Samples per token."""
        return math.prod(self.ratios)


class WavTokenizerNetwork(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quantize = VQ(config.latent, config.entries, kmeans=0)
        self.backbone = Backbone(config)
        self.head = Head(config.width, config.n_fft, config.hop)

    def decode(self, vectors: Tensor, condition: int = 0) -> Tensor:
        """Samples (B, K * hop) of quantised vectors (B, K, latent)."""
        made: Tensor = self.head(self.backbone(vectors, condition))
        return made


class Conv(nn.Conv1d):
    """A convolution over mirrored ends: S samples give ceil(S / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) to (B, C', ceil(S / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = kernel - stride
        left, right = total - total // 2, total // 2 + -x.shape[-1] % stride
        # What is shorter than its mirror image is filled up with zeros, which are cut off again.
        short = max(0, max(left, right) + 1 - x.shape[-1])
        padded = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
        return super().forward(padded[..., : padded.shape[-1] - short])


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (nn.ELU(), Conv(width, width // 2, 3), nn.ELU(), Conv(width // 2, width, 1))
        self.block = nn.Sequential(*inner)
        self.shortcut = Conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.shortcut(x) + self.block(x)
        return made


class _Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        made: Tensor = (self.lstm(steps)[0] + steps).permute(1, 2, 0)
        return made


class Encoder(nn.Sequential):
    """Samples (B, 1, S) to latents (B, latent, K)."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        width = config.filters
        layers: list[nn.Module] = [Conv(1, width, 7)]
        for ratio in config.ratios:
            down = Conv(width, 2 * width, 2 * ratio, stride=ratio)
            layers += [_Residual(width), nn.ELU(), down]
            width *= 2
        super().__init__(*layers, _Recurrent(width), nn.ELU(), Conv(width, config.latent, 7))


class _Norm(nn.Module):
    """Layer norm whose scale and shift are chosen by a condition."""

    def __init__(self, width: int, conditions: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Embedding(conditions, width), nn.Embedding(conditions, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, condition: int) -> Tensor:
        scale, shift = self.scale.weight[condition], self.shift.weight[condition]
        return F.layer_norm(x, x.shape[-1:], scale, shift, eps=1e-6)


class _ConvNeXt(nn.Module):
    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.width
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = _Norm(width, config.conditions)
        self.pwconv1 = nn.Linear(width, config.hidden)
        self.pwconv2 = nn.Linear(config.hidden, width)
        self.gamma = nn.Parameter(torch.full((width,), 1 / config.layers))

    def forward(self, x: Tensor, condition: int) -> Tensor:
        """(B, width, K) to the same shape."""
        inner = self.norm(self.dwconv(x).transpose(1, 2), condition)
        inner = self.gamma * self.pwconv2(F.gelu(self.pwconv1(inner)))
        made: Tensor = x + inner.transpose(1, 2)
        return made


class _Smooth(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (GroupNorm(32, width, eps=1e-6) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        made: Tensor = x + self.conv2(F.silu(self.norm2(inner)))
        return made


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).transpose(1, 2) for part in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v)
        made: Tensor = x + self.proj_out(seen.transpose(1, 2))
        return made


class Backbone(nn.Module):
    """Quantised vectors (B, K, latent) to features (B, K, width)."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Conv1d(config.latent, width, 7, padding=3)
        self.pos_net = nn.Sequential(
            *(_Smooth(width), _Smooth(width), _Attention(width), _Smooth(width), _Smooth(width)),
            GroupNorm(32, width, eps=1e-6),
        )
        self.norm = _Norm(width, config.conditions)
        self.convnext = nn.ModuleList(_ConvNeXt(config) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, vectors: Tensor, condition: int = 0) -> Tensor:
        """All of an item is looked at for every place: attention and group norms are global."""
        x = self.pos_net(self.embed(vectors.transpose(1, 2)))
        x = self.norm(x.transpose(1, 2), condition).transpose(1, 2)
        for block in self.convnext:
            x = block(x, condition)
        made: Tensor = self.final_layer_norm(x.transpose(1, 2))
        return made


class Head(nn.Module):
    """Features (B, K, width) to samples (B, K * hop) by magnitudes and phases of K frames."""

    def __init__(self, width: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, n_fft + 2)
        self.istft = ISTFT(n_fft, hop)

    def forward(self, x: Tensor) -> Tensor:
        """Samples (B, K * hop) of features (B, K, width)."""
        magnitude, phase = self.out(x).transpose(1, 2).float().chunk(2, dim=1)
        made: Tensor = self.istft(torch.polar(magnitude.exp().clamp(max=_LOUDEST), phase))
        return made


class ISTFT(nn.Module):
    """Overlap-add of Fourier frames of n_fft samples; as many hops of samples as frames."""

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Samples (B, K * hop) of complex spectra (B, n_fft / 2 + 1, K)."""
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=1) * self.window[:, None]
        weight = self.window.square()[None, :, None].expand(1, -1, frames.shape[-1])
        return self._add(frames) / self._add(weight)

    def _add(self, frames: Tensor) -> Tensor:
        count, cut = frames.shape[-1], (self.n_fft - self.hop) // 2
        size = (count - 1) * self.hop + self.n_fft
        made = F.fold(frames, (1, size), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]
        return made[:, cut : cut + count * self.hop]
