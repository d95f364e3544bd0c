"""sd-mini's text side is clip-mini's to the number, and its pipeline goes out and comes back whole."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from vpt.data.painted import Look, captions, painting
from vpt.data.scene_check import obeyed
from vpt.tasks.starters.sd_evaluate import SEED, make
from vpt.towers.starter import sd_mini as starter
from vpt.towers.starter.clip_mini import clip_mini_tokenizer, load_clip_mini

TEXTS = ["", "a red circle", "an emoji of a grinning face", "Piñata, 3 zebras!", "word " * 100]
TEXTS += [captions(painting(0, i))[0] for i in range(20)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return starter.sd_mini()


def ids_of(pipe, texts):
    return pipe.tokenizer(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids


def test_ids_are_open_clips_up_to_the_padding(pipe):
    ours, theirs = ids_of(pipe, TEXTS), clip_mini_tokenizer()(TEXTS)
    end = pipe.tokenizer.eos_token_id
    assert end == pipe.text_encoder.config.eos_token_id == pipe.text_encoder.config.pad_token_id == 7999
    for mine, other in zip(ours.tolist(), theirs.tolist(), strict=True):
        n = other.index(end) + 1
        assert mine[:n] == other[:n]
        assert set(mine[n:]) <= {end}
    assert pipe.tokenizer.model_max_length == 77


def test_states_are_those_that_clip_minis_tower_pools(pipe):
    model, tokenizer, _ = load_clip_mini()
    kept = []
    model.ln_final.register_forward_hook(lambda module, args, out: kept.append(out))
    theirs = tokenizer(TEXTS)
    with torch.no_grad():
        model.encode_text(theirs)
        ours = pipe.text_encoder(ids_of(pipe, TEXTS))
    for i, end in enumerate(theirs.argmax(1).tolist()):
        torch.testing.assert_close(
            ours.last_hidden_state[i, : end + 1], kept[0][i, : end + 1], atol=1e-5, rtol=0
        )
        assert torch.equal(ours.pooler_output[i], ours.last_hidden_state[i, end])


def test_it_is_small_and_draws_64_pixels(pipe):
    learned = sum(p.numel() for part in (pipe.unet, pipe.vae) for p in part.parameters())
    assert 2 * learned < 16e6  # bytes, float16
    assert not any(p.requires_grad for p in pipe.text_encoder.parameters())
    made = pipe("a red circle", num_inference_steps=2, generator=torch.manual_seed(0)).images
    assert [picture.size for picture in made] == [(64, 64)]
    assert (pipe.scheduler.alphas_cumprod[-1] == 0).item()  # the first step starts from pure noise


def test_a_saved_folder_opens_here_and_an_exported_one_everywhere(pipe, tmp_path, monkeypatch):
    for part in ("unet", "vae", "scheduler"):
        getattr(pipe, part).save_pretrained(tmp_path / "kept" / part)
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "kept")
    folder = starter.export(tmp_path / "whole")
    opened = StableDiffusionPipeline.from_pretrained(folder)
    opened.set_progress_bar_config(disable=True)

    def drawn(p):
        return p(
            "a blue star", num_inference_steps=2, output_type="latent", generator=torch.manual_seed(0)
        ).images

    assert torch.equal(drawn(opened), drawn(pipe))
    assert torch.equal(drawn(starter.load_sd_mini()), drawn(pipe))


def test_a_missing_part_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a file of starter sd-mini is not at .*unet"):
        starter.load_sd_mini(tmp_path)


def test_the_packages_weights_draw_what_held_out_captions_ask_for():
    """The checker reads pixels. By chance it finds one colour in eight and one shape in six."""
    pipe = starter.load_sd_mini()
    asked = [painting(SEED, i, held_out=True) for i in range(24)]
    made = make(pipe, [captions(one)[0] for one in asked], steps=10)
    looks = [Look(one.colour, one.shape, one.setting.background) for one in asked]
    found = [obeyed(look, picture)[:2] for look, picture in zip(looks, made, strict=True)]
    assert sum(colour for colour, _ in found) >= 18
    assert sum(shape for _, shape in found) >= 15


def test_what_the_package_holds_is_small():
    files = [file for file in starter.FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 16e6
    assert not list(starter.FOLDER.glob("text_encoder*"))  # it is clip-mini's
