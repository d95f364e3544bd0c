"""Rewards: likeness against the plain way of writing it, refusals, and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

import vpt
from vpt.objectives.reward import Likeness, Reward, prepared, scores
from vpt.towers.backbone import Backbone

PROMPTS = ["a red circle", "a blue square on a white background"]


@pytest.fixture(scope="module")
def clip() -> Backbone:
    return vpt.load("starter/clip-mini")


def smooth(seed: int, width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (24, 40)])
@pytest.mark.parametrize(
    "change", [{}, {"crop_pct": 0.875}, {"interpolation": "bilinear"}, {"crop_mode": "squash"}], ids=str
)
def test_pictures_are_prepared_as_the_network_reads_files(
    clip: Backbone, size: tuple[int, int], change: dict[str, object]
) -> None:
    config = {**clip.preprocessing, **change}
    from vpt.data.pictures import eval_transform

    picture = smooth(1, *size)
    theirs = eval_transform(config)(picture)
    ours = prepared(to_tensor(picture)[None], config)[0]
    assert ours.shape == theirs.shape
    # Pillow rounds to whole numbers between and behind its two passes
    step = 1 / 255 / min(config["std"])
    assert (ours - theirs).abs().max() <= 3 * step


def test_likeness_is_the_cosine_of_the_networks_features(clip: Backbone) -> None:
    pictures = torch.stack([to_tensor(smooth(seed, 48, 48)) for seed in (1, 2)]).requires_grad_()
    tuned = vpt.Tuned(
        clip, vpt.PromptSet(about={"task": "retrieve", "names": {"sentence": "{}", "class_specific": False}})
    )
    with torch.no_grad():
        seen = tuned.encode_image(prepared(pictures, clip.preprocessing), normalize=True)
        said = tuned.encode_text(PROMPTS, normalize=True)
        fixed = tuned.encode_text("a green star", normalize=True)
    own = Likeness(clip)(pictures, PROMPTS)
    torch.testing.assert_close(own, (seen * said).sum(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        Likeness(clip, "a green star")(pictures, PROMPTS), (seen * fixed).sum(-1), rtol=1e-4, atol=1e-5
    )
    (gradient,) = torch.autograd.grad(own.sum(), pictures)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_a_picture_is_most_like_itself(clip: Backbone) -> None:
    shown = [smooth(seed, 48, 48) for seed in (1, 2, 3)]
    found = Likeness(clip, picture=shown[1])(torch.stack([to_tensor(p) for p in shown]), [""] * 3)
    assert found.argmax() == 1
    assert found[1] > 0.99


def test_a_prompt_longer_than_the_context_is_read_without_its_last_words(clip: Backbone) -> None:
    pictures = torch.rand(1, 3, 32, 32)
    assert torch.isfinite(Likeness(clip)(pictures, ["a red circle " * 60])).all()


def test_words_need_a_text_tower(tower: vpt.tower.Tower) -> None:
    with pytest.raises(ValueError, match="no text tower"):
        Likeness(Backbone("timm/tiny", {"image": tower}, {}, "timm"))


def redness(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    return pictures[:, 0].mean((1, 2))


class Painter:
    """Draws the seed's share of red."""

    def __init__(self) -> None:
        self.level = torch.tensor(0.25, requires_grad=True)

    def draw(self, seeds: Tensor, prompts: Sequence[str], *, last: int | None = None) -> Tensor:
        return (self.level * seeds[:, None, None, None].float()).expand(-1, 3, 4, 4)

    def said(self, prompt: str) -> str:
        return prompt.replace("<my-mug>", "mug")

    def seen(self, seeds: Tensor, rewards: Tensor) -> Tensor:
        return rewards

    def strayed(self) -> Tensor:
        return (self.level - 1) ** 2


def test_the_loss_is_less_reward_and_more_straying() -> None:
    model, asked = Painter(), []

    def judge(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        asked.extend(prompts)
        return redness(pictures, prompts)

    objective = Reward(judge, ["a <my-mug>", "a cat"], ["a dog"], near=0.5)
    batch = {"index": torch.tensor([1, 0])}
    found, loss = objective.step(model, torch.tensor([1, 3]), batch, 0)
    assert asked == ["a cat", "a mug"]
    assert torch.equal(found, torch.tensor([0.25, 0.75]))
    (gradient,) = torch.autograd.grad(loss(found), model.level)
    assert float(loss(found).detach()) == pytest.approx(0.5 * 0.75**2 - 0.5)
    assert float(gradient) == pytest.approx(0.5 * 2 * -0.75 - 2)
    metric = objective.metric()
    objective.observe(metric, model, torch.tensor([2, 4]), {"index": torch.tensor([0, 0])})
    assert asked[2:] == ["a dog"] * 2
    assert float(objective.result(metric, model)["reward"]) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        (lambda p, t: torch.tensor([1.0, float("nan")]), "nan for the prompt 'b'"),
        (lambda p, t: [1.0, float("inf")], "inf for the prompt 'b'"),
        (lambda p, t: torch.zeros(2, 1), r"shape \[2, 1\] for 2 pictures"),
        (lambda p, t: 1.0, r"shape \[\] for 2 pictures"),
    ],
)
def test_what_is_no_finite_number_a_picture_is_refused(judge: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        scores(judge, torch.zeros(2, 3, 4, 4), ["a", "b"])  # type: ignore[arg-type]


def test_numbers_of_any_kind_are_taken() -> None:
    for found in ([1, 2], np.array([1.0, 2.0]), torch.tensor([1, 2])):
        assert torch.equal(
            scores(lambda p, t, f=found: f, torch.zeros(2, 3, 4, 4), ["a", "b"]), torch.tensor([1.0, 2.0])
        )


def test_a_reward_without_gradient_is_refused_before_anything_is_drawn() -> None:
    Reward(redness, ["a"], ["a"]).refuse_flat((8, 8), torch.device("cpu"))
    flat = Reward(lambda p, t: redness(p.detach(), t), ["a"], ["a"], name="reward=mine:flat")
    with pytest.raises(ValueError, match="reward=mine:flat has no gradient"):
        flat.refuse_flat((8, 8), torch.device("cpu"))
