"""A word that search learned is drawn where the text encoder is shared, and the other way round."""

import pytest
import torch
from pipelines import sd

import vpt
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.towers.diffusion import open_pipeline
from vpt.towers.starter.sd_mini import sd_mini

SITE = Site("text", "embedded", "<my-mug>")


@pytest.fixture(scope="module")
def both():
    return vpt.load("starter/clip-mini"), open_pipeline(sd_mini(), "diffusers/sd-mini")


def learned(backbone, task, path):
    rows = torch.randn(2, backbone.text.width, generator=torch.Generator().manual_seed(0))
    about = {"task": task, "placeholders": {"<my-mug>": "mug"}, "backbone": backbone.label()}
    return PromptSet({SITE: rows}, about=about).save(path)


def test_search_teaches_drawing(both, tmp_path):
    clip, pipeline = both
    assert clip.fingerprints["text"] != pipeline.fingerprints["text"]  # a CLIP projects, a pipeline does not
    tuned = vpt.load_prompts(learned(clip, "retrieve", tmp_path / "a.safetensors"), pipeline)
    states = tuned.embeds("a photo of a <my-mug>")["prompt_embeds"]
    plain = tuned.embeds("a photo of a mug")["prompt_embeds"]
    assert torch.equal(states[:, :5], plain[:, :5])
    assert not torch.equal(states[:, 5:], plain[:, 5:])


def test_drawing_teaches_search(both, tmp_path):
    clip, pipeline = both
    tuned = vpt.load_prompts(learned(pipeline, "denoise", tmp_path / "b.safetensors"), clip)
    own = vpt.load_prompts(learned(clip, "retrieve", tmp_path / "c.safetensors"), clip)
    texts = ["a photo of a <my-mug>", "a red square"]
    torch.testing.assert_close(tuned.encode_text(texts), own.encode_text(texts))
    torch.testing.assert_close(tuned.encode_text(texts[1]), vpt.encode(clip.text, clip.tokens(texts[1])))


def test_another_encoder_is_refused_with_both_fingerprints(both, tmp_path):
    path = learned(both[1], "denoise", tmp_path / "d.safetensors")
    other = open_pipeline(sd(), "diffusers/other")
    with pytest.raises(ValueError, match=both[1].fingerprints["text"]):
        vpt.load_prompts(path, other)
