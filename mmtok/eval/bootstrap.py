"""Bootstrap over whole pictures or videos: questions about one medium are not independent.

Scores are functions of counts that add up, so a draw is a row of weights and all draws together
are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 1000


def weights(media: int, draws: int = DRAWS, seed: int = 0) -> Array:
    """(draws + 1, media): how often each medium is in each draw; the first row is the data."""
    draw = np.random.default_rng(seed)
    drawn = draw.multinomial(media, np.full(media, 1 / media), size=draws)
    return np.concatenate([np.ones((1, media)), drawn]).astype(np.float64)


def resample(
    counts: Mapping[str, Array],
    draws: Array,
    figures: Callable[[Mapping[str, Array]], Mapping[str, Array]],
) -> dict[str, Array]:
    """Each score over all draws, (draws + 1,), from counts per medium, (media,)."""
    return dict(figures({name: draws @ column for name, column in counts.items()}))


def interval(values: Array) -> tuple[float, float] | None:
    """95% interval of the draws behind the first value; None where a score does not exist."""
    drawn = values[1:]
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or np.isnan(values[0]):
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
