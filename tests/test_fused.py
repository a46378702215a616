"""The kernels of greedy choices against the torch code: interpreted, compiled, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmtok.pruning.coverage import greedy_coverage
from mmtok.pruning.determinant import EXHAUSTED, greedy_determinant
from mmtok.pruning.greedy import greedy_diverse, unit

triton = pytest.importorskip("triton", reason="Triton comes with torch where there is CUDA")

SIZES = [(1, 4, 1), (5, 3, 4), (40, 6, 14)]


def features(n: int, width: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(n), dtype=dtype)
    x[n // 2 :: 7] = x[0].clone()  # doubles
    x[n // 3 :: 11] = 0
    return x


def interpreted() -> None:
    """Every kernel against the torch code; runs where TRITON_INTERPRET is set from the start."""
    from mmtok.pruning import fused

    for (n, width, k), dtype in product(SIZES, (torch.float32, torch.float64)):
        x = features(n, width, dtype)
        gram = unit(x) @ unit(x).T
        for rule in ("kcenter", "maxsum"):
            score = x.new_zeros(n) if rule == "maxsum" else x.new_full((n,), torch.inf)
            score[n // 4] = -torch.inf
            chosen = torch.full((k,), n // 4)
            fused.spread(gram, score, chosen, total=rule == "maxsum")
            assert torch.equal(chosen, greedy_diverse(x, k, n // 4, rule)), (n, dtype, rule)
        generator = torch.Generator().manual_seed(n)
        cover = torch.randint(0, 4, (n, 260), generator=generator).to(dtype)
        assert torch.equal(fused.covering(cover, k), greedy_coverage(cover, k)), (n, dtype)
        plain = torch.randn(n, width, generator=generator, dtype=dtype)
        quality = torch.rand(n, generator=generator) + 0.1
        got = fused.volume(unit(plain) * quality.to(plain)[:, None], k, EXHAUSTED[dtype])
        assert torch.equal(got, greedy_determinant(plain, quality, k)), (n, dtype)
        assert len(fused.volume(x, k, EXHAUSTED[dtype]).unique()) == k, (n, dtype)


def test_the_kernels_in_the_interpreter() -> None:
    """In a process of its own: Triton asks for the variable when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_fused import interpreted; interpreted()"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_gpu(capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmtok.pruning import fused

    numbers = dict.fromkeys(("n", "k", "width"), "i32")
    pointers = dict.fromkeys(("gram", "score", "basis", "cover", "covered", "gain"), "*fp32")
    kinds = {**numbers, **pointers, "chosen": "*i64", "taken": "*i8", "share": "fp32"}
    for kernel, fixed in {
        fused._spread: {"total": False, "block": 8192},
        fused._gains: {"rows": 4, "columns": 256},
        fused._volume: {"block": 8192},
    }.items():
        signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, signature=signature, constexprs=fixed)
        made = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 16}
        )
        assert len(made.asm["cubin"]) > 1000
        if kernel is fused._volume:
            assert "bar.sync" in made.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("n", "width", "k"), [*SIZES, (2880, 1024, 288)])
def test_on_a_gpu_as_on_the_cpu(n: int, width: int, k: int) -> None:
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    quality = torch.rand(n, generator=torch.Generator().manual_seed(1)) + 0.1
    cover = torch.randint(0, 99, (n, 300), generator=torch.Generator().manual_seed(n)).double()
    there = [tensor.cuda() for tensor in (x, quality, cover)]
    for first in (None, 0):
        assert torch.equal(greedy_diverse(there[0], k, first).cpu(), greedy_diverse(x, k, first))
    got = greedy_determinant(there[0], there[1], k).cpu()
    assert torch.equal(got, greedy_determinant(x, quality, k))
    assert torch.equal(greedy_coverage(there[2], k).cpu(), greedy_coverage(cover, k))
