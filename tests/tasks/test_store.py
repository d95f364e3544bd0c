"""The static part kept: equal to computing it, in the order of the list, in memory and on disk."""

from __future__ import annotations

import pytest
import torch

from vpt.data.module import ImageData
from vpt.encode import advance, encode
from vpt.tasks.store import fill, inputs_of


@pytest.fixture
def data(pictures, backbone):
    module = ImageData(str(pictures), batch_size=9, augment="flip", views=2)
    module.bind(backbone.preprocessing)
    return module


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_streams_equal_the_pass(data, backbone, tmp_path, where):
    pictures = data.pictures("train", augmented=True)
    stored = fill(backbone.image, "2", pictures, 2, where=where, folder=tmp_path, batch_size=10)
    assert len(stored) == len(pictures) == 36
    for view, index in ((0, 0), (1, 17), (0, 35)):
        image = pictures[view, index]
        got = stored[view + 2, index]  # epoch 2 shows view 0 again
        assert {k: got[k] for k in ("label", "index", "key")} == {
            k: image[k] for k in ("label", "index", "key")
        }
        want = advance(backbone.image, image["image"][None], {}, "2").x[0]
        assert torch.allclose(got["x"], want, atol=1e-5)
    s = inputs_of({"x": torch.stack([stored[0, i]["x"] for i in range(3)])}, stored.frame)
    images = torch.stack([pictures[0, i]["image"] for i in range(3)])
    assert torch.allclose(encode(backbone.image, s), encode(backbone.image, images), atol=1e-5)


def test_too_large_for_memory_is_left_alone(data, backbone, monkeypatch):
    monkeypatch.setattr("vpt.tasks.store.MEMORY", 1000)
    assert fill(backbone.image, "2", data.pictures("train", augmented=True), 2, where="auto") is None


def test_too_large_for_memory_goes_to_the_folder_where_reading_is_worth_it(
    data, backbone, monkeypatch, tmp_path
):
    pictures = data.pictures("train", augmented=True)
    inside = fill(backbone.image, "2", pictures, 2, where="auto", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("vpt.tasks.store.MEMORY", 1000)
    outside = fill(backbone.image, "2", pictures, 2, where="auto", folder=tmp_path)
    assert (tmp_path / "train.static").stat().st_size == inside.x.numel() * 4
    assert torch.equal(inside.x, outside.x)
    monkeypatch.setattr("vpt.tasks.store.WORTH", 1000)  # a picture's tokens are larger
    assert fill(backbone.image, "2", pictures, 2, where="auto", folder=tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_disk_needs_a_folder(data, backbone):
    with pytest.raises(ValueError, match="out=DIR"):
        fill(backbone.image, "2", data.pictures("train"), 1, where="disk")
