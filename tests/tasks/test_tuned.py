"""A prompt set bound to its backbone: what it predicts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

import vpt
from vpt.data.images import UnreadableImage
from vpt.encode import encode
from vpt.tasks.tune import tune

QUIET = {"progress": False, "device": "cpu", "precision": "float32", "batch_size": 9}


@pytest.fixture
def tuned(backbone, pictures):
    return tune(backbone, str(pictures), "vpt-deep", epochs=2, length=3, **QUIET)


def test_logits_are_the_head_on_the_encoded_features(tuned, backbone):
    images = torch.randn(3, 3, 32, 32)
    head = tuned.prompts.head
    want = encode(backbone.image, images, tuned.rows) @ head["weight"].T + head["bias"]
    assert torch.allclose(tuned.logits(images), want, atol=1e-5)
    assert torch.equal(tuned.encode_image(images), encode(backbone.image, images, tuned.rows))


def test_predict_takes_paths_and_pictures_in_any_batch(tuned, pictures):
    files = sorted(map(str, (pictures / "test").rglob("*.png")))
    together = tuned.predict(files, batch_size=32, top=3)
    assert [p.picture for p in together] == files
    for one, p in zip(files, together, strict=True):
        (alone,) = tuned.predict(Image.open(one), top=3)
        assert alone.label == p.label
        assert alone.probability == pytest.approx(p.probability, abs=1e-5)
        assert sum(p.scores.values()) == pytest.approx(1, abs=1e-5)
        assert list(p.scores.values()) == sorted(p.scores.values(), reverse=True)


def test_an_unreadable_picture_is_named(tuned, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage, match=r"broken\.jpg"):
        tuned.predict(tmp_path / "broken.jpg")


def test_another_backbone_is_refused_with_both_values(tuned, backbone, tmp_path):
    path = tuned.save(tmp_path / "p.safetensors")
    with torch.no_grad():
        backbone.image.model.blocks[1].mlp.fc1.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"fingerprint [0-9a-f]{16}.*has [0-9a-f]{16}"):
        vpt.load_prompts(path, backbone, device="cpu")


def test_another_preprocessing_is_refused(tuned, backbone, tmp_path):
    path = tuned.save(tmp_path / "p.safetensors")
    other = replace(backbone, preprocessing={**backbone.preprocessing, "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(ValueError, match="fingerprint"):
        vpt.load_prompts(path, other, device="cpu")


def test_the_backbone_is_loaded_by_the_name_in_the_file(pictures, tmp_path):
    starter = vpt.load("starter/vit-mini")
    tuned = tune(starter, str(pictures), "linear", epochs=1, shots=2, out=str(tmp_path), **QUIET)
    again = vpt.load_prompts(tmp_path / "baseline.safetensors", device="cpu")
    files = sorted((pictures / "test").rglob("*.png"))[:4]
    assert [p.label for p in again.predict(files)] == [p.label for p in tuned.predict(files)]
