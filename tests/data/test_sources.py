from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

import vpt.data
from vpt.data.images import decode
from vpt.data.item import DataError
from vpt.data.sources import cache_folder, open_source


def test_kinds_are_chosen_from_the_string(tmp_path, plant, png):
    plant(tmp_path / "folder", {"a": 1, "b": 2})
    (tmp_path / "table.csv").write_text("path,label\nfolder/a/0.png,a\n")
    (tmp_path / "shards").mkdir()
    for n in range(2):
        with wds.TarWriter(f"{tmp_path}/shards/train-{n:06d}.tar") as tar:
            tar.write({"__key__": "0", "png": png(n), "cls": b"0"})
    found = {
        text: (type(source).__name__, {k: len(v) for k, v in source.splits().items()})
        for text in (
            "folder",
            "table.csv",
            "shards",
            "shards/train-{000000..000001}.tar",
            "shards/*-000001.tar",
        )
        for source in [open_source(f"{tmp_path}/{text}")]
    }
    assert found == {
        "folder": ("Files", {"all": 3}),
        "table.csv": ("Files", {"all": 1}),
        "shards": ("Files", {"train": 2}),
        "shards/train-{000000..000001}.tar": ("Files", {"train": 2}),
        "shards/*-000001.tar": ("Files", {"train": 1}),
    }
    assert open_source(tmp_path / "shards").name == "shards"
    assert open_source("digits").name == "digits"


def test_a_folder_called_digits_is_a_folder(tmp_path, plant, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plant(Path("digits"), {"one": 1})
    assert open_source("digits").classes == ("one",)


def test_a_folder_is_shards_only_where_their_names_say_so(tmp_path, plant):
    plant(tmp_path / "old.tar.d", {"a": 1, "b": 1})
    (tmp_path / "old.tar.d" / "backup-2024.tar").write_bytes(b"")
    assert open_source(tmp_path / "old.tar.d").classes == ("a", "b")


def test_nothing_there_lists_what_there_could_be(tmp_path):
    with pytest.raises(
        DataError,
        match=r"no data at .*nowhere'. Wanted: a folder of class folders, .*torchvision:NAME, coop:NAME",
    ):
        open_source(tmp_path / "nowhere")


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("VPT_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    assert cache_folder("/here") == Path("/here")
    monkeypatch.delenv("VPT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "vpt"


def test_emoji_come_with_the_package():
    source, folder = open_source("emoji"), Path(vpt.data.__file__).parent / "emoji"
    parts = source.splits()
    assert len(source.classes) == 10
    for split, least in (("train", 16), ("val", 4), ("test", 7)):
        counts = np.bincount([i.label for i in parts[split]], minlength=10)
        assert counts.min() >= least, split
    pictures = [np.asarray(decode(source.read(i))) for items in parts.values() for i in items]
    assert {p.shape for p in pictures} == {(64, 64, 3)}
    assert len({hashlib.sha256(p.tobytes()).digest() for p in pictures}) == len(pictures)
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 2e6
    text = (folder / "ATTRIBUTION.md").read_text()
    assert "Twemoji, Copyright Twitter, Inc and other contributors" in text
    assert "CC BY 4.0" in text
