"""The decoder of MaskGIT's VQGAN, which TiTok's released weights end in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.tokenizers.maskgit_net import PixelCodebook, PixelDecoder


@torch.no_grad()
def test_titok_pixels() -> None:
    """The VQGAN's decoder, step by step from its weights, in float64."""
    decoder = PixelDecoder(16, (32, 64)).double()
    draw = torch.Generator().manual_seed(0)
    for weight in decoder.parameters():
        weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    w = decoder.state_dict()
    book = PixelCodebook(20, 16).double()
    logits = torch.randn(
        1, 20, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def conv(x: Tensor, name: str) -> Tensor:
        weight = w[name + ".weight"]
        return F.conv2d(x, weight, w.get(name + ".bias"), padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = x.reshape(len(x), 32, -1)
        mean, var = parts.mean(-1, keepdim=True), parts.var(-1, unbiased=False, keepdim=True)
        x = ((parts - mean) / (var + 1e-6).sqrt()).reshape(x.shape)
        x = x * w[name + ".weight"].view(1, -1, 1, 1) + w[name + ".bias"].view(1, -1, 1, 1)
        return x * torch.sigmoid(x)

    def block(x: Tensor, name: str) -> Tensor:
        made = conv(norm(x, name + ".norm1"), name + ".conv1")
        made = conv(norm(made, name + ".norm2"), name + ".conv2")
        skip = name + ".nin_shortcut"
        return made + (conv(made, skip) if skip + ".weight" in w else x)

    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    x = (p.movedim(1, -1) @ book.embedding.weight).movedim(-1, 1)
    x = block(block(conv(x, "conv_in"), "mid.0"), "mid.1")
    x = block(block(x, "up.1.block.0"), "up.1.block.1")
    x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), "up.1.upsample_conv")
    x = block(block(x, "up.0.block.0"), "up.0.block.1")
    assert "up.0.block.0.nin_shortcut.weight" in w
    assert torch.allclose(decoder(book(logits)), conv(norm(x, "norm_out"), "conv_out"), atol=1e-9)
