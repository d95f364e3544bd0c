"""What a method may say of itself. Every default is "nothing special"; a new one overrides what it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.prompt import Context, Site
from vpt.tower import Tower
from vpt.towers.tokens import readable

__all__ = ["Batches", "Fixed", "Method", "Say", "Seen", "deep", "layers_of", "linear_head"]

Batches = Callable[[], Iterable[Mapping[str, Any]]]
"""Makes a fresh pass over training batches in one order: ``image`` [batch, 3, h, w], ``label`` [batch]."""


@dataclass(frozen=True)
class Say:
    """The frozen text tower: features as it gives them, not normalised.

    classes: the K class names, as the data have them.  encode: features [N, out] of N whole sentences.
    captions: features [K, out] where the classes are captions: whole sentences, which no template is put around.
    """

    classes: tuple[str, ...]
    encode: Callable[[Sequence[str]], Tensor]
    captions: Tensor | None = None

    def __call__(self, template: str) -> Tensor:
        """Features [K, out] of the class names in a template such as "a photo of a {}."."""
        if self.captions is not None:
            return self.captions
        return self.encode([template.replace("{}", readable(name)) for name in self.classes])


@dataclass(frozen=True)
class Seen:
    """What a step computed; features are as the towers give them, not normalised.

    image: [batch, out].  text: of the class names, [K, out], or [batch, K, out] where rows depend on the picture;
        None for a method with a head.
    scale, bias: of logits between pictures and texts.
    frozen: un-prompted image features [batch, out] of the same views, for methods that ``need`` them.
    plain: features [K, out] of captions by the frozen text tower, where an objective asks for them.
    taught: what :meth:`Method.teach` returned.
    read: outputs of rows behind the final norm, [batch, n, width] by slot, for methods that ``read`` them.
    own: the names are of classes that were trained on; a method may tell others otherwise.
    logits: [batch, K].
    """

    image: Tensor
    text: Tensor | None = None
    scale: float = 1.0
    bias: float = 0.0
    frozen: Tensor | None = None
    plain: Tensor | None = None
    taught: Mapping[str, Tensor] = field(default_factory=dict)
    read: Mapping[str, Tensor] = field(default_factory=dict)
    own: bool = True
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def compare(self, image: Tensor, text: Tensor) -> Tensor:
        """Logits [batch, K] of features, which are normalised here: scale * cosine + bias."""
        v, t = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        cosine = v @ t.mT if t.ndim == 2 else (t @ v[..., None])[..., 0]
        return self.scale * cosine + self.bias


class Method(nn.Module):
    """Returns rows by site. Its constructor takes the towers it writes to, by their names ("image", "text"), and, as
    it needs them, "tokens" (the text tower's tokenizer), "classes" (their number) and "scale"; then its options.

    pool: how the image tower pools (:meth:`vpt.tower.Tower.pooling`).
    output: the head reads the tower's "features", the same "normalised" to length 1, or the network's own
        classifier's "logits".
    named: the classes' names, encoded by the text tower, take the place of a head.
    sentence: how a name is said; ``{}`` is the name, ``<ctx*4>`` four rows.
    class_specific: rows at placeholders are class-specific.  per_sample: rows depend on the picture.
    needs: reads un-prompted image features.  reads: slots whose rows' outputs it reads back.
    trains: learns by gradient.
    whole: the file keeps the method's own tensors in place of rows; so it does where ``per_sample`` or ``reads``.
    views: augmented views of each training picture over which the features for :meth:`solve` are averaged, where the
        data are augmented; 0: the picture as for evaluation.
    placeholders: new words that its rows stand for, each with the word that they start from.
    kept: options that the file says in place of those given (what a path named, since files move).
    """

    pool: str = "own"
    output: Literal["features", "normalised", "logits"] = "features"
    named: bool = False
    sentence: str = "a photo of a {}."
    class_specific: bool = False
    per_sample: bool = False
    needs: bool = False
    reads: tuple[str, ...] = ()
    trains: bool = True
    whole: bool = False
    views: int = 0
    placeholders: Mapping[str, str] = {}
    kept: Mapping[str, Any] = {}

    def forward(self, context: Context) -> dict[Site, Tensor]:
        """The rows of this step."""
        return {}

    def learn(self, tower: Tower) -> Tower:
        """The tower to train: the frozen one, or (baselines) a copy that learns. Asked for every tower in use."""
        return tower

    def head(self, width: int, classes: int) -> nn.Linear:
        """The head on what ``output`` names, at its start; for methods without names."""
        return linear_head(width, classes)

    def texts(self, say: Say) -> Tensor | None:
        """Class features [K, out] that depend on no row, such as a mean over templates; None: those of ``sentence``."""
        return None

    def teach(self, say: Say) -> dict[str, Tensor]:
        """What training compares with, or :meth:`solve` starts from; computed once from the frozen text tower."""
        return {}

    def logits(self, seen: Seen) -> Tensor:
        """Logits [batch, K] of a method with names."""
        assert seen.text is not None
        return seen.compare(seen.image, seen.text)

    def losses(self, seen: Seen, task: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
        """The terms of the loss; ``task`` makes the objective's loss of logits."""
        return {"task": task(seen.logits)}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What backward starts from: the sum of the terms."""
        return torch.stack(list(losses.values())).sum()

    def start(self, image: Tower, batches: Batches, head: nn.Linear | None) -> None:
        """Before training: starts that come from the data."""

    def after_epoch(
        self, epoch: int, epochs: int, image: Tower, batches: Batches, head: nn.Linear | None
    ) -> None:
        """After every epoch of training, counted from 1. State belongs into buffers, so that it resumes."""

    def solve(
        self,
        features: Tensor,
        labels: Tensor,
        val: tuple[Tensor, Tensor],
        head: nn.Linear | None,
        taught: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """After training, if there is any: closed forms and searches on stored features [n, out] with labels [n].

        They fill the head or the method's own tensors, and say what they chose. taught: what :meth:`teach` returned.
        Returns NotImplemented where a method has nothing to solve.
        """
        return NotImplemented


class Fixed(Method):
    """Rows as a prompt file holds them."""

    def __init__(self, rows: Mapping[Site, Tensor], **words: Any) -> None:
        super().__init__()
        self.sites = list(rows)
        self.tensors = nn.ParameterList(nn.Parameter(r, requires_grad=False) for r in rows.values())
        for name, value in words.items():
            setattr(self, name, value)

    def forward(self, context: Context) -> dict[Site, Tensor]:
        return dict(zip(self.sites, self.tensors, strict=True))


def deep(first: str, layers: int, tower: Tower) -> list[str]:
    """Stages of a prompt that enters at ``first`` and is replaced before blocks 1..layers-1.

    Raises ValueError for more layers than the tower has.
    """
    if not 1 <= layers <= tower.depth:
        raise ValueError(
            f"layers={layers} does not fit the {tower.name!r} tower, which has {tower.depth}. Give 1 to {tower.depth}."
        )
    return [first, *map(str, range(1, layers))]


def linear_head(width: int, classes: int) -> nn.Linear:
    """VPT's head at its start (arXiv 2203.12119): weight kaiming normal over fan out, bias -log(99)."""
    head = nn.Linear(width, classes)
    nn.init.kaiming_normal_(head.weight, a=0, mode="fan_out")
    nn.init.constant_(head.bias, -math.log(99))
    return head


def layers_of(image: Tower, layers: str) -> list[int]:
    """Block numbers that a range names: "first", "all", "last-third", "4..11" (both included), "0,3,5", "7".

    Raises ValueError for a range outside the tower, with its depth.
    """
    depth = image.depth
    if image.closed:
        image.check([Site(image.name, "0", "prefix")])  # raises, with the reason
    named = {"first": range(1), "all": range(depth), "last-third": range(depth - max(depth // 3, 1), depth)}
    try:
        if layers in named:
            chosen = list(named[layers])
        elif ".." in layers:
            low, high = layers.split("..")
            chosen = list(range(int(low), int(high) + 1))
        else:
            chosen = sorted({int(n) for n in layers.split(",")})
    except ValueError:
        chosen = []
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < depth:
        raise ValueError(
            f"layers={layers!r} names no blocks of a tower {depth} deep. Write first, all, last-third, a "
            f"range such as 0..{depth - 1} (both included), or a list such as 0,{depth - 1}."
        )
    return chosen
