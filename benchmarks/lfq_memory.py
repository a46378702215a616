"""Peak memory of the entropy loss: plain LFQ against groups, forward and backward, on the CPU.

    python benchmarks/lfq_memory.py [--tokens 256]

Every row runs in a process of its own; the figure is how far its peak resident memory rises above
that of the same step on one token. The plain rows at 18 bits are vector-quantize-pytorch's LFQ, as
users have it, and ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from card import card, markdown, save

ROWS = [
    ("vector-quantize-pytorch", 1, 18),
    ("mmtok", 1, 18),
    ("mmtok", 2, 9),
    ("mmtok", 3, 6),
    ("mmtok", 4, 8),
    ("mmtok", 8, 8),
]


def measure(library: str, groups: int, bits: int, tokens: int) -> tuple[float, float]:
    """(MiB, ms) of one training step of a quantiser."""
    import torch

    from mmtok.tokenizers.quantizers_lfq import GroupedLFQ

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if library == "mmtok":
        ours = GroupedLFQ(groups, bits)

        def loss(x: torch.Tensor) -> torch.Tensor:
            return ours(x).loss
    else:
        from vector_quantize_pytorch import LFQ

        theirs = LFQ(codebook_size=2**bits, num_codebooks=groups, commitment_loss_weight=0.25)

        def loss(x: torch.Tensor) -> torch.Tensor:
            return theirs(x).entropy_aux_loss

    loss(torch.randn(1, 1, groups * bits, requires_grad=True)).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x = torch.randn(1, tokens, groups * bits, requires_grad=True)
    start = time.perf_counter()
    loss(x).backward()
    elapsed_ms = 1000 * (time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024, elapsed_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256)
    tokens = parser.parse_args().tokens
    table, peaks = [["", "groups x bits", "MiB", "ms"]], {}
    for library, groups, bits in ROWS:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the peak
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            mib, elapsed_ms = pool.submit(measure, library, groups, bits, tokens).result()
        peaks[library, groups, bits] = mib
        table.append([library, f"{groups} x {bits}", f"{mib:.1f}", f"{elapsed_ms:.0f}"])
    plain, grouped = peaks["vector-quantize-pytorch", 1, 18], peaks["mmtok", 2, 9]
    ratio = f"{plain / max(grouped, 1 / 256):.0f}"  # at least the page that memory is counted in
    text = card(f"Memory of the entropy loss, {tokens} tokens forward and backward")
    text += markdown(table)
    text += f"\nPlain LFQ at 18 bits takes {ratio} times the memory of grouped LFQ at 2 x 9.\n"
    save(f"{Path(__file__).stem}.md", text)


if __name__ == "__main__":
    main()
