"""The transformer blocks of FlexTok, under the names of its published weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis without weights, in float32."""
    normed: Tensor = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5)
    return normed.to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.wq, self.wk = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wv, self.proj = (
            nn.Linear(width, width, bias=False),
            nn.Linear(width, width, bias=False),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            w(x).view(b, n, -1, self.head_dim).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        # 8 / head_dim is the usual 1 / sqrt(head_dim) at 64 alone.
        mixed = F.scaled_dot_product_attention(
            plain_norm(q), plain_norm(k), v, attn_mask=mask, scale=8 / self.head_dim
        )
        done: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, -1))
        return done


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 * 4 * width / 3)
        self.fc1, self.fc3 = (
            nn.Linear(width, hidden, bias=False),
            nn.Linear(width, hidden, bias=False),
        )
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.fc2(F.silu(self.fc1(x)) * self.fc3(x))
        return done


class Block(nn.Module):
    """Attention, then a gated MLP, each after a norm without weights.

    With `modulated`, scale, shift and gate of both come from a time embedding, of their own for
    patches and for registers; they start at zero, so the block starts as the identity.
    """

    def __init__(self, width: int, head_dim: int, *, modulated: bool = False) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(width, head_dim), _MLP(width)
        if modulated:
            self.adaLN_modulation = zeroed(nn.Sequential(nn.SiLU(), nn.Linear(width, 12 * width)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; mask (N, N) bool, True where a row may look."""
        x = x + self.attn(plain_norm(x), mask)
        done: Tensor = x + self.mlp(plain_norm(x))
        return done

    def modulate(self, x: Tensor, time: Tensor, patches: int) -> Tensor:
        """As forward, by time (B, D); the first `patches` tokens are patches."""
        both = self.adaLN_modulation(time).chunk(2, dim=-1)
        count = (patches, x.shape[1] - patches)
        per_token = torch.cat(
            [part[:, None].expand(-1, n, -1) for part, n in zip(both, count, strict=True)], dim=1
        )
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = per_token.chunk(6, dim=-1)
        x = x + gate_a * self.attn(plain_norm(x) * (1 + scale_a) + shift_a, None)
        done: Tensor = x + gate_m * self.mlp(plain_norm(x) * (1 + scale_m) + shift_m)
        return done


def zeroed(layers: nn.Sequential) -> nn.Sequential:
    """The layers with all parameters set to zero."""
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    return layers
