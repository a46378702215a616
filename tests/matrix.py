"""The test matrix: one row per reducer. Adding a method means adding its row here.

A row gives specs that cover the method's options, with `{keep}` where the budget goes, and the
families it refuses with a reason.
"""

from __future__ import annotations

TILED = frozenset(
    {
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "internvl",
        "smolvlm",
        "idefics3",
        "gemma3",
    }
)

REDUCERS: dict[str, tuple[list[str], frozenset[str]]] = {
    "downsample": (["downsample(keep={keep})"], TILED),
    "random": (["random(keep={keep})", "random(keep={keep}, seed=7)"], frozenset()),
    "stride": (["stride(keep={keep})"], frozenset()),
    "todre": (
        ["todre(keep={keep})", "todre(keep={keep}, rule='maxsum', tau=0, seed=3)"],
        frozenset(),
    ),
}

SPECS = [spec for specs, _ in REDUCERS.values() for spec in specs]
SELECTORS = [spec for spec in SPECS if not spec.startswith("downsample")]
