"""vpt search as a person would type it, on drawn pictures and the starter that comes with the package."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vpt.cli import main
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.towers.load import load

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Path:
    root = paint(tmp_path_factory.mktemp("search"), {"pictures": 2}, noise=20)
    (root / "pictures" / "red" / "0.txt").write_text("a <b>red</b> square")
    assert (
        main(["index", "build", str(root / "pictures"), "--out", str(root / "index"), "--device", "cpu"]) == 0
    )
    return root


def said(capsys: Capture, *argv: str) -> Any:
    assert main(["search", *argv, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def scores(answers: Any) -> Any:
    """Scores by id, of one query."""
    [answer] = answers
    return pytest.approx({hit["id"]: hit["score"] for hit in answer["hits"]}, abs=1e-5)


def concept(path: Path, words: str, slot: str = "<my-mug>") -> str:
    """Rows that are the embeddings of these words: what a concept would learn that means just that."""
    rows = load("starter/clip-mini").tokens.embed(words)
    return str(PromptSet({Site("text", "embedded", slot): rows}).save(path))


def test_words_and_pictures_find_their_like(folder: Path, capsys: Capture) -> None:
    index, blue = str(folder / "index"), str(folder / "pictures" / "blue" / "0.png")
    capsys.readouterr()
    words, like = said(capsys, index, "red", "--image", blue, "--top", "3")
    assert (words["query"], like["image"]) == ("red", blue)
    assert [len(a["hits"]) for a in (words, like)] == [3, 3]
    assert like["hits"][0]["id"] == "blue/0.png"
    assert like["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert like["hits"][1]["id"] == "blue/1.png"
    found = {h["id"]: h for h in said(capsys, index, "red")[0]["hits"]}
    assert len(found) == 6
    assert found["red/0.png"]["captions"] == ["a <b>red</b> square"]
    assert found["red/0.png"]["file"] == str(folder / "pictures" / "red" / "0.png")
    assert main(["search", index, "red"]) == 0
    printed = capsys.readouterr().out
    assert "red/0.png" in printed
    assert "caption" in printed


def test_a_concept_is_said_in_a_text_or_alone(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    index, mug = str(folder / "index"), concept(tmp_path / "mug.safetensors", "red square")
    capsys.readouterr()
    alone = said(capsys, index, "--concept", mug)
    assert [a["query"] for a in alone] == ["a photo of <my-mug>"]
    assert {h["id"]: h["score"] for h in alone[0]["hits"]} == scores(
        said(capsys, index, "a photo of red square")
    )
    inside = said(capsys, index, "a <my-mug> left", "--concept", mug)
    assert {h["id"]: h["score"] for h in inside[0]["hits"]} == scores(
        said(capsys, index, "a red square left")
    )
    assert main(["search", index, "a cat", "--concept", mug]) == 2
    assert "no text says <my-mug>" in capsys.readouterr().err
    assert main(["search", index, "a <my-mug>"]) == 2
    assert "rows for none" in capsys.readouterr().err


def test_prompts_of_the_text_tower_search_the_same_index(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = load("starter/clip-mini").tokens.embed("a photo of a")
    about = {"names": {"sentence": f"<ctx*{len(rows)}> {{}}.", "class_specific": False}}
    file = PromptSet({Site("text", "embedded", "<ctx>"): rows}, about=about).save(tmp_path / "p.safetensors")
    capsys.readouterr()
    index = str(folder / "index")
    [found] = said(capsys, index, "cat", "--prompts", str(file))
    assert {h["id"]: h["score"] for h in found["hits"]} == scores(said(capsys, index, "a photo of a cat."))
    pixels = PromptSet({Site("image", "0", "prefix"): torch.ones(1, load("starter/clip-mini").image.width)})
    wrong = pixels.save(tmp_path / "image.safetensors")
    assert main(["search", str(folder / "index"), "cat", "--prompts", str(wrong)]) == 2
    assert f"image rows none, not {pixels.written('image')}" in capsys.readouterr().err


def test_the_page_holds_queries_pictures_and_nothing_from_elsewhere(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    lines, page = tmp_path / "queries.txt", tmp_path / "page.html"
    like = str(folder / "pictures" / "red" / "1.png")
    argv = [
        "search",
        str(folder / "index"),
        "--queries",
        str(lines),
        "--image",
        like,
        "--html",
        str(page),
        "--top",
        "4",
    ]
    lines.write_text("a red & blue square\n\n  blue \n")
    assert main(argv) == 0
    assert f"page: {page}" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("<section") == 3
    assert "a red &amp; blue square" in html
    assert "a &lt;b&gt;red&lt;/b&gt; square" in html  # a caption is no markup
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 3 * 4 + 1
    sizes = set()
    for uri in sources:
        kind, _, data = uri.partition(",")
        assert kind == "data:image/jpeg;base64"
        sizes.add(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == {(32, 32)}
    assert not re.findall(r"https?://|<script|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', html))
    gone = folder / "pictures" / "green" / "0.png"
    kept = gone.read_bytes()
    gone.unlink()
    try:
        assert main([*argv[:2], "green", "--html", str(page)]) == 0
    finally:
        gone.write_bytes(kept)
    assert "cannot read the picture green/0.png: No such file" in page.read_text()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "what to look for"),
        (["--image", "none.png"], "no picture 'none.png'"),
        (["--queries", "none.txt"], "no file of queries 'none.txt'"),
        (["--queries", "EMPTY"], "holds no queries"),
        (["--queries", "LATIN"], "no text in UTF-8"),
        ([""], "no words"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(
    argv: list[str], told: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "LATIN").write_bytes("grün".encode("latin-1"))
    given = [str(tmp_path / a) if a.isupper() else a for a in argv]
    assert main(["search", str(folder / "index"), *given]) == 2
    assert told in capsys.readouterr().err


def test_a_long_query_is_cut_and_told_of(folder: Path, capsys: Capture) -> None:
    assert main(["search", str(folder / "index"), " ".join(["red"] * 300)]) == 0
    assert re.search(r"^vpt: the query .* longer than the \d+ tokens", capsys.readouterr().err, re.MULTILINE)


def test_no_index_is_told_of(tmp_path: Path, capsys: Capture) -> None:
    assert main(["search", str(tmp_path / "none"), "red"]) == 2
    assert "Make one: vpt index build COLLECTION --out" in capsys.readouterr().err
