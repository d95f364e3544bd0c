"""LP++ against the published loop, written with autograd and torch's own SGD."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt.methods.baselines.lp_plus_plus import LPPlusPlus
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

NAMES = ("red", "green", "blue", "white")
SHOTS, WIDTH = 5, 16


@pytest.fixture
def data() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Training features and labels, val, and texts, of classes that overlap; lengths are not 1."""
    y = torch.arange(SHOTS * len(NAMES)) % len(NAMES)
    centres = torch.randn(len(NAMES), WIDTH)
    near = [centres[y] + 0.8 * torch.randn(len(y), WIDTH) for _ in range(2)]
    return 3 * near[0], y, (2 * near[1], y), centres + 0.7 * torch.randn(len(NAMES), WIDTH)


def published(
    features: Tensor, labels: Tensor, val: tuple[Tensor, Tensor], text: Tensor, steps: int
) -> tuple[Tensor, Tensor, int, float]:
    """The authors' loop: head, bias, best step and its accuracy."""
    f, seen, t = (F.normalize(x.double(), dim=-1) for x in (features, val[0], text))
    n, classes = len(f), len(t)
    layer = nn.Linear(f.shape[1], classes).double()
    with torch.no_grad():
        layer.bias.zero_()
        for k in range(classes):
            layer.weight[k] = f[labels == k].sum(0)
    alpha = torch.full((1, classes), 250 * float((f @ t.T).mean()), dtype=torch.double, requires_grad=True)
    rate = 4 * n / np.linalg.eigvalsh((f.T @ f).numpy()).max()
    alpha_rate = n / (4 * ((f @ t.T) ** 2).sum(0).max())
    sgd = torch.optim.SGD(layer.parameters(), float(rate), momentum=0.9)
    best, chosen, kept = 0.0, 0, (layer.weight.detach(), layer.bias.detach())
    for step in range(1, steps + 1):
        loss = F.cross_entropy(layer(f) + alpha * (f @ t.T), labels)
        sgd.zero_grad()
        loss.backward()  # alpha's gradient is never set to zero
        sgd.step()
        if step % 10 == 0:
            assert alpha.grad is not None
            alpha.data -= alpha_rate * alpha.grad
        with torch.no_grad():
            found = layer(seen) + alpha * (seen @ t.T)
            accuracy = float((found.argmax(-1) == val[1]).double().mean())
            if accuracy >= best:
                best, chosen = accuracy, step
                kept = layer.weight + alpha.T * t, layer.bias.clone()
    return *kept, chosen, best


@pytest.mark.parametrize("steps", [1, 25, 60])
def test_it_is_the_published_loop(
    steps: int, data: tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor], tiny_clip: Backbone
) -> None:
    features, labels, val, text = data
    weight, bias, step, accuracy = published(features, labels, val, text, steps)
    head = nn.Linear(WIDTH, len(NAMES))
    said = LPPlusPlus(tiny_clip.text, steps=steps).solve(features, labels, val, head, {"text": text})
    assert said == {"step": step, "val_accuracy": pytest.approx(accuracy)}
    assert torch.allclose(head.weight, weight.float(), rtol=1e-3, atol=1e-3)
    assert torch.allclose(head.bias, bias.float(), rtol=1e-3, atol=1e-3)


def test_the_head_reads_normalised_features(tiny_clip: Backbone, images: Tensor) -> None:
    made = Learner(build_method("lp++", tiny_clip, classes=len(NAMES)), tiny_clip, NAMES)
    made.train()
    assert made.taught()["text"].shape == (len(NAMES), tiny_clip.text.out)
    assert made.head is not None
    nn.init.normal_(made.head.weight)
    made.eval()
    label = {"kind": "baseline", "method": {"name": "lp++", "options": {}}, "classes": list(NAMES)}
    prompts = made.export(label)
    assert prompts.about["head"] == {"reads": "normalised"}
    tuned = Tuned(tiny_clip, prompts)
    v = tuned.encode_image(images, normalize=True)
    want = v @ made.head.weight.detach().mT + made.head.bias.detach()
    assert torch.allclose(tuned.logits(images), want, atol=1e-5)
    assert torch.allclose(made(images), want, atol=1e-5)


def test_it_needs_names_to_say(tower: object) -> None:
    with pytest.raises(ValueError, match="no text tower"):
        build_method("lp++", Backbone("plain", {"image": tower}, {}, "timm"))  # type: ignore[dict-item]
