"""push, pull and import as they are typed; what they do is tested with vpt.hub and vpt.importers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vpt.cli import main
from vpt.header import read_header
from vpt.promptset import PromptSet

if TYPE_CHECKING:
    from tests.cli.conftest import Trained

Capture = pytest.CaptureFixture[str]


def test_push_hands_on_what_is_typed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: dict[str, Any] = {}

    def push(path: str, repo: str, **options: Any) -> str:
        seen.update(path=path, repo=repo, **options)
        return "https://hub/me/colours"

    monkeypatch.setattr("vpt.hub.push", push)
    assert main(["push", str(trained.prompts), "me/colours", "--private", "--message", "First"]) == 0
    assert seen == {"path": str(trained.prompts), "repo": "me/colours", "private": True, "message": "First"}
    assert capsys.readouterr().out == "https://hub/me/colours\n"


def test_push_without_a_token_says_what_to_do(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert main(["push", str(trained.prompts), "me/colours"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_pull_hands_on_what_is_typed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: dict[str, Any] = {}

    def pull(repo: str, **options: Any) -> Path:
        seen.update(repo=repo, **options)
        return trained.prompts

    monkeypatch.setattr("vpt.hub.pull", pull)
    assert main(["pull", "me/colours", "--out", "mine.safetensors", "--revision", "v1"]) == 0
    file = {"filename": "prompts.safetensors", "revision": "v1", "out": "mine.safetensors"}
    assert seen == {"repo": "me/colours", **file}
    assert f"vpt inspect {trained.prompts}" in capsys.readouterr().out


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """VPT-deep on timm/test_vit (6 blocks, 64 wide) with a head of three classes, as the authors' code saves it."""
    state = {
        "enc.transformer.prompt_embeddings": torch.randn(1, 2, 64),
        "enc.transformer.deep_prompt_embeddings": torch.randn(5, 2, 64),
        "head.last_layer.weight": torch.randn(3, 64),
        "head.last_layer.bias": torch.randn(3),
    }
    torch.save({"model": state}, tmp_path / "vpt.pth")
    return tmp_path / "vpt.pth"


def arguments(trained: Trained, checkpoint: Path, out: Path) -> list[str]:
    model = ["--model", "timm/test_vit", "--weights", str(trained.weights), "--size", "32"]
    return ["import", str(checkpoint), "--method", "vpt-deep", *model, "--out", str(out)]


def test_an_imported_checkpoint_predicts(
    trained: Trained, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "imported.safetensors"
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\n\nsky [blue]\n")
    assert main([*arguments(trained, checkpoint, out), "--classes", str(names)]) == 0
    assert f"6 layers of rows: {out}" in capsys.readouterr().out
    assert read_header(out).about["classes"] == ["red", "green", "sky [blue]"]
    state = torch.load(checkpoint)["model"]
    rows = torch.cat(
        [state["enc.transformer.prompt_embeddings"], state["enc.transformer.deep_prompt_embeddings"]]
    )
    assert torch.equal(torch.stack(list(PromptSet.load(out).rows.values())), rows)
    assert main(["predict", str(out), str(trained.pictures / "red")]) == 0


def test_class_names_may_be_typed(
    trained: Trained, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "imported.safetensors"
    assert main([*arguments(trained, checkpoint, out), "--classes", "a, b,c"]) == 0
    assert read_header(out).about["classes"] == ["a", "b", "c"]
    out.unlink()
    assert main([*arguments(trained, checkpoint, out), "--classes", "a,b"]) == 2
    assert "2 class names for a head of 3 classes" in capsys.readouterr().err
    assert main([*arguments(trained, checkpoint, out), "--classes", "names.txt"]) == 2
    assert "no file of class names 'names.txt'" in capsys.readouterr().err
    assert not out.exists()


def test_what_cannot_be_imported_is_refused(
    trained: Trained, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "imported.safetensors"
    argv = arguments(trained, checkpoint, out)
    assert main([*argv, "--method", "vpt-shallow"]) == 2
    assert "which is vpt-deep, not vpt-shallow" in capsys.readouterr().err
    assert main([*argv, "--method", "linear"]) == 2
    capsys.readouterr()
    assert main([argv[0], str(tmp_path / "none.pth"), *argv[2:]]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert not out.exists()
