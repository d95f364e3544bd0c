"""Shards: what is written is read, and what was altered is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.data.item import Item
from vpt.search.shards import BadIndex, read_label, read_vectors, stamp, whole, write_shard


def two(folder: Path) -> list[Item]:
    file = folder / "a.png"
    file.write_bytes(b"picture")
    return [Item("a", 3, str(file), captions=("one", "two")), Item("b/ü", 0, offset=7)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    items = two(tmp_path)
    vectors = np.array([[0.6, 0.8], [1, 0]], np.float32)
    write_shard(tmp_path, 4, items, vectors, added=True)
    label = read_label(tmp_path, 4)
    assert (label.ids, label.captions, label.added) == (["a", "b/ü"], [["one", "two"], []], True)
    assert label.item(0) == Item("a", 0, str(tmp_path / "a.png"), captions=("one", "two"))
    assert label.item(1) == Item("b/ü", 0, offset=7)
    assert (read_vectors(tmp_path, 4, label) == vectors.astype(np.float16)).all()
    assert whole(tmp_path, 4)
    assert not whole(tmp_path, 5)


def test_another_file_under_the_same_name_has_another_stamp(tmp_path: Path) -> None:
    item, bare = two(tmp_path)
    before = stamp(item)
    os.utime(item.file, (1, 1))
    assert before != stamp(item) != ""
    assert stamp(bare) == ""
    Path(item.file).unlink()
    assert stamp(item) == ""


def test_vectors_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    items = two(tmp_path)
    with pytest.raises(ValueError, match=r"b/ü.*NaN"):
        write_shard(tmp_path, 0, items, np.array([[1, 0], [np.nan, 1]]))
    with pytest.raises(ValueError, match="2 pictures"):
        write_shard(tmp_path, 0, items, np.zeros((3, 2)))
    assert not whole(tmp_path, 0)


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from(["000000.npy", "000000.json"]),
    at=st.floats(0, 1),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_altered_files_are_refused_or_read_as_they_were(
    which: str, at: float, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    vectors = np.array([[0.6, 0.8], [1, 0]], np.float16)
    write_shard(folder, 0, two(folder), vectors)
    path = folder / which
    data = bytearray(path.read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    if cut:
        del data[place:]
    else:
        data[place] = byte
    path.write_bytes(bytes(data))
    try:
        label = read_label(folder, 0)
        read = read_vectors(folder, 0, label)
    except BadIndex as error:
        assert "damaged" in str(error)  # noqa: PT017  or it is read
        return
    assert (read == vectors).all()


def test_a_missing_half_is_told_of(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, two(tmp_path), np.eye(2))
    label = read_label(tmp_path, 0)
    (tmp_path / "000000.npy").unlink()
    with pytest.raises(BadIndex, match=r"000000.npy.*missing"):
        read_vectors(tmp_path, 0, label)
    (tmp_path / "000000.json").unlink()
    with pytest.raises(BadIndex, match=r"000000.json.*missing"):
        read_label(tmp_path, 0)
