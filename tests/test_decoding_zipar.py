"""ZipAR: the order of its forwards, how many there are, and plain decoding with a full window."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok.decoding import generate_zipar, image_writer
from mmtok.decoding.zipar import Feed, Wavefront
from mmtok.errors import InputError
from tests.writers import GRID, MODELS, image_prompts, janus, stock_codes

SIZE: dict[str, dict[str, int]] = {
    "janus": {},
    "chameleon": {},
    "emu3": {"rows": GRID[0], "columns": GRID[1]},
}
GREEDY: dict[str, Any] = {"do_sample": False, "guidance_scale": 3.0}


@pytest.mark.parametrize("name", MODELS)
def test_a_window_of_a_whole_row_is_plain_decoding(name: str) -> None:
    writer = image_writer(MODELS[name](), **SIZE[name])
    got = generate_zipar(writer, image_prompts(), window=writer.width, **GREEDY)
    want = torch.tensor([stock_codes(name, row, 3.0) for row in (0, 1)])
    assert torch.equal(got.codes, writer.grid(want))
    assert got.target_forwards == writer.rows * writer.width


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_as_many_forwards_as_predicted(rows: int, width: int) -> None:
    for window in range(1, width + 1):
        front, forwards, fed = Wavefront(rows, width, window), 1, set()
        while feeds := front.step():
            forwards += 1
            for feed in feeds:
                if not feed.stands_in:
                    assert (feed.row, feed.column) not in fed
                    fed.add((feed.row, feed.column))
        assert forwards == (width if rows == 1 else 2 * width + (rows - 2) * window)
        assert front.known == [width] * rows
        assert len(fed) >= rows * width - rows  # the end of a row may never be needed


def test_a_row_that_starts_early_gets_a_stand_in() -> None:
    front = Wavefront(3, 4, 2)
    steps = []
    while feeds := front.step():
        steps.append(feeds)
    assert steps[:4] == [[Feed(0, c, 0)] for c in range(3)] + [[Feed(0, 3, 1)]]
    assert steps[4] == [Feed(1, 0, 1)]
    assert steps[5] == [Feed(1, 1, 1), Feed(1, 3, 2, stands_in=True)]
    assert steps[6] == [Feed(1, 2, 1), Feed(2, 0, 2)]
    assert steps[7] == [Feed(1, 3, None), Feed(2, 1, 2)]
    assert steps[8] == [Feed(2, 2, 2)]
    assert len(steps) == 9


@torch.no_grad()
def test_every_code_sees_what_is_known_before_it() -> None:
    """Against forwards over the known codes alone, in reading order, with their true places."""
    writer, window = image_writer(janus()), 2
    inputs = image_prompts((1,))
    got = generate_zipar(writer, inputs, window=window, do_sample=False).codes[0]
    prompt, width = inputs["input_ids"], writer.width
    start = janus().model.language_model.get_input_embeddings()(prompt)

    def wanted(places: list[tuple[int, int]], stands_in: int | None) -> int:
        known = [int(got[place]) for place in places]
        at = [prompt.shape[1] + r * width + c for r, c in places]
        if stands_in is not None:
            known.append(stands_in)
            at.append(at[-1] + width - places[-1][1] - 1)
        embedded = writer.embed(torch.tensor([known])) if known else start[:, :0]
        hidden = janus().model.language_model(
            inputs_embeds=torch.cat([start, embedded], 1),
            position_ids=torch.tensor([[*range(prompt.shape[1]), *at]]),
        )
        return int(writer.head(hidden.last_hidden_state[:, -1:]).argmax())

    # row 1 starts when row 0 is done; row 2 starts from two codes of row 1, and so on
    first = [(0, c) for c in range(width)]
    assert wanted(first[:2], None) == got[0, 2]
    assert wanted(first, None) == got[1, 0]
    assert wanted([*first, (1, 0), (1, 1)], int(got[1, 1])) == got[2, 0]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    model = MODELS[name]()
    options: dict[str, Any] = {"do_sample": True, "top_k": 5, **SIZE[name]}
    both = generate_zipar(model, image_prompts(), window=2, guidance_scale=2.0, **options)
    for row in (0, 1):
        alone = generate_zipar(
            model, image_prompts((row,)), window=2, guidance_scale=2.0, seed=row, **options
        )
        assert torch.equal(alone.codes[0], both.codes[row])
    rows, width = both.writer.rows, both.writer.width
    assert both.target_forwards == 2 * width + (rows - 2) * 2


@pytest.mark.parametrize("window", [0, 5])
def test_a_window_that_does_not_fit_is_refused(window: int) -> None:
    with pytest.raises(InputError, match=r"window must be in 1 \.\. 4"):
        generate_zipar(janus(), image_prompts(), window=window)
