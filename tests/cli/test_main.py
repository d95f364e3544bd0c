"""The command: what it lists, what it imports, how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vpt.cli import COMMANDS, main
from vpt.methods import METHODS
from vpt.prompt import Site
from vpt.promptset import PromptSet


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["help"]):
        assert main(argv) == 0
        said = capsys.readouterr().out
        for name, (_, what) in COMMANDS.items():
            assert f"  {name:<10}{what}" in said.splitlines()


def test_every_command_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS.keys() - {"demo"}:
        assert main([name, "--help"]) == 0
        assert f"usage: vpt {name}" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2
    told = capsys.readouterr().err
    assert "'fitt'" in told
    assert "fit, compare" in told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    name, number = capsys.readouterr().out.split()
    assert name == "visual-prompt-tuning"
    assert number[0].isdigit()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("a"), 2), (OSError("b"), 2), (RuntimeError("c"), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_end_in_a_sentence_and_a_status(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(command: str, argv: list[str]) -> None:
        raise error

    monkeypatch.setattr("vpt.cli.lists.run", fail)
    assert main(["methods"]) == status
    told = capsys.readouterr().err
    assert told.strip() == f"vpt: {str(error) or 'stopped.'}"
    if isinstance(error, Exception):
        monkeypatch.setenv("VPT_DEBUG", "1")
        with pytest.raises(type(error)):
            main(["methods"])


@pytest.mark.parametrize(
    ("argv", "goes_on"),
    [
        (["test-time", "--out", "results.jsonl"], True),
        (["test-time", "--out=results.jsonl"], True),
        (["test-time", "--output=results.jsonl"], False),
        (["test-time"], False),
        (["fit"], True),
        (["predict", "--out=there"], False),
    ],
)
def test_a_stopped_command_says_whether_the_same_goes_on(
    argv: list[str], goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(command: str, argv: list[str]) -> None:
        raise KeyboardInterrupt

    for module in ("vpt.cli.test_time", "vpt.cli.fit", "vpt.cli.use"):
        monkeypatch.setattr(f"{module}.run", stop)
    assert main(argv) == 130
    assert ("goes on where it stopped" in capsys.readouterr().err) == goes_on


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    rows = {Site("image", "0", "prefix"): torch.zeros(2, 4)}
    return str(PromptSet(rows, about={"method": {"name": "vpt-deep"}}).save(tmp_path / "p.safetensors"))


WRAPPED = """
import sys
import vpt.cli
assert "torch" not in sys.modules, "import vpt.cli"
for argv in {commands}:
    assert vpt.cli.main(argv) == 0, argv
    assert not {{"torch", "lightning", "timm", "numpy"}} & sys.modules.keys(), argv
"""


def test_what_needs_no_torch_imports_none(prompt_file: str) -> None:
    commands = [
        ["--help"],
        ["--version"],
        ["methods"],
        ["inspect", prompt_file],
        ["inspect", "--json", prompt_file],
    ]
    code = WRAPPED.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_damaged_file_is_refused_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(b"nothing")
    code = WRAPPED.format(commands=[]) + (
        f"for command in ('inspect', 'predict', 'test'):\n"
        f"    assert vpt.cli.main([command, {str(file)!r}, *['.'] * (command == 'predict')]) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is no whole safetensors file") == 3


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    head = subprocess.Popen(
        [sys.executable, "-m", "vpt", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert head.stdout is not None
    assert head.stderr is not None
    head.stdout.close()  # before the first line is written
    assert head.wait() == 141
    assert head.stderr.read() == ""
    head.stderr.close()


def test_methods_lists_each_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = dict(zip(METHODS, capsys.readouterr().out.splitlines(), strict=True))
    for name, entry in METHODS.items():
        assert lines[name].startswith(name)
        assert entry.summary in lines[name]
        assert entry.paper in lines[name]
        assert ("baseline" in lines[name].split()) == entry.baseline


def test_models_lists_what_timm_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "*vit_small*dinov2*"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert "timm/vit_small_patch14_dinov2.lvd142m" in names
    assert all(name.startswith("timm/vit_small_patch14_") for name in names)
    assert main(["models"]) == 0
    assert capsys.readouterr().out.startswith("starter/vit-mini")
    assert main(["models", "nothing-like-this"]) == 2
    assert "Try --all" in capsys.readouterr().err
