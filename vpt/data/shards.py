"""WebDataset shards with random access: one pass indexes them, and copies the pictures only if it must.

Pictures in a plain local .tar are read where they lie. Those of compressed or remote shards are copied once,
still encoded, into one file of the cache folder; the next run finds it there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlparse

from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from vpt.data.item import DataError, Files, Item, some, split_name
from vpt.data.labels import check_labels, distinct, encode, read_class_names

PICTURES = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("cls", "txt", "json")


class _Member(NamedTuple):
    key: str
    ext: str
    file: str  # the tar that holds it, "" for the cache's copy
    offset: int
    size: int
    text: str  # of cls, txt and json


def open_shards(data: str | list[str], cache: Path) -> Files:
    """Samples of shards named by a list of paths, or by a pattern with {a..b}, * or ::, paths and URLs alike.

    Members of a sample: a picture (jpg, jpeg, png, webp); the label, ``cls`` (index) with the class name in
    ``txt``, in ``json`` under "name", or in a classes.json beside local shards; without ``cls``, the
    name is the label.
    Shards called SPLIT-NNNNNN are that split. Raises DataError.
    """
    found = read_shards(data, cache)
    folder = Path(found.urls[0]).parent if _local(found.urls[0]) else None
    where = some(found.urls, 2)
    classes, labels = _labels(found, folder, where)
    items = [found.item(sample, label) for sample, label in zip(found.samples, labels, strict=True)]
    parts: dict[str, list[Item]] = {}
    for sample, item in zip(found.samples, items, strict=True):
        parts.setdefault(found.split(sample), []).append(item)
    check_labels(items, classes, where)
    return Files(found.name, classes, False, parts)


@dataclass(frozen=True)
class Shards:
    """urls: of the shards. samples: {key, shard, file, offset, size, cls, txt, json}, where shard is the place in
    urls, and the texts are "" where there are none."""

    name: str
    urls: list[str]
    samples: list[dict[str, Any]]

    def item(self, sample: dict[str, Any], label: int = 0) -> Item:
        """The picture of a sample."""
        return Item(self.key(sample), label, sample["file"], sample["offset"], sample["size"])

    def key(self, sample: dict[str, Any]) -> str:
        """SHARD/KEY: keys recur between the shards of several splits."""
        return f"{_stem(self.urls[sample['shard']])}/{sample['key']}"

    def split(self, sample: dict[str, Any]) -> str:
        """What the name of the sample's shard begins with; "all" where none begins with a split's name."""
        return self._splits[sample["shard"]]

    @cached_property
    def _splits(self) -> list[str]:
        prefixes = [re.sub(r"[-_.]?\d*$", "", _stem(url)) for url in self.urls]
        known = any(map(split_name, prefixes))
        return [(split_name(prefix) or prefix) if known else "all" for prefix in prefixes]


def read_shards(data: str | list[str], cache: Path) -> Shards:
    """Every sample that has a picture, with its texts as they are. Raises DataError; see ``open_shards``."""
    urls = data if isinstance(data, list) else _expand(data)
    samples = _index(urls, cache)
    if not samples:
        raise DataError(f"the shards {some(urls)} hold no samples. Wanted: members KEY.jpg and KEY.cls.")
    name = Path(urls[0]).parent.name if isinstance(data, list) else "/".join(data.split("/")[-2:])
    found = Shards(name, urls, samples)
    if len(set(map(found.key, samples))) < len(samples):
        raise DataError(
            f"some sample keys of {some(urls)} occur twice. Give each shard its own name, and each "
            "sample its own key."
        )
    return found


def _expand(pattern: str) -> list[str]:
    urls: list[str] = []
    for url in expand_urls(pattern):
        found = sorted(glob.glob(url)) if _local(url) and re.search(r"[*?[]", url) else [url]
        if not found:
            raise DataError(f"no shard matches {url!r}. Check the folder and the pattern.")
        urls += found
    missing = [url for url in urls if _local(url) and not os.path.isfile(url)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(urls)} shards are not there: {some(missing)}. "
            f"Check the pattern {pattern!r}."
        )
    return urls


def _local(url: str) -> bool:
    return urlparse(url).scheme == ""


def _stem(url: str) -> str:
    return re.sub(r"\.tar.*$", "", url.rstrip("/").rsplit("/", 1)[-1])


def _index(urls: list[str], cache: Path) -> list[dict[str, Any]]:
    """Samples, as ``Shards`` has them, in shard order, from the cache if it has them."""
    print_ = [[url, os.stat(url).st_size, os.stat(url).st_mtime_ns] if _local(url) else [url] for url in urls]
    name = hashlib.sha256(json.dumps([2, print_]).encode()).hexdigest()[:24]
    index, blob = cache / f"{name}.json", cache / f"{name}.bin"
    if index.is_file():
        kept = json.loads(index.read_text(encoding="utf-8"))
        if (blob.stat().st_size if blob.is_file() else 0) == kept["bytes"]:
            return kept["samples"]
    cache.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=cache, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "wb") as copy:
            samples = [s for i, url in enumerate(urls) for s in _samples(url, i, str(blob), copy)]
            copied = copy.tell()
        if copied:
            os.replace(temporary, blob)
        Path(f"{temporary}.json").write_text(
            json.dumps({"bytes": copied, "samples": samples}), encoding="utf-8"
        )
        os.replace(f"{temporary}.json", index)
    finally:
        for left in (temporary, f"{temporary}.json"):
            Path(left).unlink(missing_ok=True)
    return samples


def _samples(url: str, shard: int, blob: str, copy: BinaryIO) -> Iterator[dict[str, Any]]:
    try:
        for key, group in groupby(_members(url, copy), key=lambda member: member.key):
            members = {member.ext: member for member in group}
            picture = next((members[ext] for ext in PICTURES if ext in members), None)
            if picture is None:
                raise DataError(
                    f"{url}: the sample {key!r} has no picture, only {some(members)}. Wanted: one of "
                    f"{', '.join(PICTURES)}; the members of a sample must be neighbours."
                )
            yield {
                "key": key,
                "shard": shard,
                "file": picture.file or blob,
                "offset": picture.offset,
                "size": picture.size,
                **{ext: members[ext].text if ext in members else "" for ext in _TEXTS},
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"the shard {url} cannot be read ({error}). It may be cut short: fetch or write it anew."
        ) from error


def _members(url: str, copy: BinaryIO) -> Iterator[_Member]:
    in_place = _local(url) and not _compressed(url)
    stream = open(url, "rb") if in_place else gopen(_remote(url))  # noqa: SIM115 (both are closed below)
    with stream, tarfile.open(fileobj=stream, mode="r:" if in_place else "r|*") as tar:
        for info in tar:
            key, ext = base_plus_ext(info.name)
            ext = (ext or "").lower()
            if not info.isfile() or ext not in (*PICTURES, *_TEXTS):
                continue
            if ext in PICTURES and in_place:
                yield _Member(key, ext, os.path.abspath(url), info.offset_data, info.size, "")
                continue
            data = tar.extractfile(info).read()  # type: ignore[union-attr]
            if ext in PICTURES:
                offset = copy.tell()
                copy.write(data)
                yield _Member(key, ext, "", offset, len(data), "")
            else:
                yield _Member(key, ext, "", 0, 0, data.decode("utf-8", "replace"))
        while stream.read(2**20):  # the padding: a pipe that is closed early counts as failed
            pass


def _compressed(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"(\xb5/\xfd"))


def _remote(url: str) -> str:
    # webdataset has readers for http(s), gs, hf, ftp and pipes, but none for s3
    return f"pipe:aws s3 cp {quote(url)} -" if url.startswith("s3://") else url


def json_in(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample's KEY.json, {} where it has none or another kind of value. Raises DataError."""
    try:
        found = json.loads(sample["json"]) if sample["json"] else {}
    except ValueError as error:
        raise DataError(f"{sample['key']}.json is not JSON ({error}). Correct or remove it.") from error
    return found if isinstance(found, dict) else {}


def _name(sample: dict[str, Any]) -> str:
    name = sample["txt"].strip() or json_in(sample).get("name", "")
    return name.strip() if isinstance(name, str) else ""


def _labels(found: Shards, folder: Path | None, where: str) -> tuple[tuple[str, ...], list[int]]:
    samples = [(s["key"], s["cls"].strip(), _name(s)) for s in found.samples]
    word = 1 if any(cls for _, cls, _ in samples) else 2
    bare = [s[0] for s in samples if not s[word]]
    if bare:
        raise DataError(
            f"{where}: {len(bare)} of {len(samples)} samples have no label: {some(bare)}. Wanted: KEY.cls "
            'with the class index, or the class name in KEY.txt or in KEY.json under "name".'
        )
    if word == 2:
        classes, numbers = encode([[name] for _, _, name in samples], folder, where)
        return classes, [n[0] for n in numbers]
    wrong = [f"{key} has {cls!r}" for key, cls, _ in samples if not re.fullmatch(r"[+-]?\d+", cls)]
    if wrong:
        raise DataError(f"{where}: cls must be a class index; {some(wrong)}.")
    classes, numbers = encode([[cls] for _, cls, _ in samples], folder, where)
    if folder is None or read_class_names(folder) is None:
        said: dict[int, set[str]] = {}
        for (_, _, name), (label,) in zip(samples, numbers, strict=True):
            said.setdefault(label, set()).add(name)
        # a txt that differs within a class is a caption, not the class name
        if all(len(names) == 1 and "" not in names for names in said.values()):
            classes = distinct(tuple(said.get(i, {str(i)}).copy().pop() for i in range(len(classes))), where)
    return classes, [n[0] for n in numbers]
