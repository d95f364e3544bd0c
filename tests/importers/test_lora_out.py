"""LoRA files of ours draw in diffusers' own loader what the baseline draws here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import FAMILIES, SMALL

from vpt.cli import main
from vpt.importers import write_lora
from vpt.methods.baselines.dreambooth_lora import DreamBoothLoRA
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.tasks.diffusion import DiffusionLearner
from vpt.tasks.pipeline import TunedPipeline
from vpt.towers.diffusion import Diffusion, open_pipeline


def learned(backbone: Diffusion, alpha: int) -> PromptSet:
    """A baseline whose second factors are no longer 0."""
    options = {"concept": "my-mug", "word": "dog", "rank": 2, "alpha": alpha}
    learner = DiffusionLearner(DreamBoothLoRA(backbone, **options), backbone)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    weights = {n: p.detach() for n, p in learner.towers[1].model.named_parameters() if p.requires_grad}
    about = {
        "kind": "baseline",
        "task": "denoise",
        "placeholders": {"<my-mug>": "sks dog"},
        "method": {"name": "dreambooth-lora", "options": options},
        "backbone": backbone.label(),
    }
    return PromptSet(weights={f"denoiser.{n}": t for n, t in weights.items()}, about=about)


@pytest.mark.parametrize(("family", "alpha"), [("sd", 2), ("sd", 3), ("sdxl", 2), ("sd3", 2), ("flux", 2)])
def test_diffusers_draws_the_same(tmp_path: Path, family: str, alpha: int) -> None:
    backbone = open_pipeline(FAMILIES[family](), f"diffusers/{family}", size=16)
    prompts = learned(backbone, alpha)
    tuned = TunedPipeline(backbone, prompts)
    file = write_lora(prompts, tmp_path / "lora.safetensors")
    ours, before = (
        np.asarray(m.draw("a <my-mug>", steps=2)[0]) for m in (tuned, tuned.unprompted("sks dog"))
    )
    pipe: Any = FAMILIES[family]()
    pipe.load_lora_weights(file)
    call = {**SMALL[family], "num_inference_steps": 2, "height": 16, "width": 16}
    theirs = np.asarray(pipe("a sks dog", generator=torch.Generator().manual_seed(1), **call).images[0])
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # where the scale is multiplied in, it rounds
    assert np.abs(ours.astype(int) - before).max() > 3


def test_the_command_says_what_sentences_must_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = open_pipeline(FAMILIES["sd"](), "diffusers/sd", size=16)
    file, out = learned(backbone, 2).save(tmp_path / "baseline.safetensors"), tmp_path / "lora.safetensors"
    export = ["export", str(file), "--layout", "lora", "--out", str(out)]
    assert main(export) == 0
    assert f"pipe.load_lora_weights('{out}'); sentences say 'sks dog'" in capsys.readouterr().out
    assert main([*export, "--name", "<my-mug>"]) == 2
    assert main([*export[:-1], str(tmp_path / "lora.pt")]) == 2
    rows = PromptSet({Site("text", "embedded", "<my-mug>"): torch.zeros(1, 32)}).save(
        tmp_path / "rows.safetensors"
    )
    out.unlink()
    assert main(["export", str(rows), *export[2:]]) == 2
    assert "LoRA is written of dreambooth-lora" in capsys.readouterr().err
    assert not out.exists()
