"""Rows found without gradients: CMA-ES (arXiv 1604.00772, by the library cma) on a linear map of the rows.

Of few numbers all are searched; of many, a random projection, as black-box tuning does (arXiv 2201.03514, section 3.2).
Every candidate draws the same prompts from the same seeds, so that candidates can be compared. The checkpoint is a log
of what was measured, and a stopped search is gone on with by telling it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader

from vpt.data.order import seed_of
from vpt.data.prompts import PromptData
from vpt.objectives.reward import Drawer, Reward
from vpt.promptset import write_atomically
from vpt.tasks.device import autocast
from vpt.tasks.learning import Learning
from vpt.tasks.task import Recipe

__all__ = ["Evolved", "Reach", "search"]

FEW = 256  # numbers that are searched as they are; a step of CMA-ES costs their square
PROJECTED = 64  # directions where there are more

Bar = Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]]


class Reach:
    """A linear map from what is searched [d] to all numbers that learn [N]; 0 is where they start.

    One unit is the root of the mean square of the start's numbers. dimension: d; 0: all of few, else 64.
    """

    def __init__(self, start: Tensor, dimension: int, seed: int) -> None:
        count = len(start)
        self.start, self.unit = start, max(float(start.square().mean().sqrt()), 1e-6)
        self.size = dimension or (count if count <= FEW else PROJECTED)
        self.directions: Tensor | None = None
        if self.size < count:
            stream = torch.Generator().manual_seed(seed_of("reach", seed))
            self.directions = torch.randn(count, self.size, generator=stream, dtype=start.dtype)
            self.directions /= math.sqrt(self.size)
        self.size = min(self.size, count)

    def __call__(self, z: Any) -> Tensor:
        """The numbers [N] that z [d] stands for."""
        step = torch.as_tensor(z, dtype=self.start.dtype)
        return self.start + self.unit * (step if self.directions is None else self.directions @ step)


@dataclass
class Evolved:
    """How a search went: a line a generation, and why its result is what it is."""

    history: list[dict[str, float]] = field(default_factory=list)
    why: str = ""

    def best(self) -> tuple[int, str]:
        """Of one learner, as :meth:`vpt.tasks.task.PromptTask.best` says it."""
        return 0, self.why


def search(
    learner: Learning,
    objective: Reward,
    data: PromptData,
    recipe: Recipe,
    *,
    sigma: float,
    log: Path | None,
    precision: str,
    bar: Bar,
) -> Evolved:
    """Leave the best rows of ``recipe.epochs`` generations in the learner; those it starts with if none is better.

    log: the file of what was measured, which is gone on from where it is there.
    Raises ValueError for a log of another search.
    """
    import cma

    learner.eval()
    learned = [p for p in learner.parameters() if p.requires_grad]
    device = learned[0].device
    reach = Reach(parameters_to_vector(learned).detach().cpu().double(), recipe.dimension, data.seed)

    def worth(z: Any) -> float:
        vector_to_parameters(reach(z).to(device, learned[0].dtype), learned)
        return _mean(learner, objective, data, precision)

    numbers = torch.Generator().manual_seed(seed_of("cma", data.seed))
    options: dict[str, Any] = {
        "verbose": -9,
        "seed": math.nan,  # its own stream, not numpy's global one
        "randn": lambda *shape: torch.randn(shape, generator=numbers, dtype=torch.float64).numpy(),
        **({"popsize": recipe.population} if recipe.population else {}),
    }
    es = cma.CMAEvolutionStrategy([0.0] * reach.size, sigma, options)
    told = _told(log, {"cma": cma.__version__, "searched": reach.size, "population": es.popsize})
    size, evolved = es.popsize, Evolved()
    known = len(told["values"])
    ticks = iter(bar("searching")(range(max(0, recipe.epochs - known) * size + 1)))
    next(ticks, None)
    if "start" not in told:
        told["start"] = worth([0.0] * reach.size)
    best, chosen, from_ = told["start"], [0.0] * reach.size, -1
    for generation in range(recipe.epochs):
        asked = es.ask()
        if generation >= known:
            values = []
            for z in asked:
                values.append(worth(z))
                next(ticks, None)
            told["values"].append(values)
            _write(log, told)
        values = told["values"][generation]
        es.tell(asked, [-value for value in values])
        top = max(range(size), key=values.__getitem__)
        if values[top] > best:
            best, chosen, from_ = values[top], list(asked[top]), generation
        mean = sum(values) / size
        evolved.history.append({"epoch": float(generation), "train/reward": best, "train/mean": mean})
    next(ticks, None)
    vector_to_parameters(reach(chosen).to(device, learned[0].dtype), learned)
    where = f"of generation {from_ + 1}" if from_ >= 0 else "of the start, which no candidate surpassed"
    evolved.why = (
        f"the rows {where} have the best mean reward on the training prompts: {best:.4f}, {told['start']:.4f} at the "
        f"start ({reach.size} of {len(reach.start):,} numbers searched, {size} candidates a generation)"
    )
    return evolved


@torch.inference_mode()
def _mean(learner: Learning, objective: Reward, data: PromptData, precision: str) -> float:
    """The mean reward of the training prompts, each from its first seed."""
    found = []
    with autocast(learner.tower.device, precision):
        for batch in DataLoader(data.pictures("train"), data.batch_size):
            prompts = [objective.prompts[i] for i in batch["index"].tolist()]
            found.append(objective.score(cast(Drawer, learner), batch["image"], prompts, last=0))
    return float(torch.cat(found).double().mean())


def _told(log: Path | None, label: dict[str, Any]) -> dict[str, Any]:
    """What a log says, or an empty one."""
    if log is None or not log.is_file():
        return {**label, "values": []}
    try:
        found = json.loads(log.read_text())
        values = found["values"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{log} is no log of a search ({error}). Start afresh with resume=false, or choose another out."
        ) from error
    other = [k for k, v in label.items() if found.get(k) != v]
    if other or any(len(line) != label["population"] for line in values):
        raise ValueError(
            f"{log} is of another search: {', '.join(f'{k} {found.get(k)}, now {label[k]}' for k in other)}. Start "
            "afresh with resume=false, or choose another out."
        )
    return dict(found)


def _write(log: Path | None, told: dict[str, Any]) -> None:
    if log is not None:
        write_atomically(log, json.dumps(told).encode())
