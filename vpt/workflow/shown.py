"""Which metrics tables show of each objective, and what people call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vpt.workflow.runs import Result

__all__ = ["SHOWN", "Column", "Shown", "shown_of"]


@dataclass(frozen=True)
class Column:
    """A column beside the headline.

    key: its name in CSV.  of: what a run says there, in [0, 1]; None where it says nothing.  signed: a difference.
    """

    key: str
    title: str
    of: Callable[[Result], float | None]
    signed: bool = False


@dataclass(frozen=True)
class Shown:
    """What is shown of one objective.

    headlines: the metric that ranks is the first of these that was measured.  title, meaning: of its column.
    space: among what a test picture finds its own.
    base, based: what others are held against, in a word and in a few.  columns: beside the headline.
    words: metrics in the order and the words of a table of one run; {}: as they come.
    """

    headlines: tuple[str, ...]
    title: str
    meaning: str
    space: str
    base: str
    based: str
    columns: tuple[Column, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    def headline(self, metrics: Mapping[str, float]) -> str:
        """The metric that ranks. Raises ValueError where none was measured."""
        for name in self.headlines:
            if name in metrics:
                return name
        raise ValueError(f"these results have no {' or '.join(self.headlines)}, only {', '.join(metrics)}.")


def _test(name: str) -> Callable[[Result], float | None]:
    return lambda run: run.metrics.get(name)


def _general(run: Result) -> float | None:
    return run.beside.get("general", {}).get("mean_recall")


def _change(run: Result) -> float | None:
    after, before = _general(run), run.before.get("general", {}).get("mean_recall")
    return None if after is None or before is None else after - before


WAYS = ("t2i", "i2t")  # pictures by caption, captions by picture
RECALLS = tuple(
    Column(f"{way}_r{k}", f"{way} R@{k}", _test(f"{way}_r{k}")) for way in WAYS for k in (1, 5, 10)
)
SHOWN = {
    "classify": Shown(
        ("map", "top1"),
        "accuracy",
        "Share of test pictures named rightly: mean ± standard deviation (n - 1) over seeds. A seed draws the "
        "training pictures and their order; within a seed all methods see the same ones.",
        "all classes",
        "head",
        "the head alone",
    ),
    "retrieve": Shown(
        ("mean_recall",),
        "mean recall",
        "Mean of the recalls at 1, 5 and 10 of pictures by captions and of captions by pictures, over the whole test "
        "split: mean ± standard deviation (n - 1) over seeds. A seed draws the training pictures and their order; "
        "within a seed all methods see the same ones.",
        "all captions of the test split, and all its pictures",
        "frozen",
        "the frozen model",
        (
            *RECALLS,
            Column("general", "general", _general),
            Column("general_change", "general, change", _change, signed=True),
        ),
        {
            f"{way}_{key}": f"{way} {word}"
            for way in WAYS
            for key, word in (
                *((f"r{k}", f"recall@{k}") for k in (1, 5, 10)),
                ("median_rank", "median rank"),
                ("map", "mAP"),
            )
        }
        | {"mean_recall": "mean recall"},
    ),
}


def shown_of(protocol: Mapping[str, object]) -> Shown:
    """What is shown of results with this protocol; what is not retrieval names classes (test-time too)."""
    return SHOWN.get(str(protocol.get("task")), SHOWN["classify"])
