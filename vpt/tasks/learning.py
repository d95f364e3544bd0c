"""What every learner has: a method that learns, what a checkpoint keeps of it, and the file that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vpt.encode import first
from vpt.methods.method import Method
from vpt.prompt import Context, Site
from vpt.promptset import PromptSet
from vpt.tower import Stream, Tower

__all__ = ["Learning"]


class Learning(nn.Module):
    """A method on frozen towers; those that learn are copies, and submodules.

    towers: that it runs, the one of pictures first.  frozen: the same without what learns.
    cut: sentences that were longer than the context, and lost their last words.
    """

    method: Method
    network: nn.ModuleDict
    head: nn.Linear | None
    towers: tuple[Tower, Tower | None]
    frozen: Sequence[Tower | None]
    needs: bool

    def __init__(self) -> None:
        super().__init__()
        self.cut: set[str] = set()
        # what follows from names and frozen weights, or from rows while not training
        self._kept: dict[str, Any] = {}

    @property
    def tower(self) -> Tower:
        """The image tower that this learner runs: the frozen one, or its own copy."""
        return self.towers[0]

    def context(self, batch: int = 1, frozen: Tensor | None = None) -> Context:
        """What the method may know."""
        return Context(batch)

    @property
    def sites(self) -> set[Site]:
        """Where the method writes; asked once, without drawing random numbers from the run's stream."""
        if "sites" not in self._kept:
            with torch.no_grad(), torch.random.fork_rng():
                self._kept["sites"] = set(self.method(self.context()))
        return self._kept["sites"]

    @property
    def low(self) -> str:
        """The lowest stage of the image tower that is written to or learns; below it nothing changes in training."""
        return first(self.tower, self.sites)

    def busiest(self, inputs: Tensor | Stream) -> tuple[Tower | None, Tensor]:
        """The tower whose attention takes most of a step, with what it reads; None: the library chooses for itself."""
        return None, inputs.x if isinstance(inputs, Stream) else inputs

    def layout(self) -> str:
        """How sentences are read, in a sentence; empty where none are."""
        return ""

    def label(self) -> dict[str, Any]:
        """What the file says beside its rows, so that they can be used again."""
        return {}

    def train(self, mode: bool = True) -> Self:
        """Rows and head follow ``mode``; networks stay in eval mode, as they were pretrained to be used."""
        super().train(mode)
        self.network.eval()
        return self

    def learns(self) -> str:
        """How many numbers learn where, in words."""
        counts: dict[str, int] = {}
        for name, p in self.named_parameters():
            if p.requires_grad:
                room = {"head": "head", "network": "network"}.get(name.split(".")[0], "rows")
                counts[room] = counts.get(room, 0) + p.numel()
        return ", ".join(f"{room} {n:,}" for room, n in counts.items()) or "nothing by gradient"

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
        """Rows as they enter (projections folded), head and, for a baseline, the weights that learned.

        A method whose rows depend on the picture, or that reads them back, is kept as a whole, as one that says so.
        """
        training = self.training
        self.eval()
        method = self.method
        whole = method.whole or method.per_sample or bool(method.reads) or not method.trains
        rows: dict[Site, Tensor] = {}
        with torch.no_grad():
            if not whole:
                rows = {site: r.detach().clone() for site, r in self.method(self.context()).items()}
        self.train(training)
        state = {k: v.detach().clone() for k, v in self.method.state_dict().items()} if whole else {}
        head = (
            {k: v.detach().clone() for k, v in self.head.state_dict().items()}
            if self.head is not None
            else {}
        )
        weights = {
            k.removeprefix("network.").removeprefix("image."): v.detach().clone()
            for k, v in self.learned().items()
            if k.startswith("network.")
        }
        return PromptSet(rows, head, state, weights, {**about, **self.label()})
