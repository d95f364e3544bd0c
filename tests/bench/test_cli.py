"""The report of `vpt bench cli`, and what a failing command leaves."""

import json

import pytest

import vpt.bench.cli as bench
from vpt.header import read_header


def test_the_report_times_fresh_processes(tmp_path, capsys):
    file = tmp_path / "cli.json"
    found = bench.bench_cli(repeats=1, json=str(file))
    assert json.loads(file.read_text()) == found
    assert found["machine"]["torch"]
    rows = {row["variant"]: row for row in found["rows"]}
    assert list(rows) == ["python -c pass", "import vpt", "vpt --help", "vpt methods", "vpt inspect FILE"]
    for row in rows.values():
        assert row.keys() == {
            "work", "variant", "precision", "ms_median", "ms_min", "peak_mb", "times_plain", "times_floor"
        }  # fmt: skip
        assert row["ms_min"] > 0
        assert 1 < row["peak_mb"] < 200  # the process itself, not the one that started it (torch takes more)
    assert rows["python -c pass"]["times_plain"] == 1
    said = capsys.readouterr().out
    assert all(f"{seconds} s " in said for seconds in (0.2, 1.0, 0.3))


def test_the_file_is_what_vpt_deep_leaves(tmp_path):
    header = read_header(bench._prompt_file(str(tmp_path)))
    assert header.parameters == 12 * 10 * 192 + 100 * 192 + 100
    assert len(header.about["sites"]) == 12


def test_a_command_that_fails_is_told_with_its_words(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench,
        "_commands",
        lambda file: {bench.EMPTY[1]: ["-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"]},
    )
    with pytest.raises(RuntimeError, match=r"status 3: why"):
        bench.bench_cli(repeats=1, json=str(tmp_path / "cli.json"))
    assert list(tmp_path.iterdir()) == []


def test_no_turns_are_refused():
    with pytest.raises(ValueError, match="repeats=0"):
        bench.bench_cli(repeats=0)
