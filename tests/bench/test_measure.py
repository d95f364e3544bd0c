"""Ratios against arithmetic by hand, memory against tensors whose sizes are known."""

import json

import pytest
import torch

from vpt.bench.measure import Work, check_json, in_turns, machine, peak_mb, row, show, write

CPU = torch.device("cpu")
ROW = {"work", "variant", "precision", "ms_median", "ms_min", "peak_mb", "times_plain", "times_floor"}


def work(name: str, run=lambda: None, floor=None) -> Work:
    return Work(name, "ours", "float32", run, floor)


def test_every_work_runs_once_a_turn_and_once_before():
    ran = []
    works = [work(name, lambda name=name: ran.append(name)) for name in "abc"]
    times = in_turns(works, 4, CPU)
    assert {key: len(taken) for key, taken in times.items()} == {w.key: 4 for w in works}
    turns = [ran[i : i + 3] for i in range(0, 15, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1  # the order is drawn anew


def test_ratios_are_medians_over_turns():
    a, b = work("a"), work("b", floor=("a", "ours", "float32"))
    times = {a.key: [1.0, 10.0, 2.0], b.key: [3.0, 20.0, 8.0]}  # load in the second turn: ratios 3, 2, 4
    report = row(b, times, a.key, 1.234)
    assert report.keys() == ROW
    assert (report["ms_median"], report["ms_min"], report["peak_mb"]) == (8.0, 3.0, 1.23)
    assert (report["times_plain"], report["times_floor"]) == (3.0, 3.0)
    assert row(a, times, None, None)["times_floor"] is None


def test_peak_counts_what_is_alive_at_once():
    given = torch.zeros(1000, 250)  # 1 MB, from before

    def one_after_the_other():
        for _ in range(5):
            given + 1

    def side_by_side():
        return [given + 1 for _ in range(5)]

    def views():
        return given[1:], given.T, given.view(-1)

    assert peak_mb(one_after_the_other, CPU) == pytest.approx(1, rel=1e-3)
    assert peak_mb(side_by_side, CPU) == pytest.approx(5, rel=1e-3)
    assert peak_mb(views, CPU) == 0


def test_peak_counts_what_backward_keeps():
    given = torch.ones(1000, 250, requires_grad=True)

    def chain():
        x = given
        for _ in range(4):
            x = x.exp()  # each keeps its result for backward
        x.sum().backward()

    kept = peak_mb(chain, CPU)
    given.grad = None
    with torch.no_grad():
        freed = peak_mb(lambda: given.exp().exp().exp().exp().sum(), CPU)
    assert 4 <= kept <= 7  # four results, and gradients on their way
    assert freed == pytest.approx(2, rel=1e-3)


def test_the_machine_tells_what_bfloat16_is_worth_here():
    about = machine(CPU, batch=3)
    assert about["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert about["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert about["batch"] == 3
    assert "bfloat16" in about["bfloat16"]


def test_the_report_is_printed_and_written(tmp_path, capsys):
    w = work("a")
    rows = [row(w, {w.key: [1.0]}, w.key, None)]
    show("title", {"device": "cpu"}, rows, {w.key: "<= 2 met"})
    said = capsys.readouterr().out
    assert all(part in said for part in ("title float32", "ours", "<= 2 met", "device: cpu"))
    write(tmp_path / "new" / "bench.json", {"device": "cpu"}, rows)
    assert json.loads((tmp_path / "new" / "bench.json").read_text()) == {
        "machine": {"device": "cpu"},
        "rows": rows,
    }
    with pytest.raises(ValueError, match="is a folder"):
        check_json(tmp_path)
