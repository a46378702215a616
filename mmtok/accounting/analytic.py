"""Closed forms for the language model: FLOPs of a prefill or a decode step, bytes of the KV cache.

Read from a transformers text config, no weights. Convention as in flops.py. For n query tokens and
c keys (the new ones included), width d, FFN width m, H heads, G key/value heads of size h:

    layer   2 n (2 d H h + 2 d G h + 3 d m) + 4 n c H h
    logits  2 n d V, or 2 d V when only the last position is read
    KV      2 G h bytes per token and layer

Sources: the modeling files of transformers 5.24; equal to torch's counter on tiny models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmtok.errors import InputError

Logits = Literal["last", "all", "none"]
PerLayer = int | Sequence[int]

DECODERS = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3",
    "qwen3_vl_text",
    "smollm3",
)
"""Text model types with grouped-query attention and a gated FFN in every layer."""

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1} | {
    f"float8_{kind}": 1 for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")
}
"""Bytes per number by dtype name."""


def decoder_flops(
    text_config: Any,
    query_tokens: PerLayer,
    key_tokens: PerLayer | None = None,
    logits: Logits = "last",
    layers: int | None = None,
    neurons: int | None = None,
) -> int:
    """FLOPs of one forward of the language model over one sequence; a batch of b costs b times it.

    Args:
        text_config: transformers config of the text model.
        query_tokens: tokens that go through each layer: one number, or one per layer where
            tokens leave inside the decoder.
        key_tokens: tokens each layer attends to, the new ones included. Default: query_tokens
            (a prefill); for a decode step, query_tokens is 1 and key_tokens past + 1.
        logits: "last" as in `generate`, "all" as in a plain forward, or "none".
        layers: layers to count, from the first. Default: all.
        neurons: of each feed-forward network that are computed. Default: all.

    Raises:
        InputError: no closed form for this model type, or a list of the wrong length.
    """
    check_decoder(text_config)
    depth = text_config.num_hidden_layers if layers is None else layers
    queries = per_layer(query_tokens, depth, "query_tokens")
    keys = queries if key_tokens is None else per_layer(key_tokens, depth, "key_tokens")
    d, m = text_config.hidden_size, neurons or text_config.intermediate_size
    heads, kv_heads, size = head_shape(text_config)
    linear = 2 * (2 * d * heads * size + 2 * d * kv_heads * size + 3 * d * m)
    total = 0
    for layer, (n, c) in enumerate(zip(queries, keys, strict=True)):
        seen = n + kept_in_cache(text_config, layer, c - n)
        total += n * linear + 4 * n * seen * heads * size
    read = {"last": min(1, queries[-1]), "all": queries[-1], "none": 0}[logits]
    return int(total + 2 * read * d * text_config.vocab_size)


def decode_flops(text_config: Any, held: PerLayer, steps: int, neurons: int | None = None) -> int:
    """FLOPs of `steps` decode steps of one sequence, in time that does not grow with them.

    Step s of layer l reads one token and held[l] + s keys; all but the attention products cost the
    same in every step.

    Args:
        text_config: transformers config of the text model.
        held: tokens in the cache before the first step: one number, or one per layer.
        steps: how many.
        neurons: of each feed-forward network that are computed. Default: all.

    Raises:
        InputError: as `decoder_flops`.
    """
    alone = decoder_flops(text_config, 1, 1, neurons=neurons)  # attends to nothing but itself
    before = per_layer(held, text_config.num_hidden_layers, "held")
    heads, _, size = head_shape(text_config)
    read = sum(_cached_reads(text_config, layer, n, steps) for layer, n in enumerate(before))
    return steps * alone + 4 * heads * size * read


def _cached_reads(text_config: Any, layer: int, held: int, steps: int) -> int:
    """Cache entries that a layer reads in all steps: one more each time, until a window is full."""
    most = kept_in_cache(text_config, layer, held + steps)
    growing = min(steps, max(most - held, 0))
    return growing * held + growing * (growing - 1) // 2 + (steps - growing) * most


def kv_bytes(text_config: Any, lengths: PerLayer, dtype: Any) -> int:
    """Bytes of the KV cache of one sequence.

    Args:
        text_config: transformers config of the text model.
        lengths: tokens in the cache: one number, or one per layer.
        dtype: torch dtype or its name, such as "float16".

    Raises:
        InputError: no closed form for this model type, an unknown dtype, a wrong list length.
    """
    check_decoder(text_config)
    per_token = 2 * head_shape(text_config)[1] * head_shape(text_config)[2] * number_bytes(dtype)
    held = per_layer(lengths, text_config.num_hidden_layers, "lengths")
    return sum(
        per_token * kept_in_cache(text_config, layer, tokens) for layer, tokens in enumerate(held)
    )


def number_bytes(dtype: Any) -> int:
    """Bytes per number of a torch dtype or dtype name; InputError if unknown."""
    name = str(dtype).removeprefix("torch.")
    if name not in BYTES:
        raise InputError(f"unknown dtype {name!r}; expected one of: {', '.join(BYTES)}")
    return BYTES[name]


def head_shape(text_config: Any) -> tuple[int, int, int]:
    """(heads, key/value heads, size of a head)."""
    heads = text_config.num_attention_heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return heads, kv_heads, size


def slides(text_config: Any, layer: int) -> bool:
    """Whether a layer attends within a sliding window only."""
    types = getattr(text_config, "layer_types", None)
    window = getattr(text_config, "sliding_window", None)
    return bool(window) and (not types or types[layer] == "sliding_attention")


def kept_in_cache(text_config: Any, layer: int, tokens: int) -> int:
    """How many of `tokens` the layer's cache holds: a sliding layer keeps its window less one."""
    if not slides(text_config, layer):
        return tokens
    return min(tokens, int(text_config.sliding_window) - 1)


def check_decoder(text_config: Any) -> None:
    """InputError unless the closed forms above describe this text model."""
    kind = getattr(text_config, "model_type", None)
    if kind not in DECODERS:
        raise InputError(
            f"no closed form for text model {kind!r}; there is one for: {', '.join(DECODERS)}"
        )


def per_layer(tokens: PerLayer, layers: int, name: str) -> list[int]:
    """`tokens` as one number per layer."""
    if isinstance(tokens, int):
        return [tokens] * layers
    if len(tokens) != layers:
        raise InputError(f"{name} has {len(tokens)} entries, expected one per layer ({layers})")
    return list(tokens)
