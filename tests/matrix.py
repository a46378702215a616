"""The test matrix: one row per reducer and tokenizer. Adding a method means adding its row here.

A reducer's row gives specs that cover the method's options, with `{keep}` where the budget goes,
and the families it refuses with a reason, or one kind of their inputs ("llava_onevision-video"). A
tokenizer's row gives specs and shapes of media.
"""

from __future__ import annotations

from mmtok.models.families import FAMILIES

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

WITHOUT_CLS = frozenset(name for name, family in FAMILIES.items() if not family.has_cls)
WITHOUT_KEYS = frozenset(name for name, family in FAMILIES.items() if not family.has_keys)

# Their first stage stands in front of layer 1 of the tiny decoders, and this family adds visual
# features to the output of its first two layers.
SHALLOW = frozenset({"qwen3_vl"})

POOLED = frozenset(name for name, family in FAMILIES.items() if not family.patch_tokens)
POOLED_CLIPS = frozenset({"llava_next_video-video", "llava_onevision-video"})

REDUCERS: dict[str, tuple[list[str], frozenset[str]]] = {
    "a2sf": (
        ["a2sf(keep={keep}, recent=4)", "a2sf(keep={keep}, factor=1, scope='visual')"],
        frozenset(),
    ),
    "cdpruner": (
        ["cdpruner(keep={keep})", "cdpruner(keep={keep}, theta=0.5, compat='repo')"],
        frozenset(),
    ),
    "corematching": (
        ["corematching(keep={keep})", "corematching(keep={keep}, beta=1.0, compat='repo')"],
        SHALLOW,
    ),
    "coveragemax": (
        ["coveragemax(keep={keep})", "coveragemax(keep={keep}, alpha=0, text_temperature=0.1)"],
        frozenset(),
    ),
    "damro": (["damro"], WITHOUT_CLS),
    "dart": (["dart(keep={keep})"], frozenset()),
    "divprune": (["divprune(keep={keep})"], frozenset()),
    "downsample": (["downsample(keep={keep})"], TILED),
    "dycoke": (
        ["dycoke(keep={keep})", "dycoke(keep={keep}, merge=True, read=0.3, layer=1)"],
        frozenset(),
    ),
    "evs": (["evs(keep={keep})"], frozenset()),
    "expectedattention": (["expectedattention(keep={keep})"], frozenset()),
    "fastervlm": (["fastervlm(keep={keep})"], WITHOUT_CLS),
    "fastv": (["fastv(keep={keep})", "fastv(keep={keep}, rows='all')"], frozenset()),
    "fastvid": (["fastvid(keep={keep})"], frozenset()),
    "fps": (["fps(keep={keep})"], frozenset()),
    "framefusion": (
        ["framefusion(keep={keep})", "framefusion(keep={keep}, similarity=0.2)"],
        SHALLOW,
    ),
    "grid": (["grid(keep={keep})"], frozenset()),
    "holitom": (
        [
            "holitom(keep={keep})",
            "holitom(keep={keep}, threshold=0, context=0.4, later=1)",
        ],
        frozenset(),
    ),
    "holov": (["holov(keep={keep})", "holov(keep={keep}, chunks=5, alpha=3)"], WITHOUT_CLS),
    "knorm": (["knorm(keep={keep}, scope='visual')"], frozenset()),
    "mustdrop": (
        [
            "mustdrop(keep={keep})",
            "mustdrop(keep={keep}, theta=-1, key_share=0.5, trim_early=True, compat='repo')",
        ],
        POOLED | POOLED_CLIPS | WITHOUT_CLS,
    ),
    "outliers": (["outliers", "outliers(count=3, per_head=True)"], WITHOUT_CLS),
    "pool": (["pool(keep={keep})"], frozenset()),
    "prumerge": (
        [
            "prumerge(keep={keep}, plus=True, neighbours=3)",
            "prumerge(keep={keep}, adaptive=True, compat='repo')",
        ],
        WITHOUT_CLS | WITHOUT_KEYS,
    ),
    "prunevid": (["prunevid(keep={keep})"], frozenset()),
    "pyramiddrop": (["pyramiddrop(keep={keep})"], SHALLOW),
    "quota": (
        [
            "quota(keep={keep})",
            "quota(keep={keep}, compress='index', least=2)",
            "quota(keep={keep}, compress='bilinear', compat='repo')",
        ],
        frozenset(),
    ),
    "random": (["random(keep={keep})", "random(keep={keep}, seed=7)"], frozenset()),
    "sentencekv": (
        [
            "sentencekv(keep={keep}, read=0.5, start=2, recent=2, window=4, threshold=1)",
            "sentencekv(keep={keep}, read=0.3, window=4, threshold=0, scope='visual')",
        ],
        frozenset(),
    ),
    "snapkv": (["snapkv(keep={keep}, window=4, kernel=3)"], frozenset()),
    "sparsevlm": (["sparsevlm(keep={keep})"], SHALLOW),
    "stride": (["stride(keep={keep})"], frozenset()),
    "todre": (
        ["todre(keep={keep})", "todre(keep={keep}, rule='maxsum', tau=0, seed=3)"],
        frozenset(),
    ),
    "tokencorr": (
        [
            "tokencorr(keep={keep})",
            "tokencorr(keep={keep}, adaptive=True, similarity=0.9, repeats=0.2)",
        ],
        WITHOUT_CLS | WITHOUT_KEYS,
    ),
    "tome": (
        ["tome(keep={keep})", "tome(keep={keep}, inflect=-1, proportional=False, every=3)"],
        POOLED | POOLED_CLIPS,
    ),
    "vidcom2": (["vidcom2(keep={keep})"], frozenset()),
    "visionzip": (
        ["visionzip(keep={keep})", "visionzip(keep={keep}, contextual=4, compat='repo')"],
        WITHOUT_CLS | WITHOUT_KEYS,
    ),
    "vispruner": (
        ["vispruner(keep={keep})", "vispruner(keep={keep}, important=0.2)"],
        WITHOUT_CLS,
    ),
    "vqtoken": (
        ["vqtoken(keep={keep})", "vqtoken(keep={keep}, normalised=True, iterations=3)"],
        frozenset(),
    ),
}

IN_DECODER = (
    *("corematching", "dart", "fastv", "framefusion", "mustdrop", "pyramiddrop", "sparsevlm"),
)

SPECS = [spec for specs, _ in REDUCERS.values() for spec in specs]
CACHES = ("a2sf", "expectedattention", "knorm", "sentencekv", "snapkv")
NOT_SELECTING = ("downsample", *IN_DECODER, *CACHES)
BUDGETED = [spec for spec in SPECS if "{keep}" in spec]
SELECTORS = [spec for spec in BUDGETED if spec.split("(")[0] not in NOT_SELECTING]

# Odd sizes on purpose: what does not divide is filled up, and cut back when decoding.
PICTURES = ((3, 37, 23), (3, 16, 16), (3, 1, 50), (3, 1, 1), (3, 3, 3))
CLIPS = ((5, 3, 20, 18), (1, 3, 9, 33))
SOUNDS = ((1, 1000), (1, 641), (1, 1))

TOKENIZERS: dict[str, tuple[list[str], tuple[tuple[int, ...], ...]]] = {
    "alit": (["alit(error=0.525)", "alit(error=0, seed=1)"], PICTURES),
    "cvivit": (["cvivit", "cvivit(seed=1)"], PICTURES + CLIPS),
    "flextok": (
        [
            *("flextok(steps=2)", "flextok(steps=1, guidance=1.0, seed=1)"),
            "flextok(steps=1, guidance=1.0, quality=8.0)",
        ],
        PICTURES,
    ),
    "hf_audio": (
        [
            *("hf_audio(family='dac')", "hf_audio(family='encodec', codebooks=2)"),
            "hf_audio(family='mimi', codebooks=3, seed=1)",
        ],
        SOUNDS,
    ),
    # The small random network's norms blow rounding errors up in what a single pixel becomes.
    "hf_vq": (
        ["hf_vq(family='janus')", "hf_vq(family='emu3', seed=1)"],
        tuple(shape for shape in PICTURES if shape != (3, 1, 1)),
    ),
    "karl": (["karl(threshold=0.5)", "karl(error=0.2, threshold=0.48, seed=1)"], PICTURES),
    "patchify": (
        ["patchify", "patchify(patch=1)", "patchify(patch=5, frames=2, levels=7)"],
        PICTURES + CLIPS,
    ),
    "titok": (["titok", "titok(seed=1)"], PICTURES),
    "wavtokenizer": (["wavtokenizer", "wavtokenizer(seed=1)"], SOUNDS),
    "xcodec2": (["xcodec2", "xcodec2(seed=1)"], SOUNDS),
    "wetok": (["wetok", "wetok(generative=True, seed=1)"], PICTURES),
}
