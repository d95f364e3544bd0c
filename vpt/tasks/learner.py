"""One method with its head on a tower: what one learning rate trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpt.encode import advance, encode, first
from vpt.methods import METHODS, method_class
from vpt.methods.method import Method
from vpt.prompt import Context, Rows
from vpt.promptset import PromptSet
from vpt.tower import Stream, Tower

__all__ = ["Learner", "build_method", "logits_of"]


def build_method(name: str, towers: Mapping[str, Tower], options: Mapping[str, Any] | None = None) -> Method:
    """The method of that name on these towers; raises ValueError for an option that it does not have."""
    make = method_class(name)
    known = inspect.signature(make).parameters
    given = {**METHODS[name].options, **(options or {})}
    takes = [p for p in known if p not in towers]
    if wrong := [k for k in given if k not in takes]:
        raise ValueError(
            f"method {name} has no option {', '.join(wrong)}. It has {', '.join(takes) or 'none'}."
        )
    return make(**{p: towers[p] for p in known if p in towers}, **given)


def logits_of(tower: Tower, inputs: Tensor | Stream, rows: Rows, output: str) -> Tensor:
    """What a head reads: the pooled "features", or the "logits" of the network's own classifier."""
    if output == "features":
        return encode(tower, inputs, rows)
    assert tower.logits is not None
    return tower.logits(advance(tower, inputs, rows, "normed"))


class Learner(nn.Module):
    """Logits of pictures, or of a stream that stopped at ``low``.

    zero_head: start the head at 0, where few pictures at a small rate find it; VPT's published start is random and
    needs the published rates to be washed out (16 a class of Caltech101, linear probe by AdamW: 68% against 81%).
    The frozen tower is no submodule, so checkpoints and DDP do not see it; a copy that learns is.
    """

    def __init__(self, method: Method, image: Tower, classes: int, *, zero_head: bool = True) -> None:
        super().__init__()
        self.method = method
        self.towers = (
            method.learn(image).pooling(method.pool),
        )  # in a tuple: nn.Module registers modules only
        if self.tower.learns_from is not None:
            self.network = self.tower.model
        if method.output == "logits" and self.tower.logits is None:
            raise ValueError(
                f"{type(method).__name__} needs a network with its own classifier; this one has none."
            )
        self.head = method.head(self.width(), classes)
        if zero_head and method.output == "features":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @property
    def tower(self) -> Tower:
        """The tower that this learner runs: the frozen one, or its own copy."""
        return self.towers[0]

    def width(self) -> int:
        """Channels that the head reads."""
        return self.tower.out if self.method.output == "features" else int(self.tower.model.num_classes)  # type: ignore[arg-type]

    @property
    def low(self) -> str:
        """The lowest stage that is written to or learns; below it nothing changes during training."""
        with torch.no_grad():
            stage = first(self.tower, self.method(Context(1)))
        output_low = "normed" if self.method.output == "logits" and stage == self.tower.stages[-1] else stage
        return output_low

    def forward(self, inputs: Tensor | Stream) -> Tensor:
        """Logits [batch, K]."""
        batch = len(inputs.x if isinstance(inputs, Stream) else inputs)
        rows = self.method(Context(batch))
        return self.head(logits_of(self.tower, inputs, rows, self.method.output).float())

    def train(self, mode: bool = True) -> Learner:
        """Rows and head follow ``mode``; a network that learns stays in eval mode, as it was pretrained to be used."""
        super().train(mode)
        if self.tower.learns_from is not None:
            self.network.eval()
        return self

    def learned(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: parameters that learn, and the method's and head's own state."""
        grads = {name for name, p in self.named_parameters() if p.requires_grad}
        return {k: v for k, v in self.state_dict().items() if k in grads or not k.startswith("network.")}

    def groups(self, lr: float, head_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups: decay on rows and matrices; none on the head's bias, nor on a network's vectors."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, p in self.named_parameters():
            if p.requires_grad:
                bare = name == "head.bias" or (name.startswith("network.") and p.ndim < 2)
                groups.setdefault((name.startswith("head."), bare), []).append(p)
        return [
            {"params": ps, "lr": head_lr if head else lr, "weight_decay": 0.0 if bare else weight_decay}
            for (head, bare), ps in groups.items()
        ]

    def export(self, about: Mapping[str, Any]) -> PromptSet:
        """Rows as they enter (projections folded), head and, for a baseline, the weights that learned."""
        training = self.training
        self.eval()
        with torch.no_grad():
            rows = {site: r.detach().clone() for site, r in self.method(Context(1)).items()}
        self.train(training)
        head = {k: v.detach().clone() for k, v in self.head.state_dict().items()}
        weights = {
            k.removeprefix("network."): v.detach().clone()
            for k, v in self.learned().items()
            if k.startswith("network.")
        }
        label = {"head": {"reads": self.method.output}, "pool": self.method.pool}
        return PromptSet(rows, head, weights=weights, about={**about, **label})
