"""TokDense, accuracy per visual token (arXiv 2503.16980)."""

from __future__ import annotations

from mmtok.errors import InputError


def token_density(accuracy: float, tokens: float) -> float:
    """Accuracy divided by the number of visual tokens of a question.

    Args:
        accuracy: of a benchmark, as a share or in percent.
        tokens: visual tokens per question, or their mean where methods decide the number.

    Raises:
        InputError: tokens is not positive.
    """
    if not tokens > 0:
        raise InputError(f"tokens must be a number above 0, got {tokens!r}")
    return accuracy / tokens
