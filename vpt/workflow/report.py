"""A comparison as one page that needs nothing else, with what won and what lost said from the numbers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isnan, sqrt
from statistics import mean, stdev

from jinja2 import Environment, StrictUndefined
from scipy.stats import t

from vpt.methods import METHODS
from vpt.workflow.compare import Result, Row, rates_of, summarise
from vpt.workflow.shown import SHOWN, shown_of

__all__ = [
    "HEADER",
    "MEANINGS",
    "Asked",
    "Chapter",
    "Found",
    "Fresh",
    "Picture",
    "Searches",
    "Verdict",
    "against",
    "findings",
    "meanings",
    "page",
    "table",
]


def meanings(task: str = "classify") -> dict[str, str]:
    """What each column of the table of an objective means."""
    shown = SHOWN[task]
    return {
        "method": "What learns. The network itself is frozen in every line but full fine-tuning.",
        f"{shown.title}, %": shown.meaning,
        f"against {shown.base}": f"{shown.title.capitalize()} minus that of {shown.based}, seed by seed, in points: "
        "mean ± standard error. It is called ahead or behind where a paired t-test over seeds says so at the level of "
        "5 %, else unclear.",
        "trained": "Numbers that the optimiser changes, the head's included.",
        "file, kB": "What has to be kept to predict again, besides the frozen network.",
        "seconds": "One run, from reading the pictures to the measured test split; mean over seeds.",
        "step, ms": "One training step, forward to optimiser: median of a run, mean over seeds.",
        "peak, MB": "Highest memory of the whole process during a run, libraries and network included.",
        "lr": "Learning rate.",
    }


MEANINGS = meanings()
HEADER = tuple(MEANINGS)


@dataclass(frozen=True)
class Verdict:
    """One method against another on the same seeds: mean difference in points, its standard error, and a word."""

    points: float
    error: float
    word: str  # "ahead", "behind" or "unclear"

    def __str__(self) -> str:
        spread = "" if isnan(self.error) else f" ± {self.error:.1f}"
        return f"{self.points:+.1f}{spread}".replace("-", "−")


@dataclass(frozen=True)
class Picture:
    """A drawing for light and for dark pages (PNG). alt: what it shows, for who cannot see it."""

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Fresh:
    """A picture named by a new process that knew the prompt file only. png: the picture."""

    png: bytes
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Chapter:
    """One data set: its runs, their protocol in words, pictures, and what a fresh process said.

    base: name of the line that the others are measured against.  difference: largest difference of a probability
    between the fresh process and this one.
    """

    title: str
    protocol: str
    results: Sequence[Result]
    base: str
    pictures: Sequence[Picture] = ()
    fresh: Sequence[Fresh] = ()
    command: str = ""
    difference: float = 0.0
    credits: str = ""

    @property
    def findings(self) -> list[str]:
        return findings(self.results, self.base)

    @property
    def meanings(self) -> dict[str, str]:
        return meanings(str(self.results[0].protocol.get("task", "classify")))

    @property
    def table(self) -> list[tuple[str, ...]]:
        return table(self.results, self.base)


@dataclass(frozen=True)
class Found:
    """A picture that a search found. png: the picture.  text: what it shows.  right: whether it was looked for."""

    png: bytes
    text: str
    right: bool


@dataclass(frozen=True)
class Asked:
    """A query, and what was found by it, best first, by who looked."""

    query: str
    found: Mapping[str, Sequence[Found]]


@dataclass(frozen=True)
class Searches:
    """Pictures found by words: what was measured, in sentences and as a table, and some queries with their hits.

    table: lines of text under ``header``.  links: path from the page, and what lies there.  command: searches again.
    """

    title: str
    protocol: str
    findings: Sequence[str]
    header: Sequence[str]
    table: Sequence[Sequence[str]]
    asked: Sequence[Asked]
    links: Mapping[str, str]
    command: str


@dataclass(frozen=True)
class Lesson:
    """A new word: the pictures that taught it, and what sentences draw before and after it was learned.

    table: lines of text under ``header``.  taught: PNGs.  drawn: by sentence, PNGs by who drew them.
    command: draws with the word again.
    """

    title: str
    protocol: str
    findings: Sequence[str]
    header: Sequence[str]
    table: Sequence[Sequence[str]]
    taught: Sequence[bytes]
    drawn: Mapping[str, Mapping[str, Sequence[bytes]]]
    command: str


def _by_seed(results: Sequence[Result], name: str, metric: str) -> dict[int, float]:
    return {r.seed: 100 * r.metrics[metric] for r in results if r.name == name}


def against(results: Sequence[Result], name: str, other: str, metric: str = "") -> Verdict:
    """``name`` minus ``other``, paired by seed; the word is that of a t-test at 5 %, "unclear" for one seed.

    metric: by default the one that the objective ranks by. Raises ValueError where they have no seed in common.
    """
    metric = metric or shown_of(results[0].protocol).headline(results[0].metrics)
    ours, theirs = _by_seed(results, name, metric), _by_seed(results, other, metric)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        raise ValueError(f"{name} and {other} have no seed in common: {sorted(ours)} and {sorted(theirs)}.")
    points = mean(differences)
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else float("nan")
    clear = len(differences) > 1 and abs(points) > t.ppf(0.975, len(differences) - 1) * error
    return Verdict(points, error, ("ahead" if points > 0 else "behind") if clear else "unclear")


def table(results: Sequence[Result], base: str) -> list[tuple[str, ...]]:
    """Lines of text under the names of :func:`meanings`. Raises ValueError for results of different protocols."""
    lines: list[tuple[str, ...]] = []
    for row in summarise(results):
        same = row.name == base
        lines.append(
            (
                row.name,
                _percent(row),
                "0" if same else str(against(results, row.name, base)),
                f"{row.parameters:,}",
                f"{row.kilobytes:,.1f}",
                f"{row.seconds:.1f}",
                f"{row.step_ms:.1f}" if row.lrs else "-",
                f"{row.peak_mb:,.0f}",
                rates_of(row),
            )
        )
    return lines


def findings(results: Sequence[Result], base: str) -> list[str]:
    """What the numbers say, in sentences: who is highest, who is ahead of ``base``, and whether learned rows beat
    random ones."""
    rows = summarise(results)
    best = max(rows, key=lambda row: row.mean)
    said = [f"Highest {_mean(rows)}: {best.name}, {_percent(best)} % ({_kind(best)})."]
    verdicts = {row.name: against(results, row.name, base) for row in rows if row.name != base}
    prompts = [row.name for row in rows if row.name != base and not METHODS[row.method].baseline]
    winners = [name for name in prompts if verdicts[name].word == "ahead"]
    if winners:
        said.append(f"A prompt pays here: {', '.join(winners)}.")
    elif prompts:
        said.append(f"No prompt is clearly ahead of {base} here.")
    for word, told in (
        ("ahead", f"Ahead of {base}"),
        ("behind", f"Behind {base}"),
        (
            "unclear",
            f"Not clearly different from {base} with {rows[0].seeds} seed{'s' * (rows[0].seeds > 1)}",
        ),
    ):
        names = [f"{name} ({v} points)" for name, v in verdicts.items() if v.word == word]
        if names:
            said.append(f"{told}: {', '.join(names)}.")
    return said + _control(results, rows)


def _mean(rows: Sequence[Row]) -> str:
    """What the mean over seeds is a mean of; a mean recall is called so as it is."""
    title = SHOWN[rows[0].task].title
    return title if title.startswith("mean ") else f"mean {title}"


def _percent(row: Row) -> str:
    spread = f" ± {100 * row.std:.1f}" if row.seeds > 1 else ""
    return f"{100 * row.mean:.1f}{spread}"


def _kind(row: Row) -> str:
    return "a baseline, not a prompt" if METHODS[row.method].baseline else "a prompt"


def _control(results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    """Learned rows against the same rows frozen at their random start."""
    names = {row.method: row.name for row in rows}
    if "random-rows" not in names or "vpt-deep" not in names:
        return []
    learned, random = names["vpt-deep"], names["random-rows"]
    v = against(results, learned, random)
    meaning = {
        "ahead": "the difference is what the rows learned",
        "behind": "learning the rows did harm here",
        "unclear": "so at this budget it cannot be said that the rows learned anything useful",
    }
    return [f"{learned} against {random}: {v} points, {v.word}; {meaning[v.word]}."]


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def page(
    title: str,
    lead: str,
    chapters: Sequence[Chapter],
    facts: Mapping[str, str],
    searches: Sequence[Searches] = (),
    lessons: Sequence[Lesson] = (),
) -> str:
    """HTML with everything inside: pictures as data URIs, no script, nothing fetched.

    facts: how it was made (machine, versions, command), by name.  searches, lessons: behind the chapters.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["uri"] = _uri
    text = files("vpt.workflow").joinpath("page.html.j2").read_text("utf-8")
    told = {name: meaning for c in chapters for name, meaning in c.meanings.items()}
    return environment.from_string(text).render(
        title=title,
        lead=lead,
        chapters=chapters,
        facts=facts,
        searches=searches,
        lessons=lessons,
        meanings=told,
    )
