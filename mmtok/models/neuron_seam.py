"""The neuron seam: decode steps that compute a part of each feed-forward network.

While the prompt runs, a hook on `down_proj` reads the activation of every layer. From then on the
layer's `mlp` multiplies with the rows of `gate_proj` and `up_proj` and the columns of `down_proj`
that belong to the chosen neurons, gathered once per prompt: a copy of `share` of those weights for
each prompt of the batch is held until the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.decoder_seam import DecoderSeam
from mmtok.pruning.neurons import NeuronStage


class NeuronSeam:
    """Applies a NeuronStage to every decoder layer while its context is open.

    Args:
        seam: knows the layers and which tokens reach them.
        stage: what to compute.
        meter: told that the stage "reduce.score" runs.

    Attributes:
        cores: per layer, the (B, C, D) weights that the prompts with visual tokens chose.
        blind: prompts of the last batch without visual tokens, which compute all.

    Raises:
        InputError: the layers have no plain gated feed-forward network.
    """

    def __init__(self, seam: DecoderSeam, stage: NeuronStage, meter: Meter) -> None:
        self.seam, self.stage, self.meter = seam, stage, meter
        self.networks: list[Any] = [getattr(layer, "mlp", None) for layer in seam.layers]
        for network in self.networks:
            parts = [getattr(network, f"{part}_proj", None) for part in ("gate", "up", "down")]
            if not all(isinstance(p, nn.Linear) and p.bias is None for p in parts):
                raise InputError(
                    "neurons can be skipped in feed-forward networks with gate_proj, up_proj and "
                    f"down_proj without bias, not in {type(network).__name__}"
                )
        self.start()

    def start(self) -> None:
        """Get ready for a prompt; until it has run the networks compute all."""
        self.cores: list[list[Tensor] | None] = [None] * len(self.networks)
        self.blind = torch.empty(0, dtype=torch.int64)

    @property
    def chosen(self) -> bool:
        """Whether decode steps of the last prompt leave neurons out."""
        return self.cores[-1] is not None

    @property
    def spared_bytes(self) -> int:
        """Weights a decode step of the last prompts reads less than the whole networks; less than
        none where a prompt without visual tokens needs those too.
        """
        stock = sum(w.numel() * w.element_size() for n in self.networks for w in n.parameters())
        held = sum(w.numel() * w.element_size() for core in self.cores for w in core or [])
        return (0 if len(self.blind) else stock) - held if held else 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the networks and shadow their `forward`; undone whatever happens."""
        with ExitStack() as stack:
            for place, network in enumerate(self.networks):
                hook = network.down_proj.register_forward_pre_hook(partial(self._choose, place))
                stack.callback(hook.remove)
                stack.callback(partial(_restore, network, vars(network).get("forward")))
                network.forward = partial(self._forward, place, network.forward)
            yield

    def _choose(self, place: int, module: nn.Module, args: Any) -> None:
        left = self.seam.left[place]
        if left is None or self.cores[place] is not None:
            return
        network, rows = self.networks[place], self.seam.sighted
        blind = torch.ones(len(args[0]), dtype=torch.bool, device=rows.device)
        blind[rows] = False
        self.blind = blind.nonzero().squeeze(1)
        if len(rows) == 0:
            return
        with self.meter.stage("reduce.score"):
            count = self.stage.width(args[0].shape[-1])
            index = torch.stack(
                [
                    self.stage.rule(x[real], count)
                    for x, real in zip(args[0][rows], left.real[rows], strict=True)
                ]
            )
            self.cores[place] = [
                network.gate_proj.weight[index],
                network.up_proj.weight[index],
                network.down_proj.weight.T[index],
            ]

    def _forward(self, place: int, stock: Any, x: Tensor) -> Tensor:
        core = self.cores[place]
        if core is None:
            out: Tensor = stock(x)
            return out
        if len(self.blind) == 0:
            return self._part(place, core, x)
        out = torch.empty_like(x)
        out[self.seam.sighted] = self._part(place, core, x[self.seam.sighted])
        out[self.blind] = stock(x[self.blind])
        return out

    def _part(self, place: int, core: list[Tensor], x: Tensor) -> Tensor:
        gate, up, down = core
        fired: Tensor = self.networks[place].act_fn(x @ gate.mT)
        return (fired * (x @ up.mT)) @ down


def _restore(network: nn.Module, own: Any) -> None:
    """Give a module its class's `forward` back, or the one it had of its own."""
    del network.forward
    if own is not None:
        network.forward = own
