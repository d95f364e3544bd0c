from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vpt.data.bundled import Digits, TorchVision
from vpt.data.images import decode
from vpt.data.item import DataError


def test_digits_are_scikit_learns():
    digits, theirs = Digits(), load_digits()
    items = digits.splits()["all"]
    assert digits.classes == tuple("0123456789")
    assert [i.label for i in items] == theirs.target.tolist()
    got = np.stack([np.asarray(decode(digits.read(i)))[..., 0] for i in items])
    np.testing.assert_allclose(got, theirs.images * 255 / 16, atol=0.51)


def idx(values: np.ndarray) -> bytes:
    """The file format of MNIST."""
    return (
        struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        + values.astype(np.uint8).tobytes()
    )


def test_a_set_with_train_true_and_false(tmp_path):
    stream, raw = np.random.default_rng(0), tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {split: stream.integers(0, 256, (n, 28, 28)) for split, n in (("train", 12), ("t10k", 10))}
    for split, values in pixels.items():
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(values))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(len(values)) % 10))
        (raw / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b""))
    source = TorchVision("FashionMNIST", tmp_path)
    parts = source.splits()
    assert source.classes[:2] == ("T-shirt/top", "Trouser")
    assert {split: [i.label for i in items] for split, items in parts.items()} == {
        "train": [*range(10), 0, 1],
        "test": list(range(10)),
    }
    assert parts["test"][3].key == "test/000003"
    np.testing.assert_array_equal(np.asarray(source.read(parts["test"][3])), pixels["t10k"][3])


def test_a_set_with_train_val_and_test_by_name(tmp_path, png):
    root = tmp_path / "dtd" / "dtd"
    for name in ("banded", "dotted"):
        (root / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "images" / name / f"{name}_{i}.jpg")
    (root / "labels").mkdir()
    for i, split in enumerate(("train", "val", "test")):
        (root / "labels" / f"{split}1.txt").write_text(f"banded/banded_{i}.jpg\ndotted/dotted_{i}.jpg\n")
    source = TorchVision("DTD", tmp_path)
    assert source.classes == ("banded", "dotted")
    labels = {split: [i.label for i in items] for split, items in source.splits().items()}
    assert labels == {"train": [0, 1], "val": [0, 1], "test": [0, 1]}


def test_a_set_with_trainval(tmp_path):
    root = tmp_path / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split, n in (("trainval", 2), ("test", 1)):
        lines = []
        for i, breed in enumerate(("Abyssinian", "yorkshire_terrier")):
            for j in range(n):
                Image.new("RGB", (8, 8)).save(root / "images" / f"{breed}_{split}{j}.jpg")
                lines.append(f"{breed}_{split}{j} {i + 1} 1 1")
        (root / "annotations" / f"{split}.txt").write_text("\n".join(lines))
    source = TorchVision("OxfordIIITPet", tmp_path)
    assert {split: len(items) for split, items in source.splits().items()} == {"train": 4, "test": 2}
    assert source.classes == ("Abyssinian", "Yorkshire Terrier")


def test_a_set_without_splits(tmp_path, plant):
    plant(tmp_path / "eurosat" / "2750", {"Forest": 2, "River": 1})
    for path in sorted((tmp_path / "eurosat").rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    source = TorchVision("EuroSAT", tmp_path)
    assert source.classes == ("Forest", "River")
    assert [i.label for i in source.splits()["all"]] == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("CIFAR11", "no data set 'CIFAR11'. Close names: CIFAR10"),
        ("EMNIST", r"not a plain classification set \(it needs \['split'\]\)"),
        ("FakeData", "not a plain classification set"),
        ("Kinetics", "not a plain classification set"),
    ],
)
def test_refusals(tmp_path, name, match):
    with pytest.raises(DataError, match=match):
        TorchVision(name, tmp_path)


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    import torchvision.datasets as sets

    def offline(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sets.CIFAR10, "download", offline)
    with pytest.raises(DataError, match=r"torchvision:CIFAR10 is not under .*no route to host.*by hand"):
        TorchVision("CIFAR10", Path(tmp_path))
