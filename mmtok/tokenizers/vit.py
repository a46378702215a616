"""Pre-norm transformer blocks as CLIP has them, under the names that TiTok's weights use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    """Self-attention with the three input projections in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        made = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = made.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        done: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(b, n, width))
        return done


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return done


class Block(nn.Module):
    """x + attention(norm x), then x + MLP(norm x); (B, N, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), _Attention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), _MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then features."""
        x = x + self.attn(self.ln_1(x))
        done: Tensor = x + self.mlp(self.ln_2(x))
        return done
