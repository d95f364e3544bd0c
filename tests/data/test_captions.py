"""Shards and folders of pictures with captions, read back as they were written."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.data.captioned import clean
from vpt.data.captions import open_captions
from vpt.data.item import DataError

# one line each, not blank, and not what the index writes for bytes that are no text
sentences = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n\ufeff\ufffd"), min_size=1, max_size=30
).filter(str.strip)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """By tarfile alone; a path that ends in .gz is compressed."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def told(source: object) -> dict[str, dict[str, tuple[str, ...]]]:
    return {
        split: {item.key: item.captions for item in items}
        for split, items in source.splits().items()  # type: ignore[attr-defined]
    }


@given(
    st.lists(
        st.tuples(st.lists(sentences, min_size=1, max_size=4), st.sampled_from(["txt", "json", "both"])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["tar", "tar.gz"]),
)
@settings(max_examples=40, deadline=None)
def test_shards_round_trip(tmp_path_factory, rows, end):
    folder = tmp_path_factory.mktemp("shards")
    members: dict[str, bytes] = {}
    for i, (captions, kind) in enumerate(rows):
        members[f"{i:06d}.png"] = b"picture %d" % i
        if kind in ("txt", "both"):
            lines = ["something else"] if kind == "both" else ["", *captions, " "]
            members[f"{i:06d}.txt"] = "\r\n".join(lines).encode()
        if kind in ("json", "both"):
            members[f"{i:06d}.json"] = json.dumps({"captions": captions}).encode()
    tar(folder / f"train-000000.{end}", members)
    for _ in range(2):  # the second time from the cache
        source = open_captions(folder, folder / "cache")
        items = source.splits()["train"]
        assert [item.captions for item in items] == [
            tuple(" ".join(c.split()) for c in captions) for captions, _ in rows
        ]
        assert [source.read(item) for item in items] == [b"picture %d" % i for i in range(len(rows))]
    assert (source.classes, source.multilabel, {item.label for item in items}) == ((), False, {0})


def test_one_caption_of_json(tmp_path):
    path = tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.json": b'{"caption": " a  red\\n bicycle ", "id": 3}'})
    assert told(open_captions(path)) == {"all": {"a/0": ("a red bicycle",)}}


def test_extra_shards_train_only_when_a_pattern_names_them(tmp_path):
    for split in ("train", "extra", "test"):
        tar(tmp_path / f"{split}-000000.tar", {"0.jpg": split.encode(), "0.txt": split.encode()})
    assert told(open_captions(tmp_path)) == {
        "extra": {"extra-000000/0": ("extra",)},
        "test": {"test-000000/0": ("test",)},
        "train": {"train-000000/0": ("train",)},
    }
    assert told(open_captions(f"{tmp_path}/{{train,extra,test}}-000000.tar")) == {
        "train": {"train-000000/0": ("train",), "extra-000000/0": ("extra",)},
        "test": {"test-000000/0": ("test",)},
    }
    assert told(open_captions(f"{tmp_path}/extra-000000.tar")) == {"all": {"extra-000000/0": ("extra",)}}


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (
            {"0.jpg": b"x", "1.jpg": b"y", "1.txt": b"said"},
            r"1 of 2 pictures have no caption: a/0\. Wanted: KEY.txt",
        ),
        ({"0.jpg": b"x", "0.txt": b" \n"}, "no caption: a/0"),
        ({"0.jpg": b"x", "0.json": b'{"captions": []}', "0.txt": b"said"}, "no caption: a/0"),
        (
            {"0.jpg": b"x", "0.json": b'{"captions": ["said", "  "]}'},
            "an empty caption stands with 1 of 1 pictures: a/0",
        ),
        (
            {"0.jpg": b"x", "0.json": b'{"captions": {"en": "said"}}'},
            r"0\.json has the captions {'en': 'said'}",
        ),
        ({"0.jpg": b"x", "0.json": b'{"captions": ["said", 3]}'}, r"0\.json has the captions"),
        ({"0.jpg": b"x", "0.json": b"{"}, r"0\.json is not JSON"),
        ({"0.jpg": b"x", "0.txt": b"caf\xe9"}, r"0\.txt is not in UTF-8"),
        ({"0.txt": b"said"}, "the sample '0' has no picture"),
    ],
)
def test_shards_that_are_refused(tmp_path, members, match):
    with pytest.raises(DataError, match=match):
        open_captions(tar(tmp_path / "a.tar", members))


def test_bare_keeps_pictures_without_captions_and_drops_empty_ones(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        {
            "0.jpg": b"x",
            "1.jpg": b"y",
            "1.json": b'{"captions": ["", "said"]}',
            "2.jpg": b"z",
            "2.txt": b"\n",
        },
    )
    assert told(open_captions(path, bare=True)) == {"all": {"a/0": (), "a/1": ("said",), "a/2": ()}}


names = st.sampled_from(["a.png", "b.jpg", "sub/c.png", "sub/deep er/d.webp", "train station/e.png"])


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["train", "Validation", "test"]), names),
        st.lists(sentences, min_size=1, max_size=3),
        min_size=1,
    ),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_folder_round_trip(tmp_path_factory, rows, split):
    root = tmp_path_factory.mktemp("folder")
    wanted: dict[str, dict[str, tuple[str, ...]]] = {}
    for (part, name), captions in rows.items():
        path = root / (part if split else f"part {part}") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{part} {name}".encode())
        path.with_suffix(".txt").write_bytes("\n".join(["", *captions, "\t"]).encode())
        where = {"Validation": "val"}.get(part, part) if split else "all"
        wanted.setdefault(where, {})[path.relative_to(root).as_posix()] = tuple(map(clean, captions))
    source = open_captions(root)
    assert told(source) == wanted
    for items in source.splits().values():
        assert all(source.read(item) == (root / item.key).read_bytes() for item in items)


def test_hidden_folders_and_lone_texts_are_no_pictures(tmp_path):
    for name in ("a.png", ".cache/b.png", "__MACOSX/c.png", "sub/.d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes("\ufeffsaid".encode())
    (tmp_path / "README.txt").write_text("about")
    assert told(open_captions(tmp_path)) == {"all": {"a.png": ("said",)}}


def test_folders_that_are_refused(tmp_path, plant):
    with pytest.raises(DataError, match="holds no pictures"):
        open_captions(tmp_path)
    plant(tmp_path, {"train": 2})
    (tmp_path / "train" / "0.txt").write_text("said")
    with pytest.raises(DataError, match=r"1 of 2 pictures have no caption: train/1.png.*a PICTURE.txt"):
        open_captions(tmp_path)
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(DataError, match=r"Is it one of captions\.json\? Then name that file"):
        open_captions(tmp_path)
    (tmp_path / "train" / "1.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"1\.txt cannot be read as UTF-8"):
        open_captions(tmp_path)
    (tmp_path / "train" / "1.txt").write_text("said too")
    plant(tmp_path, {"more": 1})
    with pytest.raises(DataError, match=r"holds split folders, and 1 picture\(s\) outside them: more/0.png"):
        open_captions(tmp_path)
    plant(tmp_path, {"training": 1})
    with pytest.raises(DataError, match="two folders for the split 'train'"):
        open_captions(tmp_path)


@pytest.mark.parametrize("text", ["digits", "torchvision:CIFAR10", "none/at/all"])
def test_what_has_no_captions_is_refused(text):
    with pytest.raises(DataError, match=rf"no pictures with captions at '{text}'. Wanted: WebDataset shards"):
        open_captions(text)
