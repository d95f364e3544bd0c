"""Tip-Adapter's logits by hand, its search against a plain one, and its file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.encode import encode
from vpt.methods.baselines.tip_adapter import TipAdapter
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.tuned import load_prompts
from vpt.towers.backbone import Backbone

NAMES = ("red square", "green circle", "star")


def filled(name: str, backbone: Backbone) -> tuple[Learner, Tensor, Tensor]:
    """A learner whose cache holds five random features of these labels."""
    made = Learner(build_method(name, backbone, classes=len(NAMES)), backbone, NAMES)
    features, labels = torch.randn(5, backbone.image.out), torch.tensor([2, 0, 0, 1, 2])
    assert isinstance(made.method, TipAdapter)
    made.method.fill(features, labels)
    return made, features, labels


def by_hand(
    v: Tensor, keys: Tensor, labels: Tensor, text: Tensor, scale: float, beta: float, alpha: float
) -> Tensor:
    rows = []
    for f in v:
        row = scale * text @ f
        for key, label in zip(keys, labels.tolist(), strict=True):
            row[label] += alpha * torch.exp(-beta * (1 - f @ key))
        rows.append(row)
    return torch.stack(rows)


def test_logits_by_hand(tiny_clip: Backbone, images: Tensor) -> None:
    made, features, labels = filled("tip-adapter", tiny_clip)
    method = made.eval().method
    method.beta.fill_(2.5)  # type: ignore[operator]
    method.alpha.fill_(1.7)  # type: ignore[operator]
    with torch.no_grad():
        text = F.normalize(made.texts(), dim=-1)
        v = F.normalize(encode(tiny_clip.image, images), dim=-1)
        want = by_hand(v, F.normalize(features, dim=-1), labels, text, tiny_clip.scale, 2.5, 1.7)
        assert torch.allclose(made(images), want, atol=1e-4)


def test_the_search_is_the_published_grid(tiny_clip: Backbone) -> None:
    made, _, _ = filled("tip-adapter", tiny_clip)
    made.train()
    width, method = tiny_clip.image.out, made.method
    centres = torch.randn(3, width)
    y = torch.arange(12) % 3
    features, val = (centres[y] + 1.5 * torch.randn(12, width) for _ in range(2))
    text = made.taught()["text"]
    said = method.solve(features, y, (val, y), None, made.taught())
    keys, v, t = (F.normalize(x, dim=-1) for x in (features, val, text))
    values, best = F.one_hot(y, 3).float(), (0.0, 0.0, 0.0)
    for beta in [i * (7 - 0.1) / 200 + 0.1 for i in range(200)]:
        for alpha in [i * (3 - 0.1) / 20 + 0.1 for i in range(20)]:
            told = tiny_clip.scale * v @ t.T + ((-1) * (beta - beta * v @ keys.T)).exp() @ values * alpha
            accuracy = float((told.argmax(-1) == y).float().mean())
            if accuracy > best[0]:
                best = accuracy, beta, alpha
    assert said == pytest.approx(dict(zip(("val_accuracy", "beta", "alpha"), best, strict=True)))
    assert float(method.beta) == pytest.approx(best[1])  # type: ignore[arg-type]
    assert float(method.alpha) == pytest.approx(best[2])  # type: ignore[arg-type]


def test_the_cache_is_kept_in_the_file(tiny_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    made, _, labels = filled("tip-adapter", tiny_clip)
    made.method.beta.fill_(3.3)  # type: ignore[operator]
    label = {
        "kind": "baseline",
        "method": {"name": "tip-adapter", "options": {}},
        "classes": list(NAMES),
        "backbone": tiny_clip.label(),
    }
    want = made.eval()(images).detach()
    made.export(label).save(tmp_path / "b.safetensors")
    back = load_prompts(tmp_path / "b.safetensors", tiny_clip, device="cpu")
    assert torch.allclose(back.logits(images), want, atol=1e-5)
    assert torch.equal(back.learner.method.labels, labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot name others"):
        back.with_classes(["moon"])


def test_keys_start_at_the_pictures_and_learn(tiny_clip: Backbone, images: Tensor) -> None:
    made = Learner(build_method("tip-adapter-f", tiny_clip, classes=len(NAMES)), tiny_clip, NAMES).train()
    labels = torch.tensor([0, 1, 2])
    method = made.method
    assert isinstance(method, TipAdapter)
    method.start(
        tiny_clip.image,
        lambda: [{"image": images[:2], "label": labels[:2]}, {"image": images[2:], "label": labels[2:]}],
        None,
    )
    assert torch.allclose(method.keys, F.normalize(encode(tiny_clip.image, images), dim=-1), atol=1e-6)
    (group,) = made.groups(0.1, 0.1, 0.0)
    assert group["params"][0] is method.keys
    optimizer = torch.optim.SGD([group])
    seen = torch.randn(6, tiny_clip.image.out)
    losses = []
    for _ in range(3):
        near = method.near(F.normalize(seen, dim=-1))
        loss = F.cross_entropy(method.cached(near, method.beta), torch.tensor([0, 1, 2, 0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    other = Learner(build_method("tip-adapter-f", tiny_clip, classes=len(NAMES)), tiny_clip, NAMES)
    kept = other.method.keys
    other.load_state_dict(made.learned(), strict=False)  # as a run that goes on does
    assert other.method.keys is kept
    assert torch.equal(other.eval()(images), made.eval()(images))
    before = method.keys.detach().clone()
    method.solve(seen, torch.arange(6) % 3, (seen, torch.arange(6) % 3), None, {"text": made.texts()})
    assert torch.equal(method.keys, before), "what was learned is not filled anew"
