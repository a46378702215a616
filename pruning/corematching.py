"""CoreMatching: tokens and neurons that match each other go on (arXiv 2505.19235).

Authors' repository: wangqinsi1/2025-ICML-CoreMatching. The core of a token are the neurons of a
feed-forward network that fire most for it; the core of the prompt are the neurons most often in
its tokens' cores. Visual tokens whose core shares most with the prompt's go on, and decode steps
compute the prompt's core of each layer alone. No attention is read.

The paper leaves at the knee of the scores; `knee` does so, `keep` being the most that may go on.
Without it the best `keep` tokens go on. `compat="repo"` takes the released score instead: shared
firing neurons with the fifth token from the end. That code sets keys and values of
dropped tokens to zero, where they still take a share of attention, and computes all neurons; here
tokens really leave, in front of layer 6 of 32 or as deep in another decoder, and neurons are really
skipped. `keep=1.0` skips neither.

The paper's values of rho and beta are not known to us. Ours were chosen on training scenes of the
embedded model (docs/results/corematching.md): rho = 0.95 loses least where few neurons are left;
beta = 0.4 is above what its answers of a word or two need, since long ones may need more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads, keeping, stage_layers, stepped
from mmtok.pruning.neurons import NeuronStage
from mmtok.pruning.rank import top
from mmtok.tokens import Selection

RHO = 0.95
BETA = 0.4
ANCHOR = 5


@dataclass(frozen=True, kw_only=True)
class CoreMatching(Reducer):
    """Keep the visual tokens that share neurons with the prompt, and decode with those neurons.

    Attributes:
        keep: visual tokens of a prompt that go on; with `knee`, the most that do.
        layer: first layer that runs on fewer tokens. Default: at 6/32 of the depth.
        rho: a neuron is in a token's core if it fires, and above this quantile of the layer's.
        beta: share of a layer's neurons in the prompt's core; 1.0: no neuron is skipped.
        knee: None, or whether tokens at the knee of the scores go on: "inclusive" or "strict".
        compat: "paper", or "repo" for the released score.
    """

    keep: int | float = 0.4
    layer: int | None = None
    rho: float = RHO
    beta: float = BETA
    knee: Literal["inclusive", "strict"] | None = None
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("rho", 0, 1, below=True)
        self.check_number("beta", 0, 1, above=True)

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage; none if all is kept.

        Raises:
            InputError: the decoder has no such layer.
        """
        reads = frozenset[Reads]({"activation"})
        return [
            DecoderStage(layer=layer, rule=self._matched, reads=reads)
            for layer in self._places(layers)
            if not self.keeps_all
        ]

    def in_feedforward(self) -> NeuronStage | None:
        """The prompt's core in every layer; None if all is kept or beta is 1."""
        if self.keeps_all or self.beta == 1:
            return None
        return NeuronStage(share=self.beta, rule=self._core)

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """All of them up to the layer, the kept ones from there on."""
        places = self._places(layers)
        return stepped(layers, places, [self.keep_count(visual)] * len(places), visual)

    def _places(self, layers: int) -> list[int]:
        given = None if self.layer is None else (self.layer,)
        return stage_layers(self.name, given, (6 / 32,), layers)

    def _core(self, activation: Tensor, count: int) -> Tensor:
        return prompt_core(token_cores(activation, self.rho), count)

    def _matched(self, prompt: DecoderPrompt) -> Selection:
        n = len(prompt.visual)
        k = self.keep_count(n)
        if prompt.activation is None:
            raise ValueError("the stage declares that it reads activations")
        places = torch.cat([prompt.visual, prompt.text]).sort().values
        if self.compat == "repo":
            cores = token_cores(prompt.activation, 0)
            core = cores[places[-min(ANCHOR, len(places))]]
        else:
            cores = token_cores(prompt.activation, self.rho)
            core = torch.zeros_like(cores[0])
            count = max(math.floor(self.beta * len(core) + 0.5), 1)
            core[prompt_core(cores[places], count)] = True
        score = (cores[prompt.visual] & core).sum(1)
        best = top(score, k)
        if self.knee is not None:
            best = best[torch.isin(best, above_knee(score, strict=self.knee == "strict"))]
        return keeping(best)


def token_cores(activation: Tensor, rho: float) -> Tensor:
    """(T, M) bool: neurons that fire, and above the `rho` quantile of their token's neurons."""
    floor = torch.zeros_like(activation[:, :1])
    rank = math.ceil(rho * activation.shape[1])
    if rank:
        floor = activation.float().kthvalue(rank, dim=1, keepdim=True).values.clamp_min(0)
    return activation > floor


def prompt_core(cores: Tensor, count: int) -> Tensor:
    """(count,) neurons that are in most of the (T, M) token cores, ascending."""
    return top(cores.sum(0), count).sort().values


def above_knee(score: Tensor, *, strict: bool) -> Tensor:
    """Tokens whose score is not below the knee of the falling scores; all where none would be.

    The knee is the score farthest from the line between the highest and the lowest, the first of
    equals. Where all scores are equal there is none.

    Args:
        score: (N,) integers.
        strict: whether the score at the knee itself is too low.
    """
    y = score.double().sort(descending=True).values
    place = torch.arange(len(y), device=y.device)
    knee = y[((y[-1] - y[0]) * place - (len(y) - 1) * (y - y[0])).abs().argmax()]
    above = score > knee if strict else score >= knee
    return (above if bool(above.any()) else ~above).nonzero().squeeze(1)
