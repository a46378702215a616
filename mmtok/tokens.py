"""The objects that flow through a pipeline: VisualTokens, Query, Selection; Codes is in codes.py.

Shapes: B items, N tokens (padded), D width, T text tokens. One item is one image or one video.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """Padded visual tokens of B items and what is known about each token.

    Attributes:
        features: (B, N, D) floating point, in the width the language model reads.
        mask: (B, N) bool, True where a token exists. Default: all.
        position: (B, N, 3) int64, (t, h, w) cell of each token. Default: (0, 0, n),
            padding not counted.
        grid: (B, 3) int64, frames, rows and columns. Default: (1, 1, valid tokens).
        cls_attention: (B, N) attention of the encoder's CLS token to each patch, or None.
        cls_joint: (B, N) the same with the heads unsplit, or None.
        keys: (B, N, Dk) keys of the encoder's last attention layer, or None.
        group: (B, N) int64 place of the first token that shares a token's feature since a merge in
            the encoder; -1 for newline tokens. None if nothing merges there.
        size: (B, N) int64 patches that share the feature; None if nothing merges there.
        overview: (B, N) bool, True at the low-resolution overview of an AnyRes image, or None.
        item_ids: B stable names of the items: a seeded method draws from (seed, item id), so a
            batch gives what its items give one by one. From a model they follow from an item's
            pixels and its place in its prompt. Default: "0" for every item.

    Raises:
        InputError: shapes disagree, or a feature, attention or key of a valid token is NaN or
            infinite.
    """

    features: Tensor
    mask: Tensor = None  # type: ignore[assignment]  # filled in __post_init__
    position: Tensor = None  # type: ignore[assignment]
    grid: Tensor = None  # type: ignore[assignment]
    cls_attention: Tensor | None = None
    cls_joint: Tensor | None = None
    keys: Tensor | None = None
    overview: Tensor | None = None
    group: Tensor | None = None
    size: Tensor | None = None
    item_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        x = self.features
        if x.ndim != 3 or not x.is_floating_point():
            raise InputError(
                "features must be floating point of shape (B, N, D), got "
                f"{tuple(x.shape)} {x.dtype}"
            )
        b, n, _ = x.shape
        fill = object.__setattr__
        if self.mask is None:
            fill(self, "mask", torch.ones(b, n, dtype=torch.bool, device=x.device))
        if self.position is None:
            column = (self.mask.cumsum(1) - 1).clamp_min(0)
            zero = torch.zeros_like(column)
            fill(self, "position", torch.stack([zero, zero, column], dim=-1))
        if self.grid is None:
            count = self.mask.sum(1)
            fill(self, "grid", torch.stack([count * 0 + 1, count * 0 + 1, count], dim=-1))
        if not self.item_ids:
            fill(self, "item_ids", ("0",) * b)
        self._check_shapes()
        self._check_finite()

    def _check_shapes(self) -> None:
        b, n, _ = self.features.shape
        expected = {
            "mask": (b, n),
            "position": (b, n, 3),
            "grid": (b, 3),
            "cls_attention": (b, n),
            "cls_joint": (b, n),
            "overview": (b, n),
            "group": (b, n),
            "size": (b, n),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
        if self.keys is not None and tuple(self.keys.shape[:2]) != (b, n):
            raise InputError(f"keys must have shape ({b}, {n}, Dk), got {tuple(self.keys.shape)}")
        if len(self.item_ids) != b:
            raise InputError(f"item_ids must name {b} items, got {len(self.item_ids)}")

    def _check_finite(self) -> None:
        for name in ("features", "cls_attention", "cls_joint", "keys"):
            value = getattr(self, name)
            if value is not None:
                check_finite(name, value, self.mask)

    @property
    def leads(self) -> Tensor:
        """(B, N) bool, the valid tokens, of each group that shares a feature only the first."""
        if self.group is None:
            return self.mask
        place = torch.arange(self.mask.shape[1], device=self.mask.device)
        return self.mask & ((self.group == place) | (self.group < 0))

    @property
    def counts(self) -> Tensor:
        """(B,) int64 number of valid tokens of each item."""
        return self.mask.sum(1)

    def gather(self, indices: list[Tensor]) -> VisualTokens:
        """The tokens at `indices`, one int64 (k_b,) tensor per item, padded to the longest."""
        index, mask = pad_indices(indices, self.features.device)

        def take(x: Tensor) -> Tensor:
            shaped = index.reshape(*index.shape, *(1,) * (x.ndim - 2)).expand(
                *index.shape, *x.shape[2:]
            )
            return x.gather(1, shaped)

        return replace(
            self,
            features=take(self.features).masked_fill(~mask[..., None], 0),
            mask=mask,
            position=take(self.position),
            cls_attention=None if self.cls_attention is None else take(self.cls_attention),
            cls_joint=None if self.cls_joint is None else take(self.cls_joint),
            keys=None if self.keys is None else take(self.keys),
            overview=None if self.overview is None else take(self.overview),
            size=None if self.size is None else take(self.size),
            group=None,  # places among tokens that are no longer all there
        )


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the user asked: text embeddings (B, T, D) with mask (B, T), one row per visual item."""

    embeddings: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tokens survive, per item.

    Attributes:
        indices: B int64 tensors (k_b,), ascending and unique, into the item's N tokens.
        merge: optional B triples (source, slot, weight), all (M_b,): output slot[m] receives
            weight[m] of input token source[m]. A source may feed several slots; one that is not
            listed is dropped.
        made: optional B tensors (k_b, D): the survivors' features, where a method computes them
            otherwise; `merge` or `indices` then still say what becomes of anything else.
        flops: what the choice cost where content decides it, counted as `select_flops` does.
    """

    indices: list[Tensor]
    merge: list[tuple[Tensor, Tensor, Tensor]] | None = None
    made: list[Tensor] | None = None
    flops: int | None = None

    def apply(self, features: Tensor) -> list[Tensor]:
        """The surviving (k_b, D) features of (B, N, D): gathered, or merged by slot and weight."""
        if self.merge is None:
            return [x[i] for x, i in zip(features, self.indices, strict=True)]
        out = []
        for x, index, (source, slot, weight) in zip(
            features, self.indices, self.merge, strict=True
        ):
            merged = torch.zeros(len(index), x.shape[-1], dtype=torch.float32, device=x.device)
            merged.index_add_(0, slot, x[source].float() * weight[:, None].float())
            out.append(merged.to(x.dtype))
        return out


def pad_indices(indices: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged int64 indices as a padded (B, K) tensor and its (B, K) bool mask."""
    longest = max((len(i) for i in indices), default=0)
    index = torch.zeros(len(indices), longest, dtype=torch.int64, device=device)
    mask = torch.zeros(len(indices), longest, dtype=torch.bool, device=device)
    for row, item in enumerate(indices):
        index[row, : len(item)] = item.to(device)
        mask[row, : len(item)] = True
    return index, mask


def check_finite(name: str, value: Tensor, mask: Tensor) -> None:
    """InputError unless (B, N) or (B, N, D) values are finite wherever the (B, N) mask holds."""
    if bool(value.sum(dtype=torch.float32).isfinite()):
        return  # one cheap kernel; a sum that overflows is looked at closely
    gone = ~mask if value.ndim == 2 else ~mask[..., None]
    if not bool(torch.isfinite(value.masked_fill(gone, 0)).all()):
        raise InputError(f"{name} hold NaN or infinite values in valid tokens")
