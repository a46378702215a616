"""LVLM: a vision-language model, its processor, and prompts made for the two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from mmtok.errors import InputError
from mmtok.models.turns import Turn, as_turns, frames_as_images

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from mmtok.io.video import Clip as VideoClip

Clip = Union["VideoClip", Sequence["Image"]]
Prompt = tuple[Sequence["Image"] | None, Sequence[Clip] | None, "str | Sequence[Turn]"]
"""Images, clips (what `load_video` gives, or lists of frames) and the question, or all turns of a
conversation with their places (`mmtok.models.turns`)."""
LIST_FPS = 2.0
"""Frames per second at which lists of frames count as taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LVLM:
    """A vision-language model with what is needed to talk to it.

    Attributes:
        model: a transformers image-text-to-text model, in eval mode, without gradients.
        processor: its `ProcessorMixin`, with a chat template.
        name: what it was loaded by.
        config: the model's configuration.
    """

    model: Any
    processor: Any
    name: str
    config: Any

    @property
    def family(self) -> str:
        """The `model_type` of the configuration, such as "llava" or "qwen2_5_vl"."""
        return str(self.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def inputs(
        self,
        images: Sequence[Image] | None = None,
        text: str | Sequence[str] = "",
        videos: Sequence[Clip] | None = None,
        *,
        fps: float = LIST_FPS,
    ) -> dict[str, Tensor]:
        """Model inputs for one question, or for several about the same images and clips.

        Args:
            images: PIL images, all of them part of each prompt.
            text: the question; a list gives one row per question.
            videos: clips, loaded ones or lists of PIL frames. They follow the images.
            fps: frames per second at which lists of frames were taken; a loaded clip knows its own.

        Returns:
            `input_ids` (B, T) and `attention_mask` (B, T), padded on the left, with the family's
            pixel tensors, on the model's device, floating point in the model's type.

        Raises:
            InputError: the processor cannot make a prompt of this input.
        """
        texts = [text] if isinstance(text, str) else list(text)
        return self.inputs_batch([(images, videos, t) for t in texts], fps=fps)

    def inputs_batch(
        self, prompts: Sequence[Prompt], *, fps: float = LIST_FPS
    ) -> dict[str, Tensor]:
        """Model inputs for prompts that each have their own images, clips and question.

        A family that knows no clips, or none beside images, reads a clip's frames as images.
        Arguments, result and errors as in `inputs`.
        """
        if not prompts:
            raise InputError("a batch needs at least one prompt, got none")
        media = [(list(images or ()), list(videos or ())) for images, videos, _ in prompts]
        if not all(clip for _, clips in media for clip in clips):
            raise InputError("a clip needs at least one frame, got none")
        talks = [
            as_turns(text, len(own), len(clips))
            for (own, clips), (_, _, text) in zip(media, prompts, strict=True)
        ]
        if not self._reads_clips(media):
            for row, (own, clips) in enumerate(media):
                talks[row], pictures = frames_as_images(talks[row], own, map(_frames, clips))
                media[row] = pictures, []
        images = [images for images, _ in media] if any(i for i, _ in media) else None
        clips = [clip for _, clips in media for clip in clips]
        bos = self.processor.tokenizer.bos_token
        texts = [self._rendered(turns) for turns in talks]
        try:
            batch = self.processor(
                text=texts,
                images=images,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                add_special_tokens=not (bos and texts[0].startswith(bos)),
                **_clip_options(clips, fps),
            )
        except ValueError as error:
            uneven = len({len(_frames(clip)) for clip in clips}) > 1
            hint = "; this family needs clips of equal frame counts in a batch" if uneven else ""
            raise InputError(f"{self.name}: {first_line(error)}{hint}") from error
        batch.pop("labels", None)
        return dict(batch.to(self.device, dtype=self.dtype))

    def decode(self, ids: Tensor) -> list[str]:
        """The text of token ids (B, T), special tokens left out, one string a row."""
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def _reads_clips(self, media: list[tuple[list[Image], list[Clip]]]) -> bool:
        """Whether clips go in as clips; where they share a tensor with images, not beside them."""
        video = getattr(self.processor, "video_processor", None)
        if video is None:
            return False
        shared = video.model_input_names[0] in self.processor.image_processor.model_input_names
        if not shared or not any(images for images, _ in media):
            return True
        if any(clips and not images for images, clips in media):
            raise InputError(
                f"{self.name}: a prompt with clips alone cannot share a batch with prompts that "
                "hold images, for this family; run them apart"
            )
        return False

    def _rendered(self, turns: list[Turn]) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.processor.apply_chat_template(turns, add_generation_prompt=True))
        except (TemplateError, ValueError) as error:
            # some want users and assistants in turn, or no system; some processors have no template
            roles = ", ".join(turn["role"] for turn in turns)
            raise InputError(f"{self.name}: {first_line(error)} (roles: {roles})") from error


def _clip_options(clips: list[Clip], fps: float) -> dict[str, Any]:
    if not clips:
        return {}
    if fps <= 0:
        raise InputError(f"fps must be positive, got {fps}")
    from transformers.video_utils import VideoMetadata

    from mmtok.io.video import Clip as VideoClip

    metadata = [
        VideoMetadata(
            total_num_frames=clip.source_frames,
            fps=clip.fps,
            duration=clip.duration_s,
            frames_indices=list(clip.indices),
        )
        if isinstance(clip, VideoClip)
        else VideoMetadata(
            total_num_frames=len(clip),
            fps=fps,
            duration=len(clip) / fps,
            frames_indices=list(range(len(clip))),
        )
        for clip in clips
    ]
    frames = [_frames(clip) for clip in clips]
    return {"videos": frames, "video_metadata": metadata, "do_sample_frames": False}


def _frames(clip: Clip) -> list[Image]:
    return list(clip) if isinstance(clip, Sequence) else clip.frames


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
