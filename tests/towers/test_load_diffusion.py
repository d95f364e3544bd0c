"""Pipelines by name: a folder of diffusers' format gives what the library's own loading gives."""

import json

import pytest
import torch
from pipelines import SMALL, sd

import vpt
from vpt.towers.load_diffusion import load_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    sd().save_pretrained(path)
    return path


def test_a_folder_draws_what_its_pipeline_draws(folder):
    backbone = vpt.load(f"diffusers/{folder}")
    assert (backbone.kind, backbone.name, backbone.options) == ("StableDiffusion", f"diffusers/{folder}", {})
    assert not any(p.requires_grad for p in backbone.denoiser.parameters())

    def drawn(pipe, **given):
        stream = torch.Generator().manual_seed(1)
        return torch.as_tensor(pipe(**given, **SMALL["sd"], generator=stream, output_type="np").images)

    backbone.pipe.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(backbone.pipe, **backbone.embeds("a dog")), drawn(sd(), prompt="a dog"))


def test_random_weights_need_the_configs_alone(folder, tmp_path):
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(folder)).write_bytes(file.read_bytes())
    backbone = load_diffusion(str(tmp_path), pretrained=False, size=16)
    assert backbone.options == {"size": 16, "pretrained": False}
    assert backbone.preprocessing["input_size"] == [3, 16, 16]
    shapes = {k: v.shape for k, v in sd().unet.state_dict().items()}
    assert {k: v.shape for k, v in backbone.denoiser.state_dict().items()} == shapes
    with pytest.raises(ValueError, match="does not hold this pipeline's weights"):
        load_diffusion(str(tmp_path))


def test_what_is_no_pipeline_is_refused_before_weights_are_read(tmp_path):
    with pytest.raises(ValueError, match="no model_index"):
        load_diffusion(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableAudioPipeline"}))
    with pytest.raises(ValueError, match="StableAudioPipeline is no pipeline that vpt prompts"):
        load_diffusion(str(tmp_path))


@pytest.mark.parametrize("wrong", [{"quantize": "int3"}, {"dtype": "int8"}])
def test_an_unknown_choice_is_refused_with_those_there_are(folder, wrong):
    with pytest.raises(ValueError, match="wanted one of"):
        load_diffusion(str(folder), **wrong)


def test_quantize_and_dtype_are_for_pipelines():
    with pytest.raises(ValueError, match="for diffusion pipelines"):
        vpt.load("timm/vit_tiny_patch16_224", pretrained=False, dtype="bf16")
