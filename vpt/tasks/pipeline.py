"""A prompt set bound to a diffusion pipeline: arguments for its call, and pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import reduce
from typing import Any

import torch

from vpt.methods.baselines.dreambooth_lora import adapted
from vpt.prompt import Rows, Site
from vpt.promptset import PromptSet, join
from vpt.tasks.bound import Bound
from vpt.tasks.device import autocast
from vpt.tasks.draw import Settings, draw_batch, settings_of
from vpt.tasks.learner import build_method
from vpt.towers.diffusion import Diffusion
from vpt.towers.layered import layered, sets_of

__all__ = ["TunedPipeline"]

BATCH = 8  # pictures that an accelerator draws at a time, where they fit


class TunedPipeline(Bound):
    """Rows for the text encoders and the context of a pipeline; ``pipe(**tuned.embeds("a <my-mug> in the rain"))``."""

    backbone: Diffusion

    def __init__(self, backbone: Diffusion, prompts: PromptSet, *, precision: str = "32-true") -> None:
        super().__init__(backbone, prompts, precision=precision)
        self.pipe = _adapted(backbone, prompts) if prompts.weights else backbone.pipe

    @classmethod
    def joined(
        cls, backbone: Diffusion, sets: Sequence[PromptSet], *, precision: str = "32-true"
    ) -> TunedPipeline:
        """Several sets for one sentence: "a <my-mug> beside <my-cat>".

        Raises ValueError for none, for sets of another backbone, with both fingerprints, and for two that write to one
        place, by its name.
        """
        if not sets:
            raise ValueError("which prompt sets? Give at least one.")
        written: set[str] = set()
        for s in sets:
            places = {_place(site) for site in s.rows}
            if twice := sorted(written & places):
                raise ValueError(
                    f"two of these prompt sets hold rows for {twice[0]}, and one set would be lost. Leave one out, or "
                    "call its placeholder otherwise: vpt.promptset.renamed(SET, OLD, NEW)."
                )
            written |= places
            s.check(backbone.towers.values())
        if len(sets) == 1:
            return cls(backbone, sets[0], precision=precision)
        if sum(bool(s.weights) for s in sets) > 1:
            raise ValueError("two of these files change the network, each on its own. Give one of them.")
        if max(sets_of(s.rows) for s in sets) > 1 and any(place.startswith("context/") for place in written):
            raise ValueError(
                "rows of P+ give each cross-attention a context of its own, and rows of the context hold for one. Use "
                "either."
            )
        label = backbone.label()  # all were just found to fit it, whichever of its like they were learned on
        whole = reduce(join, (replace(s, about={**s.about, "backbone": label}) for s in sets))
        about = {**whole.about, "parents": [s.hash() for s in sets]}
        if changed := next((s for s in sets if s.weights), None):  # the network is made as its method says
            about["method"] = changed.about["method"]
        whole = replace(whole, about=about)
        return cls(backbone, whole, precision=precision)

    @property
    def words(self) -> dict[str, str]:
        """Placeholders, each with the word that it started from, which encoders without rows for it read."""
        return dict(self.prompts.about.get("placeholders") or {})

    def rows_at(self, strength: float = 1.0) -> Rows:
        """The rows, on the device of the pipeline; multiplied by ``strength``."""
        return {site: (r * strength).to(self.device) for site, r in self.rows.items()}

    def embeds(
        self,
        prompt: str | Sequence[str],
        pipe: Any = None,
        *,
        negative: str | Sequence[str] | None = None,
        strength: float = 1.0,
        guided: bool = True,
    ) -> dict[str, Any]:
        """Keyword arguments for a call of this pipeline, or of another of its family (image-to-image, inpainting,
        ControlNet), that draw the prompt with the rows in it. For P+ call it within :meth:`layers`.

        Raises ValueError for a placeholder without rows; warns where a prompt is longer than the context.
        """
        with torch.no_grad():
            return self.backbone.embeds(
                prompt, self.rows_at(strength), negative=negative, words=self.words, pipe=pipe, guided=guided
            )

    def layers(self, pipe: Any = None) -> AbstractContextManager[None]:
        """While it is open, rows of P+ reach their own cross-attentions; other rows need it not."""
        return layered(_network(self.pipe if pipe is None else pipe), sets_of(self.rows))

    def settings(
        self,
        *,
        negative: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        frames: int | None = None,
        pipe: Any = None,
    ) -> Settings:
        """What :meth:`drawing` calls the pipeline with beside the prompt, the pipeline's own defaults filled in.

        Raises ValueError for what this pipeline does not take, and for a negative side that would do nothing.
        """
        learned = any(site.slot == "negative" for site in self.rows)
        return settings_of(
            self.backbone,
            self.pipe if pipe is None else pipe,
            negative="" if negative is None and learned else negative,
            steps=steps,
            guidance=guidance,
            size=size,
            frames=frames,
        )

    def draw(self, prompt: str | Sequence[str], **how: Any) -> list[Any]:
        """Pictures, or videos as lists of frames, of every prompt with every seed; see :meth:`drawing`."""
        return list(self.drawing(prompt, **how))

    def plain(self, prompt: str | Sequence[str], *, word: str = "", **how: Any) -> list[Any]:
        """What :meth:`draw` would give without the rows: placeholders are said by their words, or all by ``word``."""
        return self.unprompted(word).draw(prompt, **how)

    def unprompted(self, word: str = "") -> TunedPipeline:
        """The pipeline as it came, which says placeholders by their words, or all of them by ``word``.

        Raises ValueError for a placeholder whose word is not known.
        """
        slots = self.words.keys() | {site.slot for site in self.rows if site.slot.startswith("<")}
        if self.prompts.weights:  # its words are rare ones, which the network learned to read
            word = word or str(self.prompts.about["method"]["options"].get("word", ""))
        words = {slot: word or self.words.get(slot, "") for slot in sorted(slots)}
        if unsaid := [slot for slot, said in words.items() if not said]:
            raise ValueError(
                f"the prompt set does not say what {unsaid[0]} is, so it cannot be said without its rows. Give a word, "
                "such as mug."
            )
        return type(self)(self.backbone, PromptSet(about={"placeholders": words}), precision=self.precision)

    def drawing(
        self,
        prompt: str | Sequence[str],
        *,
        seeds: Sequence[int] = (1,),
        negative: str | None = None,
        strength: float = 1.0,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        frames: int | None = None,
        batch_size: int = 0,
        progress: Callable[[int, int], object] | None = None,
        pipe: Any = None,
        call: Mapping[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Pictures (PIL), one by one as they are drawn: the first prompt with every seed, then the next.

        The picture of a seed is the one that the pipeline's call draws with ``torch.Generator().manual_seed(seed)``,
        whatever is drawn beside it, up to rounding where a batch holds several.
        strength: what the rows are multiplied by.  steps, guidance, frames: None: the pipeline's own.
        size: height and width in pixels, or both in one number; None: those that the network was trained on.
        guidance: the scale of classifier-free guidance where the family has it; where it has none, its own input.
        batch_size: at a time; 0: one on a processor, else as many as fit, 8 at most.
        progress: told the steps of the present batch that are done, and how many it has.
        pipe: another pipeline of the family, such as image-to-image.  call: more for its call.
        Raises ValueError as :meth:`settings` and :meth:`embeds` do, RuntimeError where not even one picture fits.
        """
        if strength != 1 and not self.rows:
            raise ValueError(
                f"strength={strength} multiplies rows, and this prompt set has none. Leave it out."
            )
        pipe = self.pipe if pipe is None else self._own(pipe)
        how = self.settings(
            negative=negative, steps=steps, guidance=guidance, size=size, frames=frames, pipe=pipe
        )
        jobs = [(p, s) for p in ([prompt] if isinstance(prompt, str) else prompt) for s in seeds]
        room = batch_size or (1 if self.device.type == "cpu" or self.backbone.family.video else BATCH)
        done = 0
        while done < len(jobs):
            some = jobs[done : done + room]
            found = None
            try:
                with autocast(self.device, self.precision), self.layers(pipe):
                    told = self.embeds(
                        [text for text, _ in some],
                        pipe,
                        negative=how.negative,
                        strength=strength,
                        guided=how.guided,
                    )
                    found = draw_batch(pipe, told, [s for _, s in some], how, progress, call or {})
            except torch.OutOfMemoryError as error:
                if room == 1:
                    raise RuntimeError(
                        f"one picture does not fit the memory ({str(error).splitlines()[0]}). Ask for a smaller size, "
                        "or load the pipeline with dtype=float16 or quantize=."
                    ) from error
                room = (room + 1) // 2
            if found is None:  # out of the handler, which holds the tensors that did not fit
                torch.cuda.empty_cache()
                continue
            yield from found
            done += len(some)

    def _own(self, pipe: Any) -> Any:
        """Another pipeline with the network that a baseline learned."""
        if not self.prompts.weights:
            return pipe
        pipe = copy.copy(pipe)
        setattr(pipe, "unet" if hasattr(pipe, "unet") else "transformer", _network(self.pipe))
        return pipe


def _network(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def _adapted(backbone: Diffusion, prompts: PromptSet) -> Any:
    """A copy of the pipeline whose network is a baseline's."""
    made = prompts.about["method"]
    method: Any = build_method(made["name"], backbone, made["options"])
    return adapted(backbone, method, prompts.weights)


def _place(site: Site) -> str:
    """What two sets may not both write to: a placeholder, whatever its encoder, or a slot. Small letters: some
    pipelines write prompts so."""
    return site.slot.lower() if site.slot.startswith("<") else f"{site.tower}/{site.slot}"
