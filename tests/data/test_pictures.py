from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional as F

from vpt.data.images import UnreadableImage
from vpt.data.item import Files, Item
from vpt.data.pictures import Decoded, Pictures, eval_transform, seeded, train_transform

AUGMENTS = ["flip", "crop", "fgvc", "randaugment"]


class Counting:
    """A source of noise that counts how often it is read."""

    name, classes, multilabel = "noise", ("a", "b"), False

    def __init__(self, noise):
        self.noise, self.reads = noise, 0
        self.items = [Item(f"k{i}", i % 2, offset=i) for i in range(6)]

    def splits(self) -> dict[str, list[Item]]:
        return {"all": self.items}

    def read(self, item: Item) -> Image.Image:
        self.reads += 1
        return Image.fromarray(self.noise(item.offset, 40, 30))


@pytest.fixture
def source(noise):
    return Counting(noise)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_eval_transform_is_timms(noise, config, mode):
    config |= {"crop_mode": mode, "input_size": (3, 16, 24)}
    image = Image.fromarray(noise(0, 50, 33))
    theirs = create_transform(**config, is_training=False)
    assert torch.equal(eval_transform(config | {"num_classes": 7})(image), theirs(image))


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("size", [(40, 30), (9, 60)])
def test_training_views_have_the_inputs_size_and_vary(noise, config, augment, size):
    transform, image = train_transform(config, augment), Image.fromarray(noise(0, *size))
    views = []
    for i in range(12):
        with seeded(i):
            views.append(transform(image))
    assert {v.shape for v in views} == {(3, 16, 16)}
    assert {v.dtype for v in views} == {torch.float32}
    assert len({v.numpy().tobytes() for v in views}) >= 2


def test_flip_is_the_evaluation_picture_or_its_mirror(noise, config):
    image = Image.fromarray(noise(0))
    plain, mirrored = (eval_transform(config)(x) for x in (image, F.hflip(image)))
    seen = set()
    for i in range(20):
        with seeded(i):
            view = train_transform(config, "flip")(image)
        seen.add((torch.equal(view, plain), torch.equal(view, mirrored)))
    assert seen == {(True, False), (False, True)}
    assert torch.equal(train_transform(config, "none")(image), plain)


def test_fgvc_crops_from_eight_sevenths(config):
    config |= {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 14, 14)}
    ramp = np.tile(
        np.arange(16, dtype=np.uint8)[None, :, None] * 10, (16, 1, 3)
    )  # 16 = 14 * 8 / 7: no resizing
    starts = set()
    for i in range(40):
        with seeded(i):
            columns = (
                (train_transform(config, "fgvc")(Image.fromarray(ramp))[0, 0] * 25.5).round().int().tolist()
            )
        starts.add(min(columns))
        assert sorted(columns) == list(range(min(columns), min(columns) + 14))
    assert starts == {0, 1, 2}


def test_seeded_fixes_all_generators_and_puts_them_back():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    undisturbed = [draw(), draw()]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    first = draw()
    with seeded("a", 1):
        inside = draw()
    assert [first, draw()] == undisturbed
    with seeded("a", 1):
        assert draw() == inside
    with seeded("a", 2):
        assert draw() != inside


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_view_depends_on_seed_view_and_key_alone(source, config, augment):
    def made(**options) -> Pictures:
        return Pictures(
            source.items, Decoded(source, 2**20), train_transform(config, augment), augmented=True, **options
        )

    pictures = made(seed=3)
    forward = {(e, i): pictures[e, i]["image"] for e in range(8) for i in range(6)}
    again = made(seed=3)
    torch.rand(3)
    for place in sorted(forward, reverse=True):  # another order, other generators, another object
        assert torch.equal(again[place]["image"], forward[place])
    assert [pictures[e, 0]["view"] for e in range(4)] == [0, 1, 2, 3]
    assert any(not torch.equal(forward[e, 0], forward[0, 0]) for e in range(1, 8))
    assert any(not torch.equal(made(seed=4)[e, 0]["image"], forward[e, 0]) for e in range(8))
    fixed = made(seed=3, views=2)
    assert [fixed[e, 0]["view"] for e in range(5)] == [0, 1, 0, 1, 0]
    assert all(torch.equal(fixed[e, 1]["image"], forward[e % 2, 1]) for e in range(8))
    # the same picture elsewhere in another list keeps its views
    fewer = Pictures(
        source.items[3:], Decoded(source, 2**20), train_transform(config, augment), augmented=True, seed=3
    )
    assert torch.equal(fewer[5, 1]["image"], forward[5, 4])


def test_an_item_as_a_dictionary(source, config):
    pictures = Pictures(source.items, Decoded(source, 2**20), eval_transform(config))
    got = pictures[4, 3]
    assert {k: v for k, v in got.items() if k != "image"} == {"label": 1, "index": 3, "view": 0, "key": "k3"}
    assert torch.equal(got["image"], eval_transform(config)(source.read(source.items[3])))
    assert torch.equal(pictures[3]["image"], got["image"])
    many = Pictures(
        [Item("a", (0, 2), offset=1), Item("b", ())], Decoded(source, 2**20), eval_transform(config), 4
    )
    assert many[0]["label"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert many[1]["label"].tolist() == [0.0] * 4


def test_decoded_pictures_are_kept_within_the_budget(source):
    one = 40 * 30 * 3
    for budget, reads in ((6 * one, 6), (2 * one, 10), (one - 1, 12)):
        source.reads = 0
        decoded = Decoded(source, budget)
        for _ in range(2):
            for item in source.items:
                np.testing.assert_array_equal(
                    np.asarray(decoded.get(item)), source.noise(item.offset, 40, 30)
                )
        assert source.reads == reads


def test_lost_files_are_named(tmp_path):
    gone = Item("a/lost.png", 0, str(tmp_path / "lost.png"))
    with pytest.raises(UnreadableImage, match=r"a/lost\.png: No such file"):
        Decoded(Files("x", ("a",), False, {"all": [gone]}), 0).get(gone)


@pytest.mark.parametrize("size", [None, (1, 8, 8), (8, 8)])
def test_preprocess_without_a_usable_size_is_refused(config, size):
    config["input_size"] = size
    with pytest.raises(ValueError, match=r"Wanted: \(3, height, width\)"):
        eval_transform(config)
