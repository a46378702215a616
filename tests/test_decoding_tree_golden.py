"""Whole trees and whole sequences against reference vectors, where MMTOK_GOLDEN names them."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.decoding import DraftTree, Target, warp
from mmtok.decoding.drafters.recycling import Recycling
from mmtok.decoding.rules import Level
from mmtok.decoding.verifiers.lantern import Lantern
from mmtok.decoding.verifiers.lanterngreedy import LanternGreedy
from tests.golden import GOLDEN, needs_golden
from tests.test_decoding_golden import cases, close

pytestmark = needs_golden


def read(name: str) -> Any:
    return json.loads((GOLDEN / "decoding" / name).read_text())


@pytest.mark.parametrize("file", ["eagle_static_tree", "token_recycling_tree"])
def test_static_trees_have_the_published_masks_depths_and_paths(file: str) -> None:
    for name, want in read(f"{file}.json")["trees"].items():
        nodes = [(), *map(tuple, want.get("paths") or want["template"])]
        parent = torch.tensor([-1, *(nodes.index(path[:-1]) for path in nodes[1:])])
        tree = DraftTree(torch.arange(len(nodes)), parent, "det")
        assert parent.tolist() == want["parent"], name
        assert tree.sees.long().tolist() == want["attention_mask"]
        assert tree.depth.tolist() == want["position_ids"]
        leaves = [i for i in range(len(nodes)) if not tree.children(i)]
        got = sorted([0, *tree.path_to(leaf)] for leaf in leaves)
        rows = [[node for node in row if node >= 0] for row in want["retrieve_indices"]]
        assert got == sorted(rows)
        if file == "token_recycling_tree":
            drafter = Recycling(
                children=tuple(len(tree.children(i)) for i in range(max(parent) + 1))
            )
            assert (drafter.parent, drafter.rank) == (want["parent"], want["rank"])
            continue
        for row, before in zip(rows, want["earlier_siblings"], strict=True):
            for node, siblings in zip(row[1:], before[1:], strict=False):
                family = tree.children(int(parent[node]))
                assert family[: family.index(node)] == siblings


def test_lantern_greedy_takes_the_published_path() -> None:
    for x, y, params in cases("lantern_greedy"):
        nodes = [(), *map(tuple, params["tree"])]
        parent = torch.tensor([-1, *(nodes.index(path[:-1]) for path in nodes[1:])])
        tree = DraftTree(x["node_tokens"], parent, "det")
        near = x["neighbours"][:, : params["k"]]
        verifier = LanternGreedy(near=near, delta=params["delta"])
        p = x["node_logits"].softmax(-1)
        verdict = verifier.verify(tree, lambda node, p=p: p[node], lambda: 0.5)
        best = x["retrieve_indices"][int(y["best_path"])][1:]
        assert verdict.path == best[: int(y["accept_length"])].tolist()
        for row, length in zip(x["retrieve_indices"], y["accept_length_per_path"], strict=True):
            path = [node for node in row.tolist() if node >= 0]
            passed = [
                bool(verifier.level(p[at], tree.tokens[[node]], None).accept[0])
                for at, node in itertools.pairwise(path)
            ]
            assert next((i for i, ok in enumerate(passed) if not ok), len(passed)) == length


class Spy(Lantern):
    """Keeps what the rule said at the last node it judged."""

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> Level:
        made = super().level(p, siblings, q)
        object.__setattr__(self, "last", made)
        return made


def test_lantern_walks_the_published_tree_with_the_published_rule() -> None:
    for x, y, params in cases("lantern_tree_walk"):
        tree = DraftTree(x["node_tokens"], x["parent"], "wor", x["node_q"])
        near = x["neighbours"][:, : params["k"] + 1]
        spy = Spy(near=near, delta=params["delta"], published=True)
        p, left = x["node_logits"].softmax(-1), iter(x["u"].tolist())
        verdict = spy.verify(tree, lambda node, p=p: p[node], lambda left=left: next(left))
        assert [0, *verdict.path] == y["path"].tolist()
        assert len(x["u"]) - len(list(left)) - 1 == int(y["u_used"])  # one emits the token
        at = verdict.path[-1] if verdict.path else 0
        close(spy.last.rest if tree.children(at) else p[at], y["next_token_dist"], 1e-10)


class Table(torch.nn.Module):
    """A language model that is a table of the last two tokens; it finds them through the mask.

    Tokens and positions are all it keeps in its cache. Token V is "none yet". Of two tables the
    first is for the first half of a batch.
    """

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        from transformers import LlamaConfig

        self.tables, self.dtype = torch.stack(tables), torch.float64
        self.config = LlamaConfig(
            vocab_size=self.tables.shape[-1],
            num_hidden_layers=1,
            num_attention_heads=1,
            attn_implementation="sdpa",
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        use_cache: bool = True,
    ) -> Any:
        held = torch.stack([input_ids, position_ids], -1)[:, None].double()
        tokens, places = past_key_values.update(held, held, 0)[0][:, 0].long().unbind(-1)
        mask = attention_mask
        if mask.ndim == 2:
            n = input_ids.shape[1]
            mask = mask[:, None, None].bool() & torch.ones(n, n, dtype=torch.bool).tril()
        found = []
        for back in (1, 0):
            hit = mask[:, 0] & (places[:, None] == position_ids[..., None] - back)
            assert bool((hit.sum(-1) <= 1).all())
            none = self.tables.shape[-1]
            found.append(torch.where(hit.any(-1), (tokens[:, None] * hit).sum(-1), none))
        size = len(input_ids)
        which = torch.arange(size)[:, None] * len(self.tables) // size
        return SimpleNamespace(logits=self.tables[which, found[0], found[1]].log())

    def _supports_logits_to_keep(self) -> bool:
        return False

    def _prepare_position_ids_for_generation(self, ids: Tensor, inputs: Any) -> Tensor:
        return inputs["attention_mask"].cumsum(-1) - 1


def test_a_target_gives_a_table_model_its_exact_law() -> None:
    """All 1024 sequences as one tree, guidance included, against their exact probabilities."""
    found = 0
    for x, y, params in cases("table_lm"):
        size, length, scale = params["V"], params["L"], params["cfg_scale"]
        levels = [list(itertools.product(range(size), repeat=n)) for n in range(length)]
        nodes = [path for level in levels for path in level]
        place = {path: at for at, path in enumerate(nodes)}
        parent = torch.tensor([-1, *(place[path[:-1]] for path in nodes[1:])])
        tokens = torch.tensor([size, *(path[-1] for path in nodes[1:])])
        tree = DraftTree(tokens, parent, "det")
        model = Table(x["cond"], x["uncond"]) if scale != 1 else Table(x["cond"])
        target = Target(model, guidance_scale=scale)
        first = target.prefill({"input_ids": torch.tensor([[size]])})
        rest = target.extend(tokens[None, 1:], tree.depth[None, 1:] - 1, tree.sees[None, 1:, 1:])
        rows = warp.rows(torch.cat([first, rest[0]]), tree, [size], lambda ids, z: z, True)
        law = torch.ones(1, dtype=torch.float64)
        for level in levels:
            law = (law[:, None] * torch.stack([rows(place[path]) for path in level])).flatten()
        close(law, y["exact"], 1e-12)
        found += 1
    assert found == 3
