"""FLOP formulas for operations that torch's counter takes for free, and what is free by convention.

Each formula gets shapes in place of tensors. Hand counts: 1 multiply-accumulate = 2 FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2, prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

Shape = Sequence[int]
Formula = Callable[..., int]

_VIEWS = """
alias as_strided detach detach_ diagonal expand narrow permute real imag reshape select slice split
split_with_sizes squeeze squeeze_ t t_ transpose transpose_ unbind unfold unsafe_chunk unsafe_split
unsqueeze unsqueeze_ view
view_as_real view_as_complex _unsafe_view _reshape_alias
"""
_COPIES = """
arange bernoulli_ clone copy copy_ empty empty_like empty_strided fill fill_ full full_like lift
lift_fresh lift_fresh_copy new_empty new_empty_strided new_full new_ones new_zeros normal_ ones
ones_like rand rand_like randn randn_like resize_ scalar_tensor set_ uniform_ zero_ zeros zeros_like
_pin_memory _to_copy
"""
_MOVES = """
cat constant_pad_nd embedding flip gather index index_put index_put_ index_select masked_fill
masked_fill_ masked_scatter masked_select nonzero reflection_pad1d repeat repeat_interleave roll
scatter scatter_ select_scatter slice_scatter stack tril triu where
"""
_LOGIC = """
all any bitwise_and bitwise_and_ bitwise_not bitwise_or bitwise_or_ eq equal ge gt isfinite isin
isinf isnan item le logical_and logical_not logical_or lt ne _is_all_true _local_scalar_dense
"""
FREE_OPS = frozenset(f"aten.{op}" for op in (_VIEWS + _COPIES + _MOVES + _LOGIC).split())
"""Operations that do no arithmetic. Everything else without a formula is listed as uncounted."""


def extra_formulas() -> dict[Any, Formula]:
    """Formulas for FlopCounterMode's `custom_mapping`; operations this torch lacks are left out."""
    aten = torch.ops.aten
    out = {op: f for name, f in _FORMULAS.items() if (op := getattr(aten, name, None)) is not None}
    # torch before 2.14 counts CPU attention as zero (pytorch issue 195460)
    cpu_attention = aten._scaled_dot_product_flash_attention_for_cpu
    if cpu_attention not in flop_registry:
        out[cpu_attention] = _sdpa
    return out


def _sdpa(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


def _mm(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _mv(a: Shape, _x: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a)


def _addmv(_bias: Shape, a: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a)


def _dot(a: Shape, _b: Shape, *_: Any, **__: Any) -> int:
    return 2 * a[0]


def _cdist(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """One multiply-accumulate per coordinate of every pair, whatever the norm."""
    return 2 * prod(a[:-2]) * a[-2] * b[-2] * a[-1]


def _self_attention(x: Shape, *_: Any, **__: Any) -> int:
    """(B, S, D) input of nn.MultiheadAttention's fused form: four projections, two products."""
    b, s, d = x
    return b * (8 * s * d * d + 4 * s * s * d)


def _onednn_rnn(x: Shape, w_in: Shape, w_hidden: Shape, *_: Any, **__: Any) -> int:
    """(T, B, D) input; both weights are applied at every step."""
    return 2 * x[0] * x[1] * (prod(w_in) + prod(w_hidden))


def _cudnn_rnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    """(T, B, D) or (B, T, D) input; every weight matrix is applied at every step."""
    return 2 * x[0] * x[1] * sum(prod(w) for w in weights if len(w) == 2)


def _fft(real: bool) -> Formula:
    """5 n log2 n per complex transform of length n, half for real data (FFTW's convention)."""

    def formula(x: Shape, dims: Sequence[int], *_: Any, out_shape: Shape, **__: Any) -> int:
        long = x if prod(x) >= prod(out_shape) else out_shape
        n = prod(long[d] for d in dims)
        return int((2.5 if real else 5) * prod(long) * log2(n)) if n > 1 else 0

    return formula


_FORMULAS: dict[str, Formula] = {
    "mv": _mv,
    "addmv": _addmv,
    "dot": _dot,
    "vdot": _dot,
    "_int_mm": _mm,
    "_cdist_forward": _cdist,
    "_euclidean_dist": _cdist,
    "_native_multi_head_attention": _self_attention,
    "mkldnn_rnn_layer": _onednn_rnn,
    "_cudnn_rnn": _cudnn_rnn,
    "_fft_r2c": _fft(real=True),
    "_fft_c2r": _fft(real=True),
    "_fft_c2c": _fft(real=False),
}
