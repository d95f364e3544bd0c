"""What tables show of each objective, and that the page follows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

import pytest

from vpt.workflow.compare import header, markdown, summarise, to_csv
from vpt.workflow.report import Chapter, findings, meanings, page, table
from vpt.workflow.runs import Result, by_split
from vpt.workflow.shown import SHOWN, shown_of

Make = Callable[..., Result]


@pytest.fixture
def found(result: Make) -> Callable[..., Result]:
    """found(name, method, seed, mean recall, general): a run on captions that was never run."""

    def make(name: str, method: str, seed: int, recall: float, general: float | None = None) -> Result:
        run = result(name, method, seed, 0.0)
        metrics = {"mean_recall": recall, "t2i_r1": recall / 2, "i2t_r10": 1.0}
        beside = {} if general is None else {"general": {"mean_recall": general, "count": 5}}
        before = {"test": {"mean_recall": 0.4}, "general": {"mean_recall": 0.8}}
        protocol = {**run.protocol, "task": "retrieve"}
        return replace(run, metrics=metrics, beside=beside, before=before, protocol=protocol)

    return make


def test_captions_are_ranked_by_mean_recall(found: Make) -> None:
    runs = [found("a", "ivlp", 1, 0.5, 0.7), found("a", "ivlp", 2, 0.7, 0.6), found("b", "coop", 1, 0.6, 0.8)]
    a, b = summarise(runs)
    assert a.mean == pytest.approx(0.6)
    assert a.beside["t2i_r1"] == pytest.approx((0.3, 0.05 * 2**0.5))
    assert a.beside["general"][0] == pytest.approx(0.65)
    assert a.beside["general_change"][0] == pytest.approx(-0.15)
    assert b.beside["general_change"][0] == pytest.approx(0)
    assert "t2i_r5" not in a.beside  # not measured
    assert header([a, b])[:6] == (
        "method",
        "mean recall",
        "t2i R@1",
        "i2t R@10",
        "general",
        "general, change",
    )
    cells = [c.strip() for c in markdown([a, b], {}).splitlines()[2].strip("|").split("|")]
    assert cells[:6] == ["a", "60.0 ± 14.1", "30.0 ± 7.1", "100.0 ± 0.0", "65.0 ± 7.1", "-15.0 ± 7.1"]
    read = list(csv.DictReader(io.StringIO(to_csv([a, b], {}))))
    assert float(read[0]["general_change"]) == pytest.approx(-0.15)
    assert float(read[0]["t2i_r1_std"]) == pytest.approx(0.05 * 2**0.5)


def test_a_column_that_a_line_lacks_is_blank_there(found: Make) -> None:
    rows = summarise([found("a", "ivlp", 1, 0.5, 0.7), found("b", "coop", 1, 0.6)])
    assert (
        markdown(rows, {}).splitlines()[3].count("|  |") == 1
    )  # both of general's, with one bar between them
    assert list(csv.DictReader(io.StringIO(to_csv(rows, {}))))[1]["general"] == ""


def test_tables_of_classes_are_as_they_were(result: Make) -> None:
    rows = summarise([result("a", "linear", 1, 0.7)])
    assert header(rows) == (
        *("method", "accuracy", "seeds", "parameters", "file kB", "step ms", "seconds", "peak MB", "lr"),
    )
    columns = "name,method,mean,std,seeds,parameters,kilobytes,step_ms,seconds,peak_mb,lrs"
    assert to_csv(rows, {}).splitlines()[0] == columns
    several = replace(result("a", "linear", 1, 0.7), metrics={"map": 0.6, "f1": 0.5})
    assert summarise([several])[0].mean == 0.6


def test_captions_and_classes_are_not_ranked_together(result: Make, found: Make) -> None:
    with pytest.raises(ValueError, match="2 different protocols"):
        summarise([result("a", "linear", 1, 0.7), found("b", "ivlp", 1, 0.7)])


def test_a_metric_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="have no mean_recall, only top1"):
        SHOWN["retrieve"].headline({"top1": 0.5})
    assert shown_of({}) is SHOWN["classify"]


def test_words_are_those_of_what_is_measured() -> None:
    import torch

    from vpt.objectives.captions import Captions
    from vpt.objectives.recall import both_ways

    measured = both_ways(torch.eye(3), torch.eye(3), Captions.gather([["a"], ["b"], ["c"]]))
    assert SHOWN["retrieve"].words.keys() == measured.keys()
    assert {c.key for c in SHOWN["retrieve"].columns} - {"general", "general_change"} <= measured.keys()


def test_the_page_follows(found: Make, result: Make) -> None:
    runs = [found("zero-shot", "zero-shot", s, 0.4) for s in (1, 2, 3)]
    runs += [found("ivlp", "ivlp", s, 0.5 + s / 100) for s in (1, 2, 3)]
    assert table(runs, "zero-shot")[1][:3] == ("ivlp", "52.0 ± 1.0", "+12.0 ± 0.6")
    assert findings(runs, "zero-shot")[:2] == [
        "Highest mean recall: ivlp, 52.0 ± 1.0 % (a prompt).",
        "A prompt pays here: ivlp.",
    ]
    html = page("t", "l", [Chapter("Captions", "p", runs, "zero-shot")], {})
    assert '<th scope="col">mean recall, %</th><th scope="col">against frozen</th>' in html
    assert "accuracy, %" not in html
    both = [
        Chapter("A", "p", runs, "zero-shot"),
        Chapter("B", "p", [result("linear", "linear", 1, 0.7)], "linear"),
    ]
    for name in (*meanings("retrieve"), *meanings("classify")):
        assert page("t", "l", both, {}).count(f"<dt>{name}</dt>") == 1


def test_numbers_of_a_file_by_split() -> None:
    numbers = [
        {"split": s, "name": n, "value": v}
        for s, n, v in (("val", "a", 1.0), ("test", "a", 2.0), ("test", "b", 3.0))
    ]
    assert by_split(numbers) == {"val": {"a": 1.0}, "test": {"a": 2.0, "b": 3.0}}
