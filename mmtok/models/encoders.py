"""Vision towers of timm and open_clip as sources of VisualTokens.

CLS attention is the softmax row of the CLS query in the last attention layer, mean over heads, over
all keys, of which the patches' part is kept. It is computed for that row alone from the queries and
keys the layer itself used (rotated and normalised, where the model does so); the layer runs fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.models.families import cells
from mmtok.models.lvlm import first_line
from mmtok.models.taps import LayerAttention, tap
from mmtok.models.weights import pick_device
from mmtok.options import check_value
from mmtok.tokens import VisualTokens

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A vision transformer, called on images, giving one token per patch.

    Attributes:
        name: what it was loaded by.
        model: the library's own module.
        attention: its last self-attention layer.
        patches: pixels (B, 3, H, W) -> patch features (B, N, D), after the tower's final norm.
        transform: one PIL image -> normalised pixels (3, H, W), as the library prepares them.
        patch_size: height and width of a patch in pixels.
        image_size: height and width the model insists on, or None where any size will do.
        prefix: tokens before the patches in the sequence: CLS, distillation, registers.
        has_cls: whether the first of them is a CLS token.
    """

    name: str
    model: Any
    attention: Any
    patches: Callable[[Tensor], Tensor]
    transform: Callable[[Any], Tensor]
    patch_size: tuple[int, int]
    image_size: tuple[int, int] | None
    prefix: int
    has_cls: bool

    def __call__(self, images: Image | Sequence[Image] | Tensor) -> VisualTokens:
        """Patch tokens of images, without gradients.

        Args:
            images: a PIL image, several, or normalised pixels (B, 3, H, W).

        Returns:
            B items: `features` (B, N, D), `position` and `grid` (1, H / patch, W / patch),
            `keys` (B, N, heads * width) and, if the model has a CLS token, `cls_attention` (B, N).

        Raises:
            InputError: neither of these, or pixels of another shape or size than the model takes.
        """
        pixels = images if isinstance(images, Tensor) else self._prepare(images)
        self._check(pixels)
        weight = next(self.model.parameters())
        seen: list[LayerAttention] = []
        watch = _tap_torch if isinstance(self.attention, nn.MultiheadAttention) else tap
        with torch.no_grad(), watch(self.attention, seen.append):
            features = self.patches(pixels.to(weight.device, weight.dtype))
        height, width = (n // p for n, p in zip(pixels.shape[-2:], self.patch_size, strict=True))
        if features.shape[1] != height * width:
            raise _not_a_vit(self.name, self.model)
        batch, device = len(pixels), features.device
        key = seen[-1].key.transpose(1, 2).flatten(2)
        return VisualTokens(
            features=features,
            position=cells(1, height, width).to(device).expand(batch, -1, -1),
            grid=torch.tensor([[1, height, width]], device=device).expand(batch, -1),
            cls_attention=self._cls_rows(seen[-1]) if self.has_cls else None,
            keys=key[:, self.prefix :],
        )

    def _cls_rows(self, attention: LayerAttention) -> Tensor:
        first = torch.zeros(1, dtype=torch.int64, device=attention.query.device)
        rows = [attention.rows(item, first)[0] for item in range(len(attention.query))]
        return torch.stack(rows)[:, self.prefix :]

    def _prepare(self, images: Any) -> Tensor:
        from PIL.Image import Image

        several = images if isinstance(images, list | tuple) else [images]
        if not several:
            raise InputError(f"{self.name}: no images given")
        for image in several:
            if not isinstance(image, Image):
                raise InputError(
                    f"{self.name}: takes PIL images (mmtok.io.image.load_image reads files) or "
                    f"normalised pixels (B, 3, H, W) as a tensor, got {type(image).__name__}"
                )
        return torch.stack([self.transform(image.convert("RGB")) for image in several])

    def _check(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
            raise InputError(
                f"{self.name}: pixels must have shape (B, 3, H, W), got {tuple(pixels.shape)}"
            )
        size = tuple(pixels.shape[-2:])
        if self.image_size is not None and size != self.image_size:
            raise InputError(f"{self.name}: takes images of {self.image_size} pixels, got {size}")
        left = [n % p or n == 0 for n, p in zip(size, self.patch_size, strict=True)]
        if self.image_size is None and any(left):
            of = f"sides that are multiples of {self.patch_size} pixels"
            raise InputError(f"{self.name}: takes images with {of}, got {size}: resize them")


@contextmanager
def _tap_torch(
    layer: nn.MultiheadAttention, use: Callable[[LayerAttention], None]
) -> Iterator[None]:
    """`tap` for torch's own layer, whose fused kernel keeps queries and keys to itself.

    They are projected once more from the layer's input: all keys, and the query of the CLS token.
    """

    def before(module: nn.MultiheadAttention, args: tuple[Tensor, ...]) -> None:
        weights = module.in_proj_weight.chunk(3)
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        query, key = (
            nn.functional.linear(x, weight, bias).reshape(*x.shape[:2], module.num_heads, -1)
            for x, weight, bias in zip((args[0][:, :1], args[1]), weights, biases, strict=False)
        )
        use(
            LayerAttention(
                query=query.transpose(1, 2),
                key=key.transpose(1, 2),
                mask=None,
                causal=False,
                scale=module.head_dim**-0.5,
            )
        )

    hook = layer.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def load_encoder(
    name: str,
    *,
    pretrained: bool | str | None = False,
    device: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Encoder:
    """A vision transformer of timm or open_clip.

    Args:
        name: "timm:vit_base_patch16_224" or "open_clip:ViT-B-32".
        pretrained: weights by the library's own loader: True for timm, a tag such as "openai" for
            open_clip. False or None: random ones, and nothing is downloaded.
        device: "auto", "cpu" or "cuda".
        seed: of the random weights.
        options: passed to the library's `create_model`.

    Raises:
        InputError: unknown library or model, no weights to be had, or no vision transformer with
            one token per patch (a convolutional or windowed network).
    """
    check_value("name", name, str)
    check_value("pretrained", pretrained, bool | str | None)
    check_value("seed", seed, int)
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be an int from 0 to 2**63 - 1, got {seed}")
    library, _, model_name = name.partition(":")
    if library not in _LIBRARIES or not model_name:
        raise InputError(f"{name!r}: an encoder reads timm:<model> or open_clip:<model>")
    where = pick_device(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = _LIBRARIES[library](name, model_name, pretrained, options)
    encoder.model.to(where).eval().requires_grad_(False)
    return encoder


def _timm(name: str, model_name: str, pretrained: bool | str | None, options: Any) -> Encoder:
    import timm

    if not timm.is_model(model_name):
        raise _unknown(name, model_name, timm.list_models())
    with _clear_errors(name, pretrained, options):
        model = timm.create_model(model_name, pretrained=bool(pretrained), **options)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    asked = {"input_size": (3, *size)} if size else {}
    settings = timm.data.resolve_data_config(asked, model=model)
    return _timm_encoder(name, model, timm.data.create_transform(**settings, is_training=False))


def _timm_encoder(name: str, model: Any, transform: Callable[[Any], Tensor]) -> Encoder:
    blocks, prefix = getattr(model, "blocks", None), getattr(model, "num_prefix_tokens", None)
    attention = getattr(blocks[-1], "attn", None) if blocks is not None else None
    embed: Any = getattr(model, "patch_embed", None)
    if attention is None or prefix is None or not hasattr(embed, "strict_img_size"):
        raise _not_a_vit(name, model)
    if not getattr(attention, "fused_attn", False):
        raise InputError(
            f"{name}: its attention ({type(attention).__name__}) does not run fused, by torch's "
            "scaled_dot_product_attention; use a model such as timm:vit_base_patch16_224"
        )
    if embed.dynamic_img_pad:
        raise InputError(
            f"{name}: dynamic_img_pad makes tokens of padding, which show no picture; expected "
            "dynamic_img_size alone, and images whose sides are multiples of the patch"
        )
    return Encoder(
        name=name,
        model=model,
        attention=attention,
        patches=lambda pixels: model.forward_features(pixels)[:, prefix:],
        transform=transform,
        patch_size=embed.feat_ratio(as_scalar=False),  # in pixels, behind a network as well
        image_size=tuple(embed.img_size) if embed.strict_img_size else None,
        prefix=prefix,
        has_cls=getattr(model, "cls_token", None) is not None,
    )


def _open_clip(name: str, model_name: str, pretrained: bool | str | None, options: Any) -> Encoder:
    import open_clip

    if model_name not in open_clip.list_models():
        raise _unknown(name, model_name, open_clip.list_models())
    with _clear_errors(name, pretrained, options):
        model = open_clip.create_model(
            model_name, pretrained=pretrained or None, pretrained_text=False, **options
        )
    tower = model.visual
    settings = open_clip.transform.PreprocessCfg(**tower.preprocess_cfg)
    transform = open_clip.transform.image_transform_v2(settings, is_train=False)
    if hasattr(tower, "trunk"):
        return _timm_encoder(name, tower.trunk, transform)
    if not isinstance(tower, open_clip.transformer.VisionTransformer):
        raise _not_a_vit(name, tower)

    def patches(pixels: Tensor) -> Tensor:
        out: Tensor = tower.forward_intermediates(
            pixels,
            indices=1,
            normalize_intermediates=tower.attn_pool is None,
            intermediates_only=True,
            output_fmt="NLC",
        )["image_intermediates"][-1]
        return out

    return Encoder(
        name=name,
        model=tower,
        attention=tower.transformer.resblocks[-1].attn,
        patches=patches,
        transform=transform,
        patch_size=tower.patch_size,
        image_size=tower.image_size,
        prefix=1,
        has_cls=True,
    )


_LIBRARIES = {"timm": _timm, "open_clip": _open_clip}


@contextmanager
def _clear_errors(name: str, pretrained: bool | str | None, options: Any) -> Iterator[None]:
    """Whatever a library trips over in making a model, in one line."""
    try:
        yield
    except Exception as error:
        given = "no weights to be had" if pretrained else "cannot be made"
        given += f" with {', '.join(options)}" if options else ""
        raise InputError(f"{name}: {given}: {first_line(error)}") from error


def _unknown(name: str, model_name: str, known: Sequence[str]) -> InputError:
    close = get_close_matches(model_name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "its list_models() names them all"
    return InputError(f"{name!r}: no such model in this library; {hint}")


def _not_a_vit(name: str, model: Any) -> InputError:
    return InputError(
        f"{name}: {type(model).__name__} is not a plain vision transformer with one token per "
        "patch and global attention; use one such as timm:vit_base_patch16_224"
    )
