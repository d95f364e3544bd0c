"""A prompt set bound to a loaded backbone: predict, score, save."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vpt.data.images import decode
from vpt.encode import encode
from vpt.methods.method import Fixed
from vpt.objectives.classify import Classify
from vpt.promptset import PromptSet
from vpt.tasks.bound import Bound
from vpt.tasks.device import autocast, resolve_device
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.store import inputs_of
from vpt.text import Sentence, encode_text, lay
from vpt.tower import Stream, Tower
from vpt.towers.backbone import Backbone
from vpt.towers.load import load
from vpt.towers.tokens import PLACEHOLDER, readable

__all__ = ["Evaluation", "Prediction", "Tuned", "load_prompts"]

Picture = str | os.PathLike[str] | Image.Image


class Prediction(NamedTuple):
    """picture: the path as given ("" for a picture in memory).  label: most probable class.  probability: in [0, 1].
    scores: the most probable classes with their probabilities, best first."""

    picture: str
    label: str
    probability: float
    scores: dict[str, float]


class Evaluation(NamedTuple):
    """metrics: by name.  scores: [N, K].  labels: [N] or [N, K].  keys: of the pictures.  confusion: [K true, K], or
    None for several labels a picture."""

    metrics: dict[str, float]
    scores: Tensor
    labels: Tensor
    keys: list[str]
    confusion: Tensor | None


class Tuned(Bound):
    """What training leaves: rows (or a baseline's weights) and a head, or class names, on the backbone they were
    learned on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.prompts.classes

    @cached_property
    def learner(self) -> Learner:
        """What predicts: the rows as they are, or the method that they came from where it is kept as a whole."""
        prompts, about = self.prompts, self.prompts.about
        head = about.get("head") or {}
        baseline = about.get("kind") == "baseline" and not prompts.rows  # random rows are kept as rows
        whole = baseline or prompts.method or prompts.weights
        if whole:
            made = about["method"]
            method = build_method(made["name"], self.backbone, made["options"], classes=len(self.classes))
            method.load_state_dict(prompts.method, strict=bool(prompts.method))
        else:
            words = {"pool": about.get("pool", "own"), "output": head.get("reads", "features")}
            names = about.get("names")
            if names is None and about.get("placeholders"):  # a word that a diffusion pipeline learned
                names = {"sentence": "{}", "class_specific": False}
            words |= {"named": True, **names} if names else {}
            method = Fixed(prompts.rows, **words)
        own = set(self.classes) <= set(about.get("trained_classes", self.classes))
        captions = about.get("task") in ("retrieve", "denoise")
        learner = Learner(method, self.backbone, self.classes or [""], own=own, captions=captions)
        if learner.head is not None and prompts.head:
            learner.head.load_state_dict(prompts.head)
        self._load(learner, prompts.weights)
        return learner.eval().requires_grad_(False).to(self.device)

    def _load(self, learner: Learner, weights: Mapping[str, Tensor]) -> None:
        """A baseline's own weights; raises ValueError where they do not fit."""
        if not weights:
            return
        named = {k if k.startswith("text.") else f"image.{k}": v for k, v in weights.items()}
        if wrong := learner.network.load_state_dict(named, strict=False).unexpected_keys:
            raise ValueError(f"these baseline weights do not fit {self.backbone.name}: it has no {wrong[0]}.")

    @property
    def tower(self) -> Tower:
        """The image tower that predicts: the frozen one, or for a baseline its own copy with the learned weights."""
        return self.learner.tower

    @torch.inference_mode()
    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Features [batch, out] of preprocessed pictures [batch, 3, height, width], with the rows written.

        The call of open_clip's models: ``normalize`` gives unit length.
        """
        with autocast(self.device, self.precision):
            features = encode(self.tower, images.to(self.device), self._rows("image"))
        return F.normalize(features, dim=-1) if normalize else features

    @torch.inference_mode()
    def encode_text(self, text: str | Sequence[str] | Tensor, normalize: bool = False) -> Tensor:
        """Features [N, out] of strings, or of ids [N, context] from the backbone's tokenizer.

        Strings are class names, or captions for a prompt set that was trained on these: each is said in the prompt's
        sentence, with its rows. A string that holds a placeholder (such as ``"<ctx*4> {}."`` with a name put in, or
        ``"a photo of <my-mug>"``) is taken as it is. Ids are encoded without rows.
        """
        with autocast(self.device, self.precision):
            features = self._texts(text)
        return F.normalize(features, dim=-1) if normalize else features

    def _texts(self, text: str | Sequence[str] | Tensor) -> Tensor:
        tower = self.learner.towers[1] or self.backbone.text  # a baseline's own copy, where it learned
        if isinstance(text, Tensor):
            return encode(tower, text.to(self.device))
        names = [text] if isinstance(text, str) else list(text)
        own = self._own_texts(names)
        return (
            encode_text(tower, lay(tower, self.sentences(names)), self._rows("text")) if own is None else own
        )

    def sentences(self, texts: Sequence[str]) -> list[Sentence]:
        """What :meth:`encode_text` reads for these strings."""
        speech, tokens = self.learner.speech, self.backbone.tokens
        if speech.captions:
            return speech.sentences(texts)
        sentence = speech.sentence
        whole = [t if PLACEHOLDER.search(t) else sentence.replace("{}", readable(t)) for t in texts]
        return [tokens.sentence(t) for t in whole]

    def _own_texts(self, names: Sequence[str]) -> Tensor | None:
        """Features of class names by a method that has its own way to say them (a mean over templates)."""
        if not self.learner.method.named or any(PLACEHOLDER.search(name) for name in names):
            return None
        return self.learner.method.texts(self.learner.say(names))

    def _rows(self, tower: str) -> dict[Any, Tensor]:
        rows = self.learner.method(self.learner.context())
        own = {site: r for site, r in rows.items() if site.tower == tower}
        if tower == "text" and own and (self.learner.method.per_sample or self.learner.method.class_specific):
            raise ValueError(
                "these text rows belong to a picture or to one class each, so other strings cannot be said with them."
            )
        return own

    @property
    def tied(self) -> str:
        """What belongs to its classes alone, in words; empty where other class names can take the place of these."""
        method = self.learner.method
        if not method.named:
            return "a head"
        if not method.class_specific:
            return ""
        rows = any(site.tower == "text" for site in method(self.learner.context()))
        return "class-specific rows" if rows else "a cache of pictures"

    def with_classes(self, classes: Sequence[str], *, repeated: bool = False) -> Tuned:
        """The same prompt for another list of class names; repeated: two classes may have one name, as in ImageNet.

        Raises ValueError for a head or class-specific rows, which belong to the classes they were trained for.
        """
        if self.tied:
            raise ValueError(
                f"this prompt set has {self.tied} for its {len(self.classes)} classes and cannot name others. Train a "
                "method that says names, such as coop or maple."
            )
        if not classes or (len(set(classes)) < len(classes) and not repeated):
            raise ValueError(f"class names must differ and there must be some, got {list(classes)}.")
        kept = {k: v for k, v in self.prompts.about.items() if k != "metrics"}
        trained = kept.get("trained_classes", list(self.classes))
        told = {**kept, "classes": list(classes), "trained_classes": trained}
        prompts = replace(self.prompts, about=told)
        return Tuned(self.backbone, prompts, precision=self.precision)

    @torch.inference_mode()
    def logits(self, images: Tensor | Stream) -> Tensor:
        """Class logits [batch, K] of preprocessed pictures, or of streams that stopped below the first rows."""
        with autocast(self.device, self.precision):
            return self.learner(images.to(self.device)).float()

    @property
    def objective(self) -> Classify:
        """The objective that the head was trained for."""
        return Classify(self.classes, multilabel=bool(self.prompts.about.get("multilabel")))

    def predict(
        self, pictures: Picture | Sequence[Picture], *, batch_size: int = 32, top: int = 5
    ) -> list[Prediction]:
        """Classes of picture files or PIL pictures, in their order. Raises UnreadableImage with the file's name."""
        given = [pictures] if isinstance(pictures, (str, os.PathLike, Image.Image)) else list(pictures)
        preprocess, found = self.backbone.preprocess, []
        for start in range(0, len(given), batch_size):
            part = given[start : start + batch_size]
            scores = self.objective.scores(
                self.logits(torch.stack([preprocess(decode(p)) for p in part]))
            ).cpu()
            best = scores.topk(min(top, scores.shape[1]), dim=1)
            for picture, values, places in zip(
                part, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                named = {self.classes[i]: v for i, v in zip(places, values, strict=True)}
                path = "" if isinstance(picture, Image.Image) else str(picture)
                found.append(Prediction(path, self.classes[places[0]], values[0], named))
        return found

    def evaluate(self, batches: Iterable[Mapping[str, Any]], frame: Stream | None = None) -> Evaluation:
        """Metrics over batches of {"image", "label", "key"}; synchronised when several processes share them.

        frame: the rest of stored streams, where batches hold these in place of pictures (:mod:`vpt.tasks.store`).
        """
        objective = self.objective
        metrics = objective.metric()
        scores, labels, keys = [], [], []
        for batch in batches:
            scores.append(objective.scores(self.logits(inputs_of(batch, frame))).cpu())
            labels.append(objective.targets(batch))
            keys += list(batch["key"])
            metrics.update(scores[-1], labels[-1])
        found = {name: float(value) for name, value in metrics.compute().items()}
        every, truth = torch.cat(scores), torch.cat(labels)
        return Evaluation(found, every, truth, keys, objective.confusion(every, truth))


def load_prompts(
    path: str | os.PathLike[str], backbone: Backbone | None = None, *, device: str = "auto"
) -> Any:
    """Bind a prompt file to its backbone, loaded by the name in the file where none is given: a :class:`Tuned`, or a
    ``TunedPipeline`` where the backbone draws pictures.

    Raises BadPromptFile for a damaged file, ValueError for another backbone, with both values.
    """
    prompts = PromptSet.load(path)
    if backbone is None:
        made = prompts.about.get("backbone") or {}
        options = {k: made[k] for k in ("pretrained", "weights", "size", "quantize", "dtype") if k in made}
        backbone = load(made["name"], **options)
    prompts.check(backbone.towers.values(), None if backbone.draws else backbone.preprocessing)
    if backbone.draws:
        from vpt.tasks.pipeline import TunedPipeline  # diffusers takes seconds to import

        diffusion = cast(Any, backbone)
        if "quantize" not in diffusion.options:  # such weights are where they were quantised
            diffusion.pipe.to(resolve_device(device))
        return TunedPipeline(diffusion, prompts)
    for tower in backbone.towers.values():
        tower.model.to(resolve_device(device))
    return Tuned(backbone, prompts)
