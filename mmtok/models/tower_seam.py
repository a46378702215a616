"""The tower seam: merge patches inside the vision tower, with stock layers that read fewer tokens.

Hooks swap the sequence that a layer reads for the merged one. What leaves a layer is spread over
the full grid again, every patch with the feature of its group, so that all that follows (the layer
a family reads, its CLS token, its packing of crops, its projector) finds what it expects. Behind
the encoder one token of each group is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.crops import Crops, crops_of, layers_read
from mmtok.models.families import Family, Inputs
from mmtok.pruning.groups import Groups
from mmtok.pruning.stages import EncoderStage, TowerTokens
from mmtok.tokens import check_finite


def open_tower(
    model: Any, family: Family, inputs: Inputs, kind: str, stage: EncoderStage, meter: Meter
) -> TowerSeam:
    """The seam for one run of the encoder on `inputs`.

    Raises:
        InputError: merging does not fit these inputs.
    """
    if kind == "video":
        raise InputError(
            f"merging inside the vision tower does not fit clips of {model.config.model_type}: "
            "their tokens pool several patches"
        )
    layers = model.base_model.get_submodule(family.tower)
    crops = crops_of(model, inputs, stage.keep_count)
    return TowerSeam(layers, stage, crops, layers_read(model.config, inputs), meter)


class TowerSeam:
    """One run of a vision tower with merging; enter `active` around it.

    Args:
        layers: the tower's layers.
        stage: what to merge, and where.
        crops: what goes in.
        read: how many layers run up to the one whose output the model reads; none merges behind it.
        meter: told that the stage "reduce.select" runs.

    Attributes:
        flops: floating point operations spent on merging, in closed form.
        lengths: per layer, the tokens of a crop that its attention and its MLP read.
        attended: (C, S) token that each token of the full sequence was in when the last layer
            attended; None if nothing had merged.
    """

    def __init__(
        self, layers: nn.ModuleList, stage: EncoderStage, crops: Crops, read: int, meter: Meter
    ) -> None:
        self.layers, self.stage, self.crops = layers, stage, crops
        self.read, self.meter = read, meter
        self.flops = 0
        self.lengths: list[tuple[int, int]] = []
        self.attended: Tensor | None = None
        self._merged: Merged | None = None
        self._keys: Tensor | None = None
        self._short: Tensor | None = None  # what runs beside the MLP of a layer that merges

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the layers; unhook them whatever happens."""
        with ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                hooks = self._around(layer, number)
                if self.stage.place == "attention" and number < self.read:
                    hooks += self._inside(layer, number)
                for hook in hooks:
                    stack.callback(hook.remove)
            yield

    def _around(self, layer: nn.Module, number: int) -> list[Any]:
        """The layer reads the merged sequence, and leaves the full one behind."""

        def enter(module: Any, args: Any, kwargs: Any) -> Any:
            self._short = None
            merged = self._merged
            self.attended = None if merged is None else merged.slot
            if merged is None:
                return None
            kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            return (merged.hidden,), kwargs | {"attention_mask": merged.mask}

        def leave(module: Any, args: Any, output: Tensor) -> Tensor | None:
            hidden = output if self._short is None else self._short
            self.lengths.append((args[0].shape[1], hidden.shape[1]))
            if self._merged is not None:
                self._merged.hidden = hidden
            if self.stage.place == "layer" and number < self.read:
                self._merge(number, hidden)
            return None if self._merged is None else self._merged.spread()

        # Before transformers' own hook, which collects the outputs of layers.
        return [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave, prepend=True),
        ]

    def _inside(self, layer: Any, number: int) -> list[Any]:
        """Merge what the attention of a layer hands to its MLP."""

        def keys(module: Any, args: Any, output: Tensor) -> None:
            heads = layer.self_attn.num_heads
            self._keys = output.view(*output.shape[:2], heads, -1).mean(2)

        def merge(module: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
            if not self._merge(number, args[0]):
                return None
            assert self._merged is not None
            self._short = self._merged.hidden
            return (self._short,)

        def beside(module: Any, args: Any, output: Tensor) -> Tensor | None:
            if self._short is None:
                return None
            self._short = self._short + output
            return output.new_zeros(1, 1, 1)  # the layer's own sum is of another length: unused

        return [
            layer.self_attn.k_proj.register_forward_hook(keys),
            layer.layer_norm2.register_forward_pre_hook(merge),
            layer.mlp.register_forward_hook(beside),
        ]

    def _merge(self, number: int, hidden: Tensor) -> bool:
        """Ask the rule, and merge; False if every token stays as it is.

        Raises:
            InputError: the features are not finite.
        """
        before = self._merged or Merged.start(hidden, self.crops)
        check_finite("features", hidden, before.size > 0)
        with self.meter.stage("reduce.select"):
            label, flops = self.stage.rule(
                TowerTokens(
                    layer=number,
                    layers=self.read,
                    features=hidden,
                    keys=self._keys,
                    size=before.size,
                    free=before.free,
                    start=self.crops.visible.sum(1),
                    target=self.crops.target,
                    first=before.first,
                    grid=self.crops.grid,
                    prefix=before.prefix,
                )
            )
            self.flops += flops
            groups = Groups(label, before.size)
            if bool((groups.size > 0).sum() == (before.size > 0).sum()):
                return False
            self._merged = before.join(groups, hidden, self.stage.proportional)
        return True

    def unmerge(self, rows: Tensor) -> Tensor:
        """(C, S, ...) values of the last layer's tokens, spread over the full sequence."""
        return rows if self.attended is None else spread(rows, self.attended)

    def merged_tokens(self) -> dict[str, Any]:
        """`group` and `size` of the items' visual tokens, (B, N) each; see VisualTokens."""
        count, patches = self.crops.visible.shape
        leader = torch.arange(count * patches, device=self.crops.visible.device)
        if self._merged is not None:
            leader = self._merged.leaders() + leader.view(count, patches)[:, :1]
        groups, sizes = [], []
        for origin in self.crops.origin:
            place = torch.full((count * patches,), -1, device=origin.device)
            real = origin >= 0
            place[origin[real]] = real.nonzero().squeeze(1)
            first = leader.flatten()[origin.clamp_min(0)]
            group = place[first].masked_fill(~real, -1)
            size = torch.bincount(group[real], minlength=len(group))[group.clamp_min(0)]
            groups.append(group)
            sizes.append(size.masked_fill(~real, 1))
        return {
            "group": nn.utils.rnn.pad_sequence(groups, batch_first=True),
            "size": nn.utils.rnn.pad_sequence(sizes, batch_first=True),
        }


@dataclass
class Merged:
    """The merged sequences of C crops, n tokens each, padded on the right.

    Attributes:
        hidden: (C, n, D).
        slot: (C, S) token that each token of the full sequence is in.
        first: (C, n) first token of the full sequence in each.
        size: (C, n) patches, fp32 at least, in each; 0 at padding.
        free: (C, n) bool, tokens that may merge.
        prefix: tokens before the patches.
        mask: (C, 1, n, n) what attention adds to its scores, or None.
    """

    hidden: Tensor
    slot: Tensor
    first: Tensor
    size: Tensor
    free: Tensor
    prefix: int
    mask: Tensor | None = None

    @staticmethod
    def start(hidden: Tensor, crops: Crops) -> Merged:
        """Every token by itself."""
        prefix = hidden.shape[1] - crops.visible.shape[1]
        place = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        return Merged(
            hidden=hidden,
            slot=place,
            first=place,
            size=torch.ones_like(place, dtype=torch.promote_types(hidden.dtype, torch.float32)),
            free=nn.functional.pad(crops.visible, (prefix, 0)),
            prefix=prefix,
        )

    def join(self, groups: Groups, hidden: Tensor, proportional: bool) -> Merged:
        """The sequences with `hidden` merged by groups."""
        padding = groups.size == 0
        mask = None
        if proportional or bool(padding.any()):
            bias = groups.size.log() if proportional else torch.zeros_like(groups.size)
            bias = bias.to(hidden.dtype).masked_fill(padding, torch.finfo(hidden.dtype).min)
            mask = bias[:, None, None].expand(-1, -1, bias.shape[1], -1)
        return Merged(
            hidden=groups.mean(hidden),
            slot=groups.slot.gather(1, self.slot),
            first=self.first.gather(1, groups.first),
            size=groups.size,
            free=groups.all(self.free),
            prefix=self.prefix,
            mask=mask,
        )

    def spread(self) -> Tensor:
        """(C, S, D): every token of the full sequence with the feature of its group."""
        return spread(self.hidden, self.slot)

    def leaders(self) -> Tensor:
        """(C, P) first patch of each patch's group."""
        return self.first.gather(1, self.slot)[:, self.prefix :] - self.prefix


def spread(rows: Tensor, slot: Tensor) -> Tensor:
    """(C, S, ...) rows (C, n, ...) at the places (C, S)."""
    index = slot.view(*slot.shape, *(1,) * (rows.ndim - 2)).expand(*slot.shape, *rows.shape[2:])
    return rows.gather(1, index)
