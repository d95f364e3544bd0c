"""push, pull and import as they are typed; what they do is tested with vpt.hub and vpt.importers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vpt.cli import main, share
from vpt.header import read_header
from vpt.prompt import Site
from vpt.promptset import PromptSet

if TYPE_CHECKING:
    from tests.cli.conftest import Trained
    from vpt.tower import Tower

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


def test_embeddings_are_imported_and_exported(tmp_path: Path, capsys: Capture) -> None:
    rows = torch.randn(2, 768)
    torch.save({"*": rows}, tmp_path / "toy.bin")
    out = tmp_path / "mug.safetensors"
    argv = ["import", str(tmp_path / "toy.bin"), "--method", "textual-inversion", "--out", str(out)]
    assert main([*argv, "--name", "<my-mug>"]) == 0
    assert f"text/embedded/<my-mug> (2, 768): {out}" in capsys.readouterr().out
    assert torch.equal(PromptSet.load(out).rows[Site("text", "embedded", "<my-mug>")], rows)
    export = ["export", str(out), "--out", str(tmp_path / "a1111.pt"), "--layout"]
    assert main([*export, "a1111", "--name", "<my-mug>"]) == 0
    assert torch.equal(torch.load(tmp_path / "a1111.pt")["string_to_param"]["*"], rows)
    assert main([*export, "sdxl"]) == 2
    assert "Choose diffusers or a1111" in capsys.readouterr().err
    assert main([*export, "comfy"]) == 2
    assert "invalid choice: 'comfy'" in capsys.readouterr().err


def test_embeddings_are_imported_for_a_backbone(
    tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A backbone of one text encoder, and a denoiser that nothing is written to."""
    label = {"name": "diffusers/tiny", "fingerprints": {"text": "a" * 16, "denoiser": "b" * 16}}
    made = SimpleNamespace(towers={"text": tower, "denoiser": tower}, label=lambda: label)
    monkeypatch.setattr("vpt.towers.load.load", lambda name, weights=None: made)
    out = tmp_path / "mug.safetensors"
    torch.save(torch.ones(tower.width), tmp_path / "mug.pt")
    argv = ["import", str(tmp_path / "mug.pt"), "--method", "textual-inversion", "--out", str(out)]
    assert main([*argv, "--model", "diffusers/tiny"]) == 0
    assert read_header(out).about["backbone"]["fingerprints"] == {"text": "a" * 16}
    out.unlink()
    torch.save(torch.ones(768), tmp_path / "mug.pt")
    assert main([*argv, "--model", "diffusers/tiny"]) == 2
    assert f"this pipeline has 'text' of {tower.width}" in capsys.readouterr().err
    assert not out.exists()


def test_options_of_the_other_kind_of_import_are_refused(tmp_path: Path, capsys: Capture) -> None:
    torch.save(torch.ones(8), tmp_path / "a.pt")
    argv = ["import", str(tmp_path / "a.pt"), "--out", str(tmp_path / "b.safetensors")]
    assert main([*argv, "--method", "textual-inversion", "--classes", "a,b"]) == 2
    assert "--classes cannot stand with --method textual-inversion" in capsys.readouterr().err
    assert main([*argv, "--method", "coop", "--name", "mug"]) == 2
    assert "--name is for --method textual-inversion" in capsys.readouterr().err
    assert main(argv) == 2
    assert "Give --model. Embeddings need none" in capsys.readouterr().err


def test_the_layouts_offered_are_those_that_are_written() -> None:
    from vpt.importers.embeddings_out import LAYOUTS

    assert set(share.LAYOUTS) == set(LAYOUTS)
