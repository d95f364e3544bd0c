from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt.data.item import DataError
from vpt.data.shards import open_shards

Sample = dict[str, bytes]


def write(path: Path, samples: list[Sample]) -> Path:
    """By webdataset's own writer; .gz compresses."""
    with wds.TarWriter(str(path)) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def sample(key: str, picture: bytes, ext: str = "png", **texts: object) -> Sample:
    return {"__key__": key, ext: picture} | {k: str(v).encode() for k, v in texts.items()}  # type: ignore[dict-item]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["jpg", "jpeg", "png", "webp"]),
            st.binary(min_size=1, max_size=2000),
            st.integers(0, 2),
        ),
        min_size=3,
        max_size=7,
    ),
    st.sampled_from(["tar", "tar.gz"]),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory, rows, end, shards):
    folder = tmp_path_factory.mktemp("shards")
    samples = [
        sample(f"{i:06d}", data, ext, cls=label, extra="x") for i, (ext, data, label) in enumerate(rows)
    ]
    for n in range(shards):
        write(folder / f"some-{n:06d}.{end}", samples[n::shards])
    pattern = f"{folder}/some-{{000000..{shards - 1:06d}}}.{end}"
    for _ in range(2):  # the second time from the cache
        source = open_shards(pattern, folder / "cache")
        items = source.splits()["all"]
        assert [i.label for i in items] == [label for n in range(shards) for _, _, label in rows[n::shards]]
        assert [source.read(i) for i in items] == [
            data for n in range(shards) for _, data, _ in rows[n::shards]
        ]
    # webdataset's own reader sees the same
    theirs = wds.WebDataset(pattern, shardshuffle=False, empty_check=False)
    assert [int(s["cls"]) for s in theirs] == [i.label for i in items]


def test_plain_local_tars_are_not_copied(tmp_path):
    write(tmp_path / "a.tar", [sample("0", b"zero", cls=0), sample("1", b"one", cls=1)])
    source = open_shards(f"{tmp_path}/a.tar", tmp_path / "cache")
    assert {Path(i.file).name for i in source.splits()["all"]} == {"a.tar"}
    assert not list((tmp_path / "cache").glob("*.bin"))


def test_changed_shard_is_read_anew_and_lost_copy_is_made_again(tmp_path):
    path, cache = tmp_path / "a.tar.gz", tmp_path / "cache"
    write(path, [sample("0", b"old", cls=0)])
    assert open_shards(str(path), cache).read(open_shards(str(path), cache).splits()["all"][0]) == b"old"
    for blob in cache.glob("*.bin"):
        blob.write_bytes(b"")
    assert open_shards(str(path), cache).read(open_shards(str(path), cache).splits()["all"][0]) == b"old"
    write(path, [sample("0", b"newer", cls=0)])
    source = open_shards(str(path), cache)
    assert source.read(source.splits()["all"][0]) == b"newer"
    assert not [p for p in cache.iterdir() if p.name.startswith(".")]


def test_splits_by_the_shards_names(tmp_path):
    for split, n in (("train", 3), ("valid", 2), ("test", 1), ("extra", 1)):
        write(
            tmp_path / f"{split}-000000.tar",
            [sample(f"{i:06d}", f"{split}{i}".encode(), cls=i % 2) for i in range(n)],
        )
    parts = open_shards(sorted(map(str, tmp_path.glob("*.tar"))), tmp_path / "cache").splits()
    assert {split: len(items) for split, items in parts.items()} == {
        "train": 3,
        "val": 2,
        "test": 1,
        "extra": 1,
    }
    assert parts["val"][1].key == "valid-000000/000001"  # keys recur between splits, these do not


def names(tmp_path: Path, samples: list[Sample]) -> tuple[tuple[str, ...], list[object]]:
    path = write(tmp_path / "a.tar", samples)
    source = open_shards(str(path), tmp_path / "cache")
    return source.classes, [i.label for i in source.splits()["all"]]


def test_class_names_from_txt_json_or_neither(tmp_path):
    rows = [(1, "dog"), (0, "cat"), (1, "dog")]
    keyed = [(f"{i}", b"x", cls, name) for i, (cls, name) in enumerate(rows)]
    assert names(tmp_path, [sample(k, p, cls=c, txt=n) for k, p, c, n in keyed]) == (
        ("cat", "dog"),
        [1, 0, 1],
    )
    as_json = [sample(k, p, cls=c, json=json.dumps({"name": n})) for k, p, c, n in keyed]
    assert names(tmp_path, as_json) == (("cat", "dog"), [1, 0, 1])
    assert names(tmp_path, [sample(k, p, txt=n) for k, p, c, n in keyed]) == (("cat", "dog"), [1, 0, 1])
    captions = [sample(k, p, cls=c, txt=f"picture {k}") for k, p, c, n in keyed]
    assert names(tmp_path, captions) == (("0", "1"), [1, 0, 1])


def test_classes_json_beside_the_shards_wins(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps([{"index": i, "name": n} for i, n in enumerate("abc")]))
    assert names(tmp_path, [sample("0", b"x", cls=2, txt="other")]) == (("a", "b", "c"), [2])
    with pytest.raises(DataError, match=r"outside the range 0..2 .*a/0 has 3"):
        names(tmp_path, [sample("0", b"x", cls=3)])


def test_urls_and_pipes_through_webdataset(tmp_path):
    write(tmp_path / "a.tar", [sample(str(i), b"x" * 50_000, cls=i % 2) for i in range(4)])
    handler = partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        for text in (url, f"pipe:cat {tmp_path}/a.tar", f"file:{tmp_path}/a.tar"):
            source = open_shards(text, tmp_path / "cache")
            assert [source.read(i) for i in source.splits()["all"]] == [b"x" * 50_000] * 4
        with pytest.raises(DataError, match=r"/none\.tar cannot be read"):
            open_shards(url.replace("/a.tar", "/none.tar"), tmp_path / "cache")
        server.shutdown()
    with pytest.raises(DataError, match=r"cannot be read"):
        open_shards(f"pipe:cat {tmp_path}/a.tar; exit 3", tmp_path / "cache")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_cut_shards_are_refused_and_leave_nothing_behind(tmp_path, end):
    path = write(tmp_path / f"a.{end}", [sample(str(i), bytes(range(256)) * 40, cls=i) for i in range(3)])
    data = path.read_bytes()
    for keep in (len(data) // 2, 100, 0):
        path.write_bytes(data[:keep])
        with pytest.raises(DataError, match=rf"a\.{end}"):
            open_shards(str(path), tmp_path / "cache")
        assert not list((tmp_path / "cache").glob("*.bin"))
        assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


def test_gzip_under_a_plain_name_and_plain_under_gz(tmp_path):
    plain = write(tmp_path / "a.tar", [sample("0", b"x", cls=0)]).read_bytes()
    (tmp_path / "b.tar").write_bytes(gzip.compress(plain))
    (tmp_path / "c.tar.gz").write_bytes(plain)
    for name in ("b.tar", "c.tar.gz"):
        source = open_shards(str(tmp_path / name), tmp_path / "cache")
        assert source.read(source.splits()["all"][0]) == b"x"


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        ([{"__key__": "0", "cls": b"1"}], r"the sample '0' has no picture, only cls"),
        ([sample("0", b"x", cls=0), sample("1", b"x")], r"1 of 2 samples have no label: 1"),
        ([sample("0", b"x", json='{"captions": []}')], "have no label: 0"),
        ([sample("0", b"x", cls="dog")], r"cls must be a class index; 0 has 'dog'"),
        ([sample("0", b"x", cls=-1)], "integer labels -1..-1"),
        ([sample("0", b"x", json="{")], r"0\.json is not JSON"),
        ([sample("0", b"x", cls=0), sample("1", b"y", cls=1), sample("0", b"z", cls=0)], "occur twice"),
    ],
)
def test_refusals(tmp_path, samples, match):
    with pytest.raises(DataError, match=match):
        names(tmp_path, samples)


def test_empty_shards_and_absent_ones_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    for text, match in [
        (f"{tmp_path}/a.tar", "hold no samples"),
        (f"{tmp_path}/b-*.tar", "no shard matches"),
        (f"{tmp_path}/b-{{0..3}}.tar", "4 of 4 shards are not there"),
    ]:
        with pytest.raises(DataError, match=match):
            open_shards(text, tmp_path / "cache")
