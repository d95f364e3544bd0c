"""vpt bench: options are the arguments of the benches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from vpt.cli import main
from vpt.cli.bench import BENCHES

SEEN: list[dict[str, Any]] = []


def bench_vit(
    *,
    model: str = "vit_tiny_patch16_224",
    rows: Sequence[int] = (10, 50),
    precisions: Sequence[Literal["float32", "bfloat16"]] | None = None,
    json: str | None = None,
) -> None:
    """Time it.

    rows: of each layer.  json: file to write.
    """
    SEEN.append({"model": model, "rows": list(rows), "precisions": precisions, "json": json})


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setattr("vpt.bench.vit.bench_vit", bench_vit)


def test_options_are_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "vit"]) == 0
    assert main(["bench", "vit", "--rows", "1,2", "--precisions=float32", "--json", "out.json"]) == 0
    assert main(["bench", "vit", "--rows", "[3]", "--model", "vit_small_patch16_224"]) == 0
    nothing = {"precisions": None, "json": None}
    expected = [
        {"model": "vit_tiny_patch16_224", "rows": [10, 50], **nothing},
        {"model": "vit_tiny_patch16_224", "rows": [1, 2], "precisions": ["float32"], "json": "out.json"},
        {"model": "vit_small_patch16_224", "rows": [3], **nothing},
    ]
    assert expected == SEEN


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["gpu"], "no bench 'gpu'. There are vit, cli"),
        (["vit", "--rows", "few"], "rows is few, wanted int"),
        (["vit", "--precisions", "int4"], "wanted float32, bfloat16"),
        (["vit", "--row", "3"], "--row"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    assert told in capsys.readouterr().err
    assert SEEN == []


def test_help_lists_the_benches_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name:<11}{what}" in listed for name, (_, _, what) in BENCHES.items())
    assert main(["bench", "vit", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Time it." in said
    assert "file to write" in said
