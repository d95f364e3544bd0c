"""Pixel prompts against adding by slicing, output maps against counting by hand."""

from collections import Counter
from collections.abc import Iterator

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vpt.encode import encode
from vpt.methods.pixel import Pixel, frequency_map
from vpt.prompt import Context
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny

PICTURES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def resnet() -> Tower:
    return open_timm(timm.create_model("test_resnet", pretrained=False, num_classes=7))


def decided(image: Tower) -> Tower:
    """The tower with a classifier that tells pictures apart: a random network takes all for one class."""
    classifier, m = image.model.get_classifier(), image.model
    classifier.weight.normal_()
    mean = m.forward_head(m.forward_features(PICTURES), pre_logits=True).mean(0)
    classifier.bias.copy_(-mean @ classifier.weight.mT)
    return image


def frame(rows: Tensor, thickness: int, height: int, width: int) -> Tensor:
    """The authors' four strips, cut from rows that lie in reading order."""
    strips, full = rows.mT, torch.zeros(3, height, width)
    inner = height - 2 * thickness
    top, bottom = thickness * width, thickness * width
    full[:, :thickness] = strips[:, :top].view(3, thickness, width)
    full[:, height - thickness :] = strips[:, -bottom:].view(3, thickness, width)
    sides = strips[:, top:-bottom].view(3, inner, 2 * thickness)
    full[:, thickness : height - thickness, :thickness] = sides[..., :thickness]
    full[:, thickness : height - thickness, width - thickness :] = sides[..., thickness:]
    return full


@pytest.mark.parametrize("closed", [False, True])
def test_a_frame_is_added_around_the_picture(closed: bool) -> None:
    image = resnet() if closed else tiny()
    method = Pixel(image, size=4, picture=32)
    rows = method(Context())
    (values,) = rows.values()
    assert values.shape == (32 * 32 - 24 * 24, 3)
    prompted = PICTURES + frame(values, 4, 32, 32)
    wanted = image.model.forward_head(image.model.forward_features(prompted), pre_logits=True)
    torch.testing.assert_close(encode(image, PICTURES, rows), wanted, rtol=0, atol=2e-6)
    features = encode(image, PICTURES, rows)
    (features * torch.randn(features.shape[1])).sum().backward()
    assert method.image_prompt.table.rows.grad.abs().amax(-1).min() > 0
    assert all(p.grad is None for p in image.model.parameters())


def test_a_patch_lies_at_the_top_left() -> None:
    image = tiny()
    rows = Pixel(image, kind="patch", size=5)(Context())
    prompted = PICTURES.clone()
    prompted[:, :, :5, :5] += next(iter(rows.values())).mT.view(3, 5, 5)
    torch.testing.assert_close(encode(image, PICTURES, rows), encode(image, prompted), rtol=0, atol=2e-6)


def test_a_random_patch_lies_at_one_place_for_the_batch_and_moves() -> None:
    image = tiny()
    rows = Pixel(image, kind="random-patch", size=30)(
        Context()
    )  # places 0 and 1 only: the last is never drawn
    patch = next(iter(rows.values())).mT.view(3, 30, 30)
    wanted = {}
    for top in (0, 1):
        for left in (0, 1):
            prompted = PICTURES.clone()
            prompted[:, :, top : top + 30, left : left + 30] += patch
            wanted[top, left] = encode(image, prompted)
    torch.manual_seed(0)
    seen = Counter()
    for _ in range(40):
        got = encode(image, PICTURES, rows)
        seen[
            next(place for place, features in wanted.items() if torch.allclose(got, features, atol=2e-6))
        ] += 1
    assert set(seen) == set(wanted)


def test_size_and_start_are_the_published_ones() -> None:
    full = open_timm(timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1))
    method = Pixel(full)
    assert method.image_prompt.table.rows.numel() == 69_840  # as the authors count
    assert abs(method.image_prompt.table.rows.std() - 1) < 0.01
    assert Pixel(tiny(), kind="patch").image_prompt.table.rows.shape == (1, 4 * 4, 3)
    assert not Pixel(tiny(), init="zeros").image_prompt.table.rows.any()
    assert Pixel(resnet(), size=1).image_prompt.table.rows.shape[1] == 4 * 160 - 4  # timm says 160 pixels


@pytest.mark.parametrize("size", [0, 17])
def test_sizes_that_do_not_fit_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size} does not fit pictures of 32 x 32. Give 1 to 16"):
        Pixel(tiny(), size=size)


def test_a_network_that_hides_its_picture_size_is_asked_for_it() -> None:
    image = resnet()
    del image.model.pretrained_cfg
    with pytest.raises(ValueError, match="Give picture= in pixels"):
        Pixel(image)


@pytest.mark.parametrize("mapping", ["frequency", "iterative", "full"])
def test_mappings_need_a_classifier(mapping: str) -> None:
    with pytest.raises(ValueError, match=r"0 classes"):
        Pixel(tiny(num_classes=0), mapping=mapping)


def batches() -> Iterator[dict[str, Tensor]]:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for part in (slice(0, 4), slice(4, 6)):
        yield {"image": PICTURES[part], "label": labels[part]}


def counted(image: Tower, method: Pixel) -> Tensor:
    """The map of the pictures under the prompt, by timm's own forward and a dictionary."""
    (values,) = method(Context()).values()
    seen = image.model(PICTURES + frame(values, 4, 32, 32)).argmax(-1).tolist()
    pairs = Counter(zip(seen, [0, 1, 2, 0, 1, 2], strict=True))
    return brute_force([[pairs[source, label] for label in range(3)] for source in range(7)], 2)


def brute_force(counts: list[list[int]], per_class: int) -> Tensor:
    """Again and again the largest count whose source is free and whose class still wants one."""
    sources, classes = len(counts), len(counts[0])
    weight = torch.zeros(classes, sources)
    for _ in range(per_class * classes):
        free = [
            (-counts[s][k], s, k)
            for s in range(sources)
            for k in range(classes)
            if not weight[:, s].any() and int((weight[k] > 0).sum()) < per_class
        ]
        _, source, label = min(free)
        weight[label, source] = 1 / per_class
    return weight


@pytest.mark.parametrize("mapping", ["frequency", "iterative"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_counted_map(mapping: str, closed: bool) -> None:
    with torch.no_grad():
        image = decided(resnet() if closed else tiny(num_classes=7))
    method = Pixel(image, size=4, picture=32, mapping=mapping, per_class=2)
    assert method.output == "logits"
    head = method.head(7, 3)
    assert not any(p.requires_grad for p in head.parameters())
    method.start(image, batches, head)
    first = counted(image, method)
    assert torch.equal(head.weight, first)
    assert not head.bias.any()
    with torch.no_grad():
        while torch.equal(counted(image, method), first):  # another prompt, sooner or later another count
            method.image_prompt.table.rows.normal_(std=30)
    method.after_epoch(1, 2, image, batches, head)
    assert torch.equal(head.weight, counted(image, method) if mapping == "iterative" else first)


@given(st.integers(1, 3), st.data())
def test_frequency_map_is_the_greedy_choice(per_class: int, data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 3))
    sources = data.draw(st.integers(per_class * classes, 9))
    cell = st.integers(0, 3)
    row = st.lists(cell, min_size=classes, max_size=classes)
    counts = data.draw(st.lists(row, min_size=sources, max_size=sources))
    assert torch.equal(frequency_map(torch.tensor(counts), per_class), brute_force(counts, per_class))


def test_the_full_map_learns_from_bias_zero() -> None:
    image = tiny(num_classes=7)
    method = Pixel(image, mapping="full")
    head = method.head(7, 3)
    assert not head.bias.any()
    assert all(p.requires_grad for p in head.parameters())
    before = head.weight.clone()
    method.start(image, batches, head)
    method.after_epoch(1, 2, image, batches, head)
    assert torch.equal(head.weight, before)


def test_too_many_classes_and_several_labels_are_refused() -> None:
    image = tiny(num_classes=7)
    method = Pixel(image, mapping="frequency", per_class=3)
    with pytest.raises(ValueError, match="3 classes x per_class=3 are more than the 7"):
        method.head(7, 3)
    many = [{"image": PICTURES, "label": torch.ones(6, 3)}]
    with pytest.raises(ValueError, match="counts one label a picture"):
        method.start(image, lambda: many, nn.Linear(7, 2))
