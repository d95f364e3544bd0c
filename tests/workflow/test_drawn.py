"""Files say how they were drawn, sheets and pages show what they say that they show."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vpt.workflow.drawn import Drawn, page, read_told, sheet, there, write_drawn

COLOURS = [(220, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 40), (20, 20, 20)]
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=40)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def flat(i: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[i])


def drawn(folder: Path, count: int, size: tuple[int, int] = (16, 16)) -> list[Drawn]:
    files = [write_drawn(folder / f"{i} & more.png", flat(i, size), {}) for i in range(count)]
    return [Drawn(file, f"seed {i}", "a <b> & c") for i, file in enumerate(files)]


def found(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what has this colour; all of the rectangle must have it."""
    same = (np.asarray(picture.convert("RGB")) == np.array(colour)).all(-1)
    ys, xs = np.nonzero(same)
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert same[box[1] : box[3], box[0] : box[2]].all()
    return box


@again
@given(st.dictionaries(KEYS, TEXT, max_size=4))
def test_a_picture_and_a_video_keep_what_they_were_told(tmp_path: Path, told: dict[str, str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    picture = write_drawn(tmp_path / "x.png", Image.fromarray(noise), told)
    assert np.array_equal(np.asarray(Image.open(picture)), noise)
    video = write_drawn(tmp_path / "x.webp", [flat(0), flat(1), flat(2)], told, fps=10)
    opened = Image.open(video)
    assert opened.n_frames == 3
    assert (
        read_told(picture)
        == read_told(video)
        == {k: v.encode("utf-8", "backslashreplace").decode() for k, v in told.items()}
    )
    assert there(picture, told)
    assert there(video, told)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "x.webp"]


def test_a_video_runs_at_its_speed(tmp_path: Path) -> None:
    video = Image.open(write_drawn(tmp_path / "x.webp", [flat(0), flat(1)], {}, fps=8))
    video.seek(1)
    video.load()
    assert video.info["duration"] == 125
    assert np.abs(np.asarray(video.convert("RGB"))[8, 8] - np.array(COLOURS[1])).max() < 12


def test_a_file_that_was_drawn_otherwise_is_not_taken_for_this_one(tmp_path: Path) -> None:
    told = {"prompt": "a", "steps": "20", "command": "x", "vpt": "1"}
    path = tmp_path / "x.png"
    assert not there(path, told)
    write_drawn(path, flat(0), told)
    assert there(path, {**told, "command": "y", "vpt": "2"})  # another way to the same
    with pytest.raises(
        ValueError, match=r"drawn otherwise \(steps '20'; now steps '30'\). Give another --out"
    ):
        there(path, {**told, "steps": "30"})
    with pytest.raises(ValueError, match="without negative; now negative 'b'"):
        there(path, {**told, "negative": "b"})
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="without prompt; now prompt 'a'"):
        there(path, told)
    flat(0).save(path, "JPEG")
    assert read_told(path) == {}


def test_the_sheet_shows_every_picture_in_its_place_and_pixels_stay_what_they_are(tmp_path: Path) -> None:
    cells = drawn(tmp_path, 4)
    grid = sheet("a title", [cells[:2], cells[2:]], {"steps": "20"})
    boxes = [found(grid, COLOURS[i]) for i in range(4)]
    assert {(b[2] - b[0], b[3] - b[1]) for b in boxes} == {(320, 320)}  # 20 times 16
    (a, b, c, d) = boxes
    assert a[1] == b[1] < c[1] == d[1]
    assert a[0] == c[0] < b[0] == d[0]
    assert d[2] <= grid.width - 16
    title = np.asarray(grid.convert("L"))[: a[1]]
    assert (title < 100).any()
    labels = [np.asarray(grid.convert("L"))[box[3] : box[3] + 24, box[0] : box[2]] for box in boxes]
    assert all((label < 100).any() for label in labels)


def test_a_column_is_wrapped_and_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    cells = drawn(tmp_path, 5, (640, 320))
    grid = sheet("a long title without an end " * 9, [[cell] for cell in cells], {})
    boxes = [found(grid, COLOURS[i]) for i in range(5)]
    assert {(b[2] - b[0], b[3] - b[1]) for b in boxes} == {(320, 160)}
    assert [sorted({b[1] for b in boxes}).index(b[1]) for b in boxes] == [0, 0, 0, 1, 1]
    dark = np.asarray(grid.convert("L")) < 128
    assert not dark[:, -16:].any()  # the title stays within the sheet


def test_of_a_video_the_frame_in_the_middle_is_shown(tmp_path: Path) -> None:
    file = write_drawn(tmp_path / "x.webp", [flat(0), flat(1), flat(2)], {})
    shown = np.asarray(Drawn(file, "", "").still)[8, 8]
    assert np.abs(shown - np.array(COLOURS[1])).max() < 12


def test_the_page_holds_the_pictures_and_links_to_the_files(tmp_path: Path) -> None:
    cells = drawn(tmp_path, 4)
    large = write_drawn(tmp_path / "large.png", flat(4, (900, 600)), {})
    video = write_drawn(tmp_path / "v.webp", [flat(0), flat(1)], {})
    cells += [Drawn(large, "large", "c"), Drawn(video, "video", "d")]
    text = page("a <my-mug>", [cells[:3], cells[3:]], {"steps": "20"}, {"command": "vpt generate 'a <b>'"})
    assert "a &lt;my-mug&gt;</h1>" in text
    assert "vpt generate &#39;a &lt;b&gt;&#39;" in text
    assert "repeat(3," in text
    assert "<script" not in text
    assert re.findall(r'<a href="([^"]+)"', text)[0] == "0%20%26%20more.png"
    assert 'alt="a &lt;b&gt; &amp; c, seed 0"' in text
    uris = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', text)
    assert [kind for kind, _ in uris] == ["png"] * 4 + ["jpeg", "webp"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in uris]
    assert [p.getpixel((0, 0)) for p in pictures[:4]] == COLOURS[:4]
    assert pictures[4].size == (640, 427)
    assert pictures[5].n_frames == 2  # type: ignore[attr-defined]
    one = page("t", [[cell] for cell in cells], {}, {})
    assert '<ol class="many">' in one
    assert one.count("<li>") == 6
