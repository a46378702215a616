"""The networks that benchmarks/codecs.py times: random ones near published sizes, what ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmtok.tokenizers import build
from mmtok.tokenizers.cvivit_net import CViViTConfig
from mmtok.tokenizers.flextok_net import FlexTokConfig
from mmtok.tokenizers.latents import LatentConfig
from mmtok.tokenizers.methods.alit import ALITConfig
from mmtok.tokenizers.methods.titok import TiTokConfig
from mmtok.tokenizers.methods.wetok import WeTokConfig
from mmtok.tokenizers.wavtokenizer_net import WavTokenizerConfig

SEMANTIC = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 256,
    "output_hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tokenizer: its spec, what it is timed on, the sizes of its network in words, and how to
    save that network into a folder that `weights` names."""

    spec: str
    kind: str
    sizes: str
    saved: Callable[[Path], None] | None = None


def own(spec: str, config: Any) -> Callable[[Path], None]:
    """Save a random network of this configuration in mmtok's own layout."""

    def write(folder: Path) -> None:
        made: Any = build(spec)
        vars(made)["config"] = config  # in place of the small default
        made.save(folder)

    return write


def stock(model: str, **sizes: Any) -> Callable[[Path], None]:
    """Save a random network of a stock class of transformers, its codebooks drawn as well."""

    def write(folder: Path) -> None:
        import transformers

        config = getattr(transformers, f"{model.removesuffix('Model')}Config")(**sizes)
        made: nn.Module = getattr(transformers, model)(config)
        for name, values in made.named_buffers():
            if name.endswith(("codebook.embed", "codebook.embed_sum")):
                values.normal_()
        made.save_pretrained(folder)

    return write


TRANSFORMER = {"encoder": (512, 8, 8), "decoder": (512, 8, 8), "image_size": 256, "entries": 4096}
CHUNKED = {
    "sampling_rate": 48_000,
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}
ROWS = [
    Row(spec="patchify(patch=16)", kind="picture", sizes="none"),
    Row(spec="patchify(patch=1)", kind="picture", sizes="none"),
    Row(
        spec="titok",
        kind="picture",
        sizes="512 wide, 8 + 8 layers, 128 tokens, 256 px (S-128, predicting pixels)",
        saved=own("titok", TiTokConfig(**TRANSFORMER, patch=16, decoder_patch=16, tokens=128)),
    ),
    Row(
        spec="karl",
        kind="picture",
        sizes="512 wide, 8 + 8 layers, 256 tokens, 256 px",
        saved=own("karl", LatentConfig(**TRANSFORMER, patch=16, tokens=256)),
    ),
    Row(
        spec="alit(error=0)",
        kind="picture",
        sizes="256 wide, 4 + 4 layers, 8 rounds of 32 tokens, 256 px",
        saved=own(
            "alit",
            ALITConfig(
                encoder=(256, 4, 4),
                decoder=(256, 4, 4),
                patch=16,
                image_size=256,
                tokens=256,
                rounds=8,
                entries=4096,
            ),
        ),
    ),
    Row(
        spec="flextok(steps=5)",
        kind="picture",
        sizes="384 wide, 6 + 6 layers, 256 tokens, 256 px in patches of 16, no VAE, guidance",
        saved=own(
            "flextok",
            FlexTokConfig(
                width=384,
                depth=6,
                decoder_width=384,
                decoder_depth=6,
                head_dim=64,
                registers=256,
                side=256,
                patch=16,
            ),
        ),
    ),
    Row(
        spec="wetok",
        kind="picture",
        sizes="64 channels x (1, 1, 2, 2, 4), 2 blocks, f16, 4 x 8 bits",
        saved=own("wetok", WeTokConfig(width=64, mult=(1, 1, 2, 2, 4), blocks=2, groups=4, bits=8)),
    ),
    Row(
        spec="hf_vq(family='janus')",
        kind="picture",
        sizes="64 channels x (1, 1, 2, 2, 4), 2 blocks, f16, 16,384 entries",
        saved=stock("JanusVQVAE", base_channels=64),
    ),
    Row(
        spec="hf_vq(family='emu3')",
        kind="picture",
        sizes="32 channels x (1, 2, 2, 4), 2 blocks, f8, 32,768 entries",
        saved=stock("Emu3VQVAE", base_channels=32, hidden_size=128),
    ),
    Row(spec="tiny-vq", kind="picture", sizes="as it ships, f4, 512 entries"),
    Row(spec="tiny-flex", kind="picture", sizes="as it ships, 128 wide, 4 + 4 layers, 32 px"),
    Row(
        spec="cvivit",
        kind="clip",
        sizes="256 wide, 2 + 2 layers on either side, patches of 8, steps of 2 frames, 13 bits",
        saved=own(
            "cvivit",
            CViViTConfig(width=256, heads=4, head_dim=64, spatial=2, temporal=2, bits=13),
        ),
    ),
    Row(
        spec="wavtokenizer",
        kind="sound",
        sizes="as published, 75 tokens a second",
        saved=own(
            "wavtokenizer",
            WavTokenizerConfig(
                filters=32, latent=512, entries=4096, width=768, hidden=2304, layers=12
            ),
        ),
    ),
    Row(spec="tiny-codec", kind="sound", sizes="as it ships, 8 kHz, 62.5 tokens a second"),
    Row(
        spec="hf_audio(family='encodec')",
        kind="sound",
        sizes="as published, 24 kHz, 32 codebooks",
        saved=stock("EncodecModel"),
    ),
    Row(
        spec="hf_audio(family='encodec', codebooks=16)",
        kind="sound",
        sizes="as published, 48 kHz stereo, in chunks",
        saved=stock("EncodecModel", **CHUNKED),
    ),
    Row(
        spec="hf_audio(family='dac')",
        kind="sound",
        sizes="as published, 16 kHz, 12 codebooks",
        saved=stock("DacModel", n_codebooks=12, downsampling_ratios=[2, 4, 5, 8]),
    ),
    Row(
        spec="hf_audio(family='mimi', codebooks=8)",
        kind="sound",
        sizes="as published, 24 kHz",
        saved=stock("MimiModel"),
    ),
    Row(
        spec="xcodec2",
        kind="sound",
        sizes="w2v-BERT 256 wide with 4 layers, decoder 256 wide with 4 layers, 65,536 entries",
        saved=stock(
            "Xcodec2Model",
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            encoder_hidden_size=16,
            quantization_dim=512,
            semantic_model_config=SEMANTIC,
        ),
    ),
]
