"""VQToken's trained part: a decoder layer that reads the codebook (arXiv 2503.16980).

Weights have the authors' layout (Hai-chao-Zhang/VQToken): `to_q_proj`, a linear layer from the P
cells of a frame to the width, and `transformer_decoder`, torch's own with one layer or more (norm
behind each part, ReLU).

As published, a query is the row of cluster numbers of one frame, read as P real numbers, so the
arbitrary numbering of clusters counts as an order; of frames and clusters the fewer are repeated
until they are as many (`attend_frames`). Here, one query per cluster holds in which share of the
frames each cell belongs to the cluster, which needs no order and gives K tokens (`forward`). That
needs weights trained so: those of the authors know only the former.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtok.errors import InputError

NEEDED = ("to_q_proj.weight", "transformer_decoder.layers.0.linear1.weight")


class VQAttention(nn.Module):
    """Queries from where clusters are, answers from the codebook.

    Args:
        cells: P tokens of a frame.
        width: D of a code.
        hidden: of the feed-forward part.
        layers: of the decoder.
        heads: of its attention.
    """

    def __init__(
        self, cells: int, width: int, *, hidden: int = 2048, layers: int = 1, heads: int = 8
    ) -> None:
        super().__init__()
        self.to_q_proj = nn.Linear(cells, width)
        layer = nn.TransformerDecoderLayer(width, heads, hidden, batch_first=True)
        self.transformer_decoder = nn.TransformerDecoder(layer, layers)

    def forward(self, codebook: Tensor, where: Tensor) -> Tensor:
        """(K, D) tokens.

        Args:
            codebook: (K, D).
            where: (K, P) share of the frames in which each cell belongs to each cluster.
        """
        place = self.to_q_proj(where)
        answer: Tensor = self.transformer_decoder(place[None], (codebook + place)[None])
        return answer[0]

    def attend_frames(self, codebook: Tensor, labels: Tensor) -> Tensor:
        """(max(T, K), D) tokens, as published.

        Args:
            codebook: (K, D).
            labels: (T, P) int64 cluster of each token.
        """
        query = self.to_q_proj(labels.to(codebook.dtype))
        count = max(len(query), len(codebook))
        every = torch.arange(count, device=codebook.device)
        rows = query[every % len(query)], codebook[every % len(codebook)]
        answer: Tensor = self.transformer_decoder(rows[0][None], rows[1][None])
        return answer[0]

    def flops(self, rows: int, k: int) -> int:
        """Floating point operations of k tokens from k codes, with so many rows of cells."""
        width, cells = self.to_q_proj.weight.shape
        hidden = len(self.transformer_decoder.layers[0].linear1.weight)
        projections, products = 16 * k * width**2, 8 * k**2 * width
        layer = projections + products + 4 * k * width * hidden
        return 2 * rows * cells * width + len(self.transformer_decoder.layers) * layer


def load_vq_attention(path: str, heads: int = 8) -> VQAttention:
    """The module with weights from a .safetensors file, or one that torch saved.

    Names may have a prefix, as in the checkpoint of a whole model.

    Args:
        path: of the file.
        heads: of the attention, which the weights do not tell.

    Raises:
        InputError: the file cannot be read or holds no such weights.
    """
    weights = _read(Path(path))
    found = [name.removesuffix(NEEDED[0]) for name in weights if name.endswith(NEEDED[0])]
    if len(found) != 1 or found[0] + NEEDED[1] not in weights:
        raise InputError(f"{path} holds no VQ attention: {' and '.join(NEEDED)} are expected")
    weights = {
        name.removeprefix(found[0]): value
        for name, value in weights.items()
        if name.startswith((f"{found[0]}to_q_proj.", f"{found[0]}transformer_decoder."))
    }
    width, cells = weights[NEEDED[0]].shape
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(f"heads must divide the width {width} of the weights, got {heads!r}")
    layers = len({name.split(".")[2] for name in weights if "layers." in name})
    hidden = len(weights[NEEDED[1]])
    module = VQAttention(cells, width, hidden=hidden, layers=layers, heads=heads)
    try:
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} holds no VQ attention: {reason}") from error
    return module.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"cannot read weights from {path}: {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise InputError(f"{path} holds no plain table of tensors")
    return dict(weights)
