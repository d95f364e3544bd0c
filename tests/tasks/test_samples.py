"""Pictures while rows learn: the pipeline's own at each seed, and training as if nobody had looked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import sd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.functional import to_tensor

from vpt.tasks import samples
from vpt.tasks.tune import tune
from vpt.towers.diffusion import open_pipeline

OPTIONS = {"progress": False, "device": "cpu", "precision": "float32", "concept": "my-mug", "word": "dog"}
OPTIONS |= {"epochs": 3, "batch_size": 4, "warmup": 0.0, "lr": 0.02, "augment": "flip"}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(samples, "STEPS", 2)
    monkeypatch.setattr(samples, "SEEDS", (0, 1))


@pytest.fixture(scope="module")
def mug(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mug")
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 120, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("method", ["textual-inversion", "p-plus"])
def test_a_run_that_is_looked_at_learns_the_same(mug, tmp_path, method):
    backbone = open_pipeline(sd(), "diffusers/tiny", size=16)
    plain = tune(backbone, str(mug), method, **OPTIONS)
    seen = tune(
        backbone,
        str(mug),
        method,
        out=str(tmp_path),
        sample_every=2,
        sample_prompts=("a <my-mug>", "red <my-mug> in rain"),
        **OPTIONS,
    )
    assert all(torch.equal(plain.rows[site], r) for site, r in seen.rows.items())
    assert sorted(f.name for f in (tmp_path / "samples").iterdir()) == [f"epoch-00{n}.png" for n in (0, 2, 3)]
    last = to_tensor(Image.open(tmp_path / "samples" / "epoch-003.png"))
    assert last.shape == (3, 2 + 2 * 18, 2 + 2 * 18)
    call = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
    for line, prompt in enumerate(("a <my-mug>", "red <my-mug> in rain")):
        for column in range(2):
            with seen.layers():
                want = backbone.pipe(
                    **seen.embeds(prompt), **call, generator=torch.Generator().manual_seed(column)
                ).images[0]
            found = last[:, 2 + 18 * line :, 2 + 18 * column :][:, :16, :16]
            assert torch.allclose(found, want, atol=1 / 255)
    first = to_tensor(Image.open(tmp_path / "samples" / "epoch-000.png"))
    assert not torch.equal(first, last)
    told = EventAccumulator(str(tmp_path / "logs"))
    told.Reload()
    assert [event.step for event in told.Images("samples")] == [0, 2, 3]


def test_what_is_drawn_is_what_is_kept(mug, tmp_path):
    """With an average: the average. By default two sentences with the placeholder."""
    backbone = open_pipeline(sd(), "diffusers/tiny", size=16)
    tuned = tune(
        backbone, str(mug), "textual-inversion", out=str(tmp_path), sample_every=9, ema=0.5, **OPTIONS
    )
    assert sorted(f.name for f in (tmp_path / "samples").iterdir()) == ["epoch-000.png", "epoch-003.png"]
    call = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
    given = tuned.embeds("<my-mug> in the rain")
    want = backbone.pipe(**given, **call, generator=torch.Generator().manual_seed(1)).images[0]
    last = to_tensor(Image.open(tmp_path / "samples" / "epoch-003.png"))
    assert torch.allclose(last[:, 20:36, 20:36], want, atol=1 / 255)
