"""Reference vectors of methods that merge in the tower or contrast logits; see test_golden.py."""

from __future__ import annotations

import torch

from mmtok.pruning import DAMRO, MustDrop, VisualTokens
from mmtok.pruning.groups import Groups, bipartite
from mmtok.pruning.methods.mustdrop import dual
from mmtok.pruning.outliers import joint_attention
from mmtok.pruning.stages import TowerTokens
from tests.test_golden import cases, pytestmark

__all__ = ["pytestmark"]


def test_tome() -> None:
    for params, tensors in cases("tome"):
        metric, tokens = tensors["input.metric"], tensors["input.tokens"]
        count = metric.shape[:2]
        size = tensors.get("input.sizes", torch.ones(*count, 1, dtype=metric.dtype))[..., 0]
        cls = int(params.get("class_token", False))
        free = (torch.arange(count[1]) >= cls).expand(count)
        r = torch.full(count[:1], params.get("r", count[1]))
        label, _ = bipartite(metric, free, r, every=params.get("k", 2), offset=cls)
        groups = Groups(label, size)
        merged = groups.mean(tokens)
        if "output.group_of_token" in tensors:
            theirs = tensors["output.group_of_token"]
            mine = groups.slot[:, :, None] == groups.slot[:, None]
            assert torch.equal(mine, theirs[:, :, None] == theirs[:, None]), "the same groups"
            want = tensors["output.tokens"].gather(
                1, theirs.gather(1, groups.first)[..., None].expand(merged.shape)
            )
            torch.testing.assert_close(merged, want, rtol=1e-5, atol=1e-6)
            sizes = tensors["output.sizes"][..., 0].gather(1, theirs.gather(1, groups.first))
            torch.testing.assert_close(groups.size, sizes)
        else:  # destinations stand in order of place, ours in order of first members
            order = label.gather(1, groups.first)[0].argsort()
            torch.testing.assert_close(
                merged[:, order], tensors["output.tokens"], rtol=1e-5, atol=1e-6
            )


def test_damro() -> None:
    for params, tensors in cases("damro"):
        damro = DAMRO(alpha=params["alpha"], beta=params["beta"], outliers=params["k"])
        row = joint_attention(tensors["input.q_proj"], tensors["input.k_proj"])[:, 1:]
        tokens = VisualTokens(features=tensors["input.features"], cls_joint=row)
        selection = damro.negative(tokens)
        for item, want in enumerate(tensors["output.outliers"]):
            assert torch.equal(selection.merge[item][0], want)
            assert torch.equal(selection.indices[item], want.sort().values)
            torch.testing.assert_close(
                selection.apply(tokens.features)[item], tensors["output.negative_features"][item]
            )
        got = damro.contrast(tensors["input.logits"], tensors["input.logits_negative"])
        torch.testing.assert_close(got, tensors["output.logits"], rtol=1e-5, atol=1e-5)


def test_mustdrop_merge() -> None:
    for params, tensors in cases("mustdrop_merge"):
        x = tensors["input.features"]
        count, length = x.shape[:2]
        place = torch.arange(length).expand(count, -1)
        label, _ = MustDrop(theta=params["threshold"], compat="repo").windows(
            TowerTokens(
                layer=0,
                layers=1,
                features=x,
                keys=None,
                size=torch.ones(count, length, dtype=x.dtype),
                free=place > 0,
                start=torch.full((count,), length - 1),
                target=torch.ones(count, dtype=torch.int64),
                first=place,
                grid=tuple(params["grid"]),
                prefix=1,
            )
        )
        groups = Groups(label, torch.ones(count, length, dtype=x.dtype))
        merged = groups.mean(x)
        last = (
            torch.stack(
                [place[c].clone().scatter_(0, s, place[c]) for c, s in enumerate(groups.slot)]
            )[:, : merged.shape[1]]
            - 1
        )
        for crop in range(count):
            theirs = torch.cat(
                [
                    torch.tensor([-1]),
                    tensors["output.merged_dst"][crop],
                    tensors["output.unmerged"][crop],
                ]
            )
            order = torch.stack([(last[crop] == cell).nonzero()[0, 0] for cell in theirs])
            torch.testing.assert_close(
                merged[crop, order], tensors["output.tokens"][crop], rtol=1e-5, atol=1e-6
            )
            assert torch.equal(groups.size[crop, order], tensors["output.sizes"][crop, :, 0])


def test_mustdrop_dual() -> None:
    for params, tensors in cases("mustdrop_dual"):
        attention = tensors["input.attn"][0].mean(0)
        start, end = params["v_start"], params["v_start"] + params["n_img"]
        rows = attention[end:, start:end]
        kept = dual(rows.sum(0), rows.amax(0), params["global_thr"], params["individual_thr"])
        assert torch.equal(kept.nonzero().squeeze(1), tensors["output.kept"])
