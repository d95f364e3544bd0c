"""vpt index as a person would type it."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vpt.cli import main
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.towers.load import load

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pictures(tmp_path: Path, paint: Callable[..., Path]) -> Path:
    return paint(tmp_path, {"pictures": 2}, noise=20) / "pictures"


def info(capsys: Capture, folder: Path) -> Any:
    capsys.readouterr()
    assert main(["index", "info", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_build_add_remove_and_info(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, index = tmp_path / "index", str(tmp_path / "index")
    build = ["index", "build", str(pictures), "--out", index, "--device", "cpu", "--batch-size", "4"]
    assert main(build) == 0
    printed = capsys.readouterr().out
    assert "6 pictures in " in printed
    assert f"vpt search {index} 'a red bicycle'" in printed
    about = info(capsys, folder)
    assert (about["pictures"], about["backbone"], about["image_rows"]) == (6, "starter/clip-mini", "")
    assert about["fingerprint"] == load("starter/clip-mini").label()["fingerprints"]["image"]
    assert main(["index", "info", index]) == 0
    assert "text tower only keeps them valid" in capsys.readouterr().out

    assert main(["index", "remove", index, "red/0.png", "blue/1.png"]) == 0
    assert "2 removed" in capsys.readouterr().out
    assert main(["index", "remove", index, "red/0.png"]) == 2
    assert "red/0.png. Nothing was removed" in capsys.readouterr().err
    assert main(["index", "add", index, str(pictures / "red")]) == 0
    assert info(capsys, folder)["pictures"] == 6
    assert main(build) == 0  # nothing new
    assert "0 pictures in" in capsys.readouterr().out
    assert main(["index", "build", "--out", index, "--kind", "hnsw"]) == 0
    assert info(capsys, folder)["kind"] == "hnsw"
    assert main(["index", "add", index, str(pictures / "red")]) == 2
    assert "--kind auto" in capsys.readouterr().err


def test_pictures_are_embedded_with_the_image_rows_of_a_prompt_file(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    backbone = load("starter/clip-mini")
    rows = PromptSet(
        {Site("image", "0", "prefix"): torch.ones(2, backbone.image.width)},
        about={"backbone": backbone.label()},
    )
    file, index = rows.save(tmp_path / "p.safetensors"), str(tmp_path / "index")
    assert main(["index", "build", str(pictures), "--out", index, "--prompts", str(file)]) == 0
    file.unlink()  # the index has its own copy
    assert info(capsys, tmp_path / "index")["image_rows"] == rows.written("image")
    assert main(["index", "add", index, str(pictures / "red" / "0.png")]) == 0
    assert main(["index", "build", str(pictures), "--out", index]) == 0
    assert main(["search", index, "red", "--image", str(pictures / "red" / "0.png"), "--json"]) == 0
    assert main(["index", "build", str(pictures), "--out", index, "--model", "starter/clip-mini"]) == 2
    assert f"image rows {rows.written('image')}, not none" in capsys.readouterr().err


def test_a_network_of_pictures_alone_is_indexed_too(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    index = str(tmp_path / "index")
    assert main(["index", "build", str(pictures), "--out", index, "--model", "starter/vit-mini"]) == 0
    assert f"vpt search {index} --image FILE" in capsys.readouterr().out
    blue = str(pictures / "blue" / "0.png")
    assert main(["search", index, "--image", blue, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["hits"][0]["id"] == "blue/0.png"
    assert main(["search", index, "blue"]) == 2
    assert "searched by picture only" in capsys.readouterr().err
    assert "searched by picture" in info(capsys, tmp_path / "index")["valid"]


def test_damaged_pictures_are_refused_or_listed(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    (pictures / "red" / "9.png").write_bytes(b"\x89PNG")
    argv = ["index", "build", str(pictures), "--out", str(tmp_path / "index")]
    assert main(argv) == 2
    assert "red/9.png" in capsys.readouterr().err
    assert main([*argv, "--skip-unreadable"]) == 0
    assert "1 could not be read and are left out:\n  red/9.png: " in capsys.readouterr().out
    assert main(["index", "info", str(tmp_path / "index")]) == 0
    assert "red/9.png: " in capsys.readouterr().out


def test_what_is_missing_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    index = str(tmp_path / "index")
    for argv, told in [
        (["build", "--out", index], "Which pictures?"),
        (["build", str(tmp_path / "none"), "--out", index], "none"),
        (["info", index], "there is no index"),
        (["add", index, str(tmp_path / "none.png")], "no picture or folder"),
    ]:
        assert main(["index", *argv]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "index" / "index.json").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")  # of fields of its own context
def test_workers_embed_with_the_encoder_that_is_asked_for(
    pictures: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker in this process stands in for Ray's, and gets what Ray would carry there."""
    ray_embed, ray = pytest.importorskip("vpt.search.ray_embed"), pytest.importorskip("ray")
    asked: list[Any] = []

    def passed(rows: list[Any], given: tuple[Any, ...], *room: Any) -> Any:
        asked.append(room)
        with monkeypatch.context() as there:
            there.chdir("/")  # a worker runs elsewhere
            worker = ray_embed._Worker(*pickle.loads(pickle.dumps(given)))
            return [worker(row) for row in rows]

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_embed, "_check_room", lambda *_: None)
    monkeypatch.setattr(ray_embed, "_passed", passed)
    backbone = load("starter/clip-mini")
    PromptSet(
        {Site("image", "0", "prefix"): torch.ones(2, backbone.image.width)},
        about={"backbone": backbone.label()},
    ).save(tmp_path / "p.safetensors")
    build = ["index", "build", pictures.name, "--device", "cpu", "--prompts", "p.safetensors", "--out"]
    monkeypatch.chdir(pictures.parent)
    assert main([*build, "alone"]) == 0
    assert main([*build, "ray", "--workers", "3", "--gpus-per-worker", "0.5"]) == 0
    assert asked == [(3, 1, 0.5)]
    found = {p.name: p.read_bytes() for p in Path("ray/shards").iterdir()}
    assert found == {p.name: p.read_bytes() for p in Path("alone/shards").iterdir()}
    capsys.readouterr()
    file = pictures / "red" / "9.png"
    shutil.copy(pictures / "red" / "0.png", file)  # one more, with the rows that the index keeps
    assert main(["index", "build", pictures.name, "--out", "ray", "--device", "cpu", "--workers", "1"]) == 0
    assert "1 pictures in " in capsys.readouterr().out
    assert info(capsys, Path("ray"))["pictures"] == 7


def test_workers_of_nothing_and_without_ray_are_refused(
    pictures: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", str(tmp_path / "index"), "--device", "cpu"]
    assert main(["index", "build", str(pictures), *out, "--gpus-per-worker", "1"]) == 2
    assert "each of --workers N" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vpt.search.ray_embed", raising=False)
    assert main(["index", "build", str(pictures), *out, "--workers", "2"]) == 2
    assert "pip install 'visual-prompt-tuning[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
    assert main(["index", "build", str(pictures), *out]) == 0
    assert main(["index", "build", *out, "--workers", "2"]) == 2
    assert "Give the collection too" in capsys.readouterr().err
