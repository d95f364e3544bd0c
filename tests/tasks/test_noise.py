"""Text to image by the one task: what learns, what stays, what a kill leaves, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import sd, shared

import vpt
from vpt.data.module import ImageData
from vpt.promptset import PromptSet
from vpt.tasks.task import PromptTask
from vpt.tasks.tune import tune
from vpt.towers.diffusion import Diffusion, open_pipeline

QUIET = {"progress": False, "device": "cpu", "precision": "float32"}
WORDS = {"concept": "my-mug", "word": "dog"}
SHORT = {"epochs": 2, "batch_size": 4, "warmup": 0.0, "lr": 0.02, **WORDS, **QUIET}


@pytest.fixture(scope="module")
def mug(tmp_path_factory):
    """Four pictures of one thing."""
    folder = tmp_path_factory.mktemp("mug")
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 120, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise + np.array([100, 20, 0], dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def backbone() -> Diffusion:
    """A pipeline whose network hears what it is told: with random weights the context hardly matters."""
    pipe = sd()
    with torch.no_grad():
        for name, p in pipe.unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
                p.mul_(6)
    return open_pipeline(pipe, "diffusers/tiny", size=16)


def hash_of(backbone: Diffusion) -> int:
    models = [m for m in backbone.pipe.components.values() if isinstance(m, torch.nn.Module)]
    return hash(tuple(t.numpy().tobytes() for m in models for t in m.state_dict().values()))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("textual-inversion", {"length": 2, "layers": 2, "snr": 5.0, "augment": "flip"}),
        ("direction", {"optimizer": "direction"}),
        ("p-plus", {"remat": True}),
        ("context", {"length": 2, "lr": 0.1}),
        ("dreambooth-lora", {"lr": 0.02}),
    ],
)
def test_every_method_learns_to_draw_and_the_pipeline_stays(backbone, mug, tmp_path, method, options):
    before, size = hash_of(backbone), len(backbone.pipe.tokenizer)
    parts, processors = dict(backbone.pipe.components), dict(backbone.pipe.unet.attn_processors)
    tuned = tune(backbone, str(mug), method, out=str(tmp_path), **{**SHORT, **options})
    assert hash_of(backbone) == before
    assert len(backbone.pipe.tokenizer) == size
    assert all(backbone.pipe.components[name] is part for name, part in parts.items())
    assert all(backbone.pipe.unet.attn_processors[name] is p for name, p in processors.items())
    about = tuned.prompts.about
    (now,), (start,) = about["metrics"], about["before"]
    assert now["value"] < start["value"]
    assert (now["split"], now["count"], now["seed"]) == ("held-out noise", 4, 1)
    kind = "baseline" if method == "dreambooth-lora" else "prompts"
    again = PromptSet.load(tmp_path / f"{kind}.safetensors")
    assert json.dumps(again.about["train"]) == json.dumps(about["train"])
    assert again.about["placeholders"] == {"<my-mug>": "sks dog" if kind == "baseline" else "dog"}
    if kind == "prompts":
        assert about["train"]["moved"] > 1e-3
        assert all(torch.equal(again.rows[site], r) for site, r in tuned.rows.items())
        norms = about["train"]["norms"]
        assert norms.keys() == {str(site) for site in tuned.rows}
        for site, r in tuned.rows.items():
            longest = float(r.norm(dim=-1).max())
            assert norms[str(site)]["longest"] == pytest.approx(longest, abs=1e-4)
            assert (norms[str(site)]["words"] is None) == (
                site.stage != "embedded" or site.tower == "context"
            )
    given = tuned.embeds("a <my-mug> in rain")
    call = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "pt"}
    with tuned.layers():
        found = tuned.pipe(**given, **call, generator=torch.Generator().manual_seed(1)).images
    plain = backbone.pipe("a dog in rain", **call, generator=torch.Generator().manual_seed(1)).images
    assert not torch.equal(found, plain)


def test_the_held_out_loss_is_what_the_network_says_of_the_pictures(backbone, mug):
    """Written out: means of latents, noises of the picture's number, the U-Net's own call."""
    tuned = tune(backbone, str(mug), "textual-inversion", **SHORT)
    data = ImageData(str(mug), concept="my-mug")
    data.bind(backbone.preprocessing)
    unet, alphas, errors = backbone.pipe.unet, backbone.alphas, []
    row = tuned.rows[next(iter(tuned.rows))]
    for i, item in enumerate(data.pictures("train")):
        x = backbone.pipe.vae.encode(item["image"][None]).latent_dist.mean
        x = x * backbone.pipe.vae.config.scaling_factor
        for k in range(8):
            stream = torch.Generator().manual_seed((1_000_003 + i) * 8 + k)
            noise, t = torch.randn(x.shape[1:], generator=stream), int((k + 0.5) / 8 * 1000)
            said = data.captions("train")[i][k % 8]
            site = next(iter(tuned.rows))
            context = backbone.embeds(said, {site: row}, guided=False)["prompt_embeds"]
            noisy = alphas[t].sqrt() * x + (1 - alphas[t]).sqrt() * noise
            errors.append(float((unet(noisy, t, context).sample - noise).square().mean()))
    assert tuned.metrics[0]["value"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


class Killed(Exception):
    """Stands for a kill in the middle of an epoch."""


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("textual-inversion", {"augment": "flip", "ema": 0.5}),
        ("direction", {"optimizer": "direction", "augment": "flip", "views": 2}),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(backbone, mug, tmp_path, monkeypatch, method, options):
    options = {**SHORT, "epochs": 3, "batch_size": 2, "checkpoint_every": 1, **options}
    whole = tune(backbone, str(mug), method, out=str(tmp_path / "whole"), **options)
    step = PromptTask.training_step

    def dies(self, batch, i):
        if self.global_step == 3:
            raise Killed
        return step(self, batch, i)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTask, "training_step", dies)
        with pytest.raises(Killed):
            tune(backbone, str(mug), method, out=str(tmp_path / "cut"), **options)
    again = tune(backbone, str(mug), method, out=str(tmp_path / "cut"), **options)
    assert all(torch.equal(again.rows[site], r) for site, r in whole.rows.items())
    assert again.metrics == whole.metrics
    assert again.prompts.about["train"]["history"] == whole.prompts.about["train"]["history"]


def test_stored_latents_give_the_rows_of_fresh_ones(backbone, mug):
    fresh, stored = (
        tune(backbone, str(mug), "textual-inversion", store=store, **SHORT, optimizer="sgd")
        for store in ("off", "memory")
    )
    assert fresh.prompts.about["train"]["moved"] > 1e-3
    assert all(torch.allclose(stored.rows[site], r, atol=1e-5) for site, r in fresh.rows.items())


def test_several_rates_need_pictures_to_choose_on(backbone, mug):
    with pytest.raises(ValueError, match="needs a val split, and there is none"):
        tune(backbone, str(mug), "textual-inversion", **{**SHORT, "lr": (0.01, 0.03)})


def test_class_pictures_are_the_prior(backbone, mug, tmp_path, monkeypatch):
    """Their captions are their own, and their weight is the recipe's."""
    for i in range(2):
        Image.new("RGB", (20, 20), (0, 90 * i, 200)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a photo of a dog")
    weights, seen = [], []

    def watched(self, learner, inputs, batch):
        seen.append((self.objective.captions, sorted(self.objective.beside)))
        weights.append(self.objective.prior)
        return loss(self, learner, inputs, batch)

    loss = PromptTask._loss
    monkeypatch.setattr(PromptTask, "_loss", watched)
    options = {**SHORT, "batch_size": 6, "beside": str(tmp_path), "prior": 0.5}
    tuned = tune(backbone, str(mug), "dreambooth-lora", **options)
    captions, beside = seen[0]
    assert set(weights) == {0.5}
    assert len(beside) == 2
    assert all(captions[i] == ("a photo of a dog",) for i in beside)
    assert all("<my-mug>" in said for i in range(6) if i not in beside for said in captions[i])
    assert tuned.protocol["counts"]["train"] == 6


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("vpt-deep", {}, "takes no rows; its text encoders and its context do"),
        ("linear", {}, "needs features of them"),
        (
            "textual-inversion",
            {"optimizer": "direction"},
            r"optimizer=direction turns rows .*Give norm=fixed",
        ),
        ("textual-inversion", {"sample_every": 2}, r"sample_every=2 draws into the folder.*and a folder"),
        ("textual-inversion", {"ema": 1.0}, "ema is 1.0, wanted 0 or more and less than 1"),
        ("textual-inversion", {"sentences": "nowhere.txt"}, r"sentences='nowhere.txt': wanted object, style"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_pictures_are_read(backbone, mug, method, options, told):
    words = WORDS if method == "textual-inversion" else {}
    with pytest.raises(ValueError, match=told):
        tune(backbone, str(mug), method, **{**words, **options, **QUIET})


def test_flows_take_no_min_snr(mug):
    backbone = open_pipeline(shared("sd3"), "diffusers/tiny", size=16)
    with pytest.raises(ValueError, match=r"snr=5.0 weighs noise schedules.*matches flows. Set snr=0"):
        tune(backbone, str(mug), "textual-inversion", snr=5.0, **WORDS, **QUIET)


def test_pictures_are_drawn_by_pipelines_only(tiny_clip, mug):
    with pytest.raises(ValueError, match="open_clip/tiny draws no pictures"):
        tune(tiny_clip, str(mug), "textual-inversion", **WORDS, **QUIET)
    with pytest.raises(ValueError, match="sample_every=1 draws pictures, which only text to image does"):
        tune(tiny_clip, str(mug), "coop", sample_every=1, out=str(mug / "out"), **QUIET)
    assert not (mug / "out").exists()


def test_a_flow_learns_too(mug):
    backbone = open_pipeline(shared("sd3"), "diffusers/tiny", size=16)
    tuned = tune(backbone, str(mug), "textual-inversion", **{**SHORT, "epochs": 1, "lr": 0.05})
    assert {site.tower for site in tuned.rows} == {"text", "text_2"}
    assert isinstance(tuned, vpt.tasks.pipeline.TunedPipeline)
