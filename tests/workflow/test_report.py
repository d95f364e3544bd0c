"""The page holds every number, draws its conclusions from them, and needs nothing from outside."""

import base64
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_rel

from vpt.workflow.compare import Result
from vpt.workflow.report import HEADER, MEANINGS, Chapter, Fresh, Picture, against, findings, page, table

Make = Callable[..., Result]


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(file, format="png")
    return file.getvalue()


def runs(result: Make, **scores: list[float]) -> list[Result]:
    """Results by method: linear=[0.8, 0.9] is two seeds."""
    methods = {name: name.replace("_", "-") for name in scores}
    return [result(methods[n], methods[n], s, v) for n, vs in scores.items() for s, v in enumerate(vs, 1)]


class Parsed(HTMLParser):
    """Tags with their attributes, and text by the tag that it stands in."""

    VOID = ("meta", "img", "source", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        assert not self.open  # every tag is closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([0.90, 0.91, 0.92], [0.80, 0.82, 0.81]),
        ([0.70, 0.71, 0.69], [0.80, 0.82, 0.81]),
        ([0.90, 0.82, 0.80], [0.80, 0.82, 0.81]),
        ([0.95, 0.85, 0.84], [0.80, 0.82, 0.81]),
    ],
)
def test_the_word_is_that_of_a_paired_t_test(result: Make, ours: list[float], theirs: list[float]) -> None:
    v = against(runs(result, full=ours, linear=theirs), "full", "linear")
    p = ttest_rel(ours, theirs).pvalue
    assert v.points == pytest.approx(100 * (np.mean(ours) - np.mean(theirs)))
    assert v.error == pytest.approx(100 * np.std(np.subtract(ours, theirs), ddof=1) / 3**0.5)
    assert v.word == ("unclear" if p >= 0.05 else "ahead" if v.points > 0 else "behind")


def test_seeds_are_paired_by_number_and_one_is_never_enough(result: Make) -> None:
    found = runs(result, linear=[0.5, 0.7], full=[0.6, 0.8])
    assert against(found[::-1], "full", "linear").error == pytest.approx(0)
    one = [r for r in found if r.seed == 1]
    assert str(against(one, "full", "linear")) == "+10.0"
    assert against(one, "full", "linear").word == "unclear"
    with pytest.raises(ValueError, match="no seed in common"):
        against([found[0], found[3]], "full", "linear")


def test_conclusions_follow_the_numbers(result: Make) -> None:
    head, random = [0.80, 0.81, 0.82], [0.79, 0.81, 0.80]
    up, down = [0.90, 0.91, 0.92], [0.60, 0.61, 0.63]
    won = findings(runs(result, linear=head, random_rows=random, vpt_deep=up), "linear")
    assert won[0] == "Highest mean accuracy: vpt-deep, 91.0 ± 1.0 % (a prompt)."
    assert won[1] == "A prompt pays here: vpt-deep."
    assert won[2] == "Ahead of linear: vpt-deep (+10.0 ± 0.0 points)."
    assert won[3] == "Not clearly different from linear with 3 seeds: random-rows (−1.0 ± 0.6 points)."
    assert won[4].startswith(
        "vpt-deep against random-rows: +11.0 ± 0.6 points, ahead; the difference is what"
    )

    lost = findings(runs(result, linear=head, random_rows=random, vpt_deep=down), "linear")
    assert lost[0] == "Highest mean accuracy: linear, 81.0 ± 1.0 % (a baseline, not a prompt)."
    assert lost[1] == "No prompt is clearly ahead of linear here."
    assert lost[2].startswith("Behind linear: vpt-deep (−19.7 ± 0.3 points)")
    assert "learning the rows did harm" in lost[4]

    level = findings(runs(result, linear=head, random_rows=random, vpt_deep=[0.83, 0.79, 0.82]), "linear")
    assert level[1].startswith("No prompt is clearly ahead")
    assert "cannot be said that the rows learned anything" in level[-1]


def test_a_baseline_that_wins_is_no_prompt(result: Make) -> None:
    said = findings(runs(result, linear=[0.7, 0.71, 0.7], full=[0.9, 0.91, 0.9]), "linear")
    assert said == [
        "Highest mean accuracy: full, 90.3 ± 0.6 % (a baseline, not a prompt).",
        "Ahead of linear: full (+20.0 ± 0.0 points).",
    ]


def test_the_table_refuses_numbers_of_different_protocols(result: Make) -> None:
    a, b = runs(result, linear=[0.7], vpt_deep=[0.8])
    with pytest.raises(ValueError, match="different protocols"):
        table([a, replace(b, protocol={**b.protocol, "shots": 16})], "linear")


def chapter(result: Make, **changes: object) -> Chapter:
    found = runs(
        result, linear=[0.701, 0.712, 0.723], vpt_deep=[0.8, 0.83, 0.79], random_rows=[0.71, 0.7, 0.72]
    )
    pictures = [Picture("curves", "a curve that rises", "It rises.", png("white"), png("black"))]
    fresh = [Fresh(png("red"), "cat & dog", "<cat>", 0.125), Fresh(png("blue"), "dog", "dog", 0.875)]
    made = Chapter(
        "Pets & more", "pets, 4 a class", found, "linear", pictures, fresh, "python -m vpt predict X", 3e-7
    )
    return replace(made, **changes)


def test_the_page_holds_every_number_and_inlines_every_picture(result: Make) -> None:
    c = chapter(result, credits="by somebody")
    html = page("Title <1>", "What it is.", [c, chapter(result, title="Second")], {"machine": "a computer"})
    found = Parsed(html)
    cells = found.text["td"] + found.text["th"]
    for line in c.table:
        assert all(cell in cells for cell in line)
    assert c.table[1][:5] == ("vpt-deep", "80.7 ± 2.1", "+9.5 ± 1.5", "1,234", "5.6")
    assert set(HEADER) <= set(found.text["th"])
    assert [t for t in found.text["dt"] if t in MEANINGS] == list(HEADER)
    for said in c.findings:
        assert said in found.text["li"]
    assert found.text["h1"] == ["Title <1>"]
    assert [t for t in found.text["h2"] if t in ("Pets & more", "Second")] == ["Pets & more", "Second"]
    assert {"✗ <cat>", "✓ dog", "0.125", "0.875", "cat & dog"} <= set(found.text["td"])
    everything = " ".join(text for texts in found.text.values() for text in texts)
    for part in (
        "pets, 4 a class",
        "by somebody",
        "3e-07",
        "a computer",
        "python -m vpt predict X",
        "It rises.",
    ):
        assert part in everything

    images = [attrs for tag, attrs in found.tags if tag == "img"]
    sources = [attrs["srcset"] for tag, attrs in found.tags if tag == "source"]
    assert all(attrs.get("alt") for attrs in images)
    decoded = [
        base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        for uri in [a["src"] for a in images] + sources
    ]
    assert decoded == [png("white"), png("red"), png("blue")] * 2 + [png("black")] * 2


def test_the_page_needs_nothing_from_outside_and_fits_phones_and_dark_rooms(result: Make) -> None:
    html = page("T", "L", [chapter(result)], {})
    found = Parsed(html)
    for tag, attrs in found.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "srcset", "href"):
            assert (attrs.get(name) or "#").startswith(("data:image/png;base64,", "#"))
        assert not [name for name in attrs if name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html
    metas = {attrs.get("name"): attrs.get("content") for tag, attrs in found.tags if tag == "meta"}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in html
    assert "overflow-x: auto" in html
    levels = [int(tag[1]) for tag, _ in found.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    assert all((attrs["href"] or "")[1:] in ids for tag, attrs in found.tags if tag == "a")
    assert ("html", {"lang": "en"}) in found.tags
