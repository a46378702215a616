"""The model `mmtok` of lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval, 0.7).

    lmms-eval --model mmtok --model_args 'pretrained=tiny,reduce="todre(keep=0.1)"' --tasks pope

Requests of one kind share batches (`--batch_size`), failures end the run instead of becoming empty
answers, and FLOPs, ms and visual tokens per request go into lmms-eval's own metrics.

Deviation: a prompt is media first, then text, in one turn, as everywhere in mmtok. Requests that
interleave the two or hold a conversation are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from mmtok.errors import InputError
from mmtok.models.counts import tokens_per_prompt

try:
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
    from lmms_eval.models.model_utils.gen_metrics import log_metrics
except ImportError as error:
    raise ImportError(
        f"mmtok.integrations.lmms_eval needs lmms-eval ({error}): pip install lmms-eval"
    ) from error

Request = tuple[Any, Any, str]
"""Images, clips and text, as a Pipeline takes them."""


class MmtokLM(lmms):  # type: ignore[misc]
    """A vision-language model with reducers.

    Args:
        pretrained: as in `mmtok.load`: "tiny", a folder, a hub id.
        reduce: a spec; several that apply in turn are joined by " + ".
        batch_size: requests in a forward pass.
        frames: sampled from each video.
        device: as in `mmtok.load`.
        dtype: as in `mmtok.load`.
        dummy: random weights.
        seed: of the random weights.
        max_batch_size: lmms-eval gives it; not used.

    Raises:
        InputError: an argument cannot be used, or a reducer does not fit the model.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        reduce: str = "",
        batch_size: int | str | None = 1,
        frames: int = 8,
        device: str | None = None,
        dtype: str = "auto",
        dummy: bool = False,
        seed: int = 0,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        from mmtok import Pipeline, load

        size = 1 if batch_size is None else batch_size
        if not str(size).isdigit() or int(size) < 1:
            raise InputError(f"batch_size must be an int of at least 1, got {batch_size!r}")
        self.batch_size, self.frames = int(size), frames
        spec = str(reduce).strip().strip("\"'")
        lvlm = load(pretrained, dummy=dummy, device=device or "auto", dtype=dtype, seed=seed)
        self.pipe = Pipeline(lvlm, spec.split(" + ") if spec else None)
        self.device = lvlm.device

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answer chat requests: (context, messages of a document, options, id, task, split).

        Raises:
            InputError: a request is no single turn of media and text, or samples.
        """
        answers: list[Any] = [None] * len(requests)
        total = _Total()
        for places, options in self._batches(requests):
            prompts = [self._prompt(requests[place]) for place in places]
            new = int(options.get("max_new_tokens") or 1024)
            result = self.pipe.generate_batch(prompts, max_new_tokens=new, **_beams(options))
            lengths = total.add(self.pipe, result)
            for place, text, (read, written) in zip(places, result.texts, lengths, strict=True):
                text = _until(text, options.get("until"))
                counts = TokenCounts(input_tokens=read, output_tokens=written)
                answers[place] = GenerationResult(text=text, token_counts=counts)
                self.cache_hook.add_partial("generate_until", requests[place].args[:1], text)
        if requests:
            total.log()
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not there.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "mmtok answers generate_until requests only: choose a task with output_type "
            "generate_until instead of one that compares likelihoods"
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not there.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "mmtok answers single-turn requests only: choose a task with output_type generate_until"
        )

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Places of requests with the same options, and the options."""
        groups: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[repr(sorted(request.args[2].items()))].append(place)
        for places in groups.values():
            options = dict(requests[places[0]].args[2])
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size], options

    def _prompt(self, request: Any) -> Request:
        from mmtok.io.video import load_video

        _, to_messages, _, doc_id, task, split = request.args
        messages = to_messages(self.task_dict[task][split][doc_id])
        images, videos, text = read_messages(messages, f"{task}, document {doc_id}")
        return images, [load_video(file, frames=self.frames) for file in videos], text


def read_messages(messages: Sequence[Any], where: str) -> tuple[list[Any], list[Any], str]:
    """Images, videos and text of one user turn.

    Args:
        messages: in the chat form of lmms-eval: role, and a content of parts with a type.
        where: names the request in messages.

    Raises:
        InputError: more turns, a part that is neither, or media behind text.
    """
    if len(messages) != 1 or messages[0]["role"] != "user":
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InputError(f"{where}: expected one user turn, got {roles or 'none'}")
    images, videos, words = [], [], []
    for part in messages[0]["content"]:
        kind = part["type"]
        if kind == "text":
            words.append(str(part["text"]))
        elif kind not in ("image", "video"):
            raise InputError(f"{where}: expected images, videos and text, got {kind!r}")
        elif words:
            raise InputError(f"{where}: {kind} behind text; mmtok takes media first, then text")
        elif kind == "image":
            images.append(part["url"])
        else:
            videos.append(part["url"])
    return images, videos, "\n".join(words)


def _beams(options: dict[str, Any]) -> dict[str, Any]:
    """What is handed on of a task's generation options: greedy search, or beams.

    Raises:
        InputError: the task asks for sampling.
    """
    if options.get("do_sample") and float(options.get("temperature") or 1) > 0:
        raise InputError(f"mmtok answers greedily, the task asks for sampling: {options}")
    beams = options.get("num_beams") or 1
    return {"num_beams": beams} if beams > 1 else {}


def _until(text: str, ends: Any) -> str:
    """The text before the first of the strings that end it."""
    for end in [ends] if isinstance(ends, str) else ends or ():
        text = text.split(end)[0] if end else text
    return text


class _Total:
    """Tokens and costs added up over the batches of a call."""

    def __init__(self) -> None:
        self.requests = self.written = 0
        self.sums: dict[str, float] = defaultdict(float)
        self.seconds = self.peak_mib = 0.0

    def add(self, pipe: Any, result: Any) -> list[tuple[int, int]]:
        """Count a batch.

        Returns:
            Per request (tokens of the prompt that reached the language model, tokens of the
            answer, as its tokenizer cuts the text).
        """
        visual = tokens_per_prompt(result.reduction, result.inputs["input_ids"])
        prompt = result.inputs["attention_mask"].sum(dim=1).tolist()
        cut = pipe.lvlm.processor.tokenizer(result.texts, add_special_tokens=False)
        written = [len(ids) for ids in cut["input_ids"]]
        self.requests += len(prompt)
        self.written += sum(written)
        self.sums["visual_tokens"] += sum(seen for seen, _ in visual)
        self.sums["visual_tokens_kept"] += sum(kept for _, kept in visual)
        for stage in result.ledger.stages:
            self.seconds += (stage.device_ms or 0.0) / 1000
            self.peak_mib = max(self.peak_mib, stage.peak_mib or 0.0)
            for name, value in (("flops", stage.flops_analytic), ("ms", stage.device_ms)):
                if value is not None:
                    self.sums[f"{stage.stage}_{name}"] += value
        read = [p - seen + kept for p, (seen, kept) in zip(prompt, visual, strict=True)]
        return list(zip(read, written, strict=True))

    def log(self) -> None:
        """Hand the means per request to lmms-eval."""
        means = {name: value / self.requests for name, value in self.sums.items()}
        log_metrics(
            total_elapsed_time=self.seconds,
            total_gen_tokens=self.written,
            avg_speed=self.written / self.seconds if self.seconds else 0.0,
            additional_metrics={"total_requests": self.requests, "peak_mib": self.peak_mib} | means,
        )
