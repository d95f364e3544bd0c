"""Pictures of a tuned pipeline are those of the library's own call, for every family; sets meet in one sentence."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import FAMILIES, SMALL, shared, variants

from vpt.methods.baselines.dreambooth_lora import DreamBoothLoRA
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.tasks import pipeline
from vpt.tasks.draw import draw_batch
from vpt.tasks.pipeline import TunedPipeline
from vpt.towers.diffusion import Diffusion, open_pipeline
from vpt.towers.families import family_of
from vpt.towers.layered import cross_attentions

# diffusers' Euler and DPM schedulers hand torch tensors to numpy as numpy 1 had it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SENTENCE = "a photo of <c>"


def known(family: str) -> bool:
    kind = FAMILIES[family].__annotations__["return"].__name__
    try:
        family_of(type(kind, (), {"encode_prompt": None})())
    except ValueError:
        return False
    return True


def opened(family: str = "sd") -> Diffusion:
    return open_pipeline(shared(family), f"diffusers/{family}", size=SMALL[family]["height"])


def word(pipeline: Diffusion, slot: str = "<c>", meaning: str = "dog", **about: Any) -> PromptSet:
    """Rows of every encoder that are a word's own embeddings, so that the placeholder must mean just that."""
    rows = {Site(name, "embedded", slot): pipeline.vectors(name, meaning) for name in pipeline.encoders}
    label = {"placeholders": {slot: meaning}, "backbone": {"name": pipeline.name, "fingerprints": {}}}
    return PromptSet(rows, about=label | about)


def size_of(family: str) -> dict[str, Any]:
    """How a family's call is kept small, as ``drawing`` takes it."""
    small = dict(SMALL[family])
    size = small.pop("height"), small.pop("width")
    return {"size": size, "steps": 2, "frames": small.pop("num_frames", None), "call": small}


def frames(picture: Any) -> np.ndarray:
    return np.stack([np.asarray(p) for p in (picture if isinstance(picture, list) else [picture])])


def by_library(family: str, text: str, seed: int, **more: Any) -> np.ndarray:
    call = {**SMALL[family], "num_inference_steps": 2, "output_type": "pil", **more}
    out = shared(family)(prompt=text, generator=torch.Generator().manual_seed(seed), **call)
    return frames((out.frames if hasattr(out, "frames") else out.images)[0])


@pytest.mark.parametrize("family", [name for name in FAMILIES if known(name)])
def test_every_family_draws_what_its_own_call_draws(family: str) -> None:
    backbone, told = opened(family), []
    tuned = TunedPipeline.joined(backbone, [word(backbone)])
    want = by_library(family, "a photo of dog", 4)
    how = size_of(family)
    after = tuned.draw(SENTENCE, seeds=(3, 4), progress=lambda done, of: told.append((done, of)), **how)
    assert [np.array_equal(frames(picture), want) for picture in after] == [False, True]
    assert told == [(1, 2), (2, 2)] * 2
    (before,) = tuned.plain(SENTENCE, seeds=(4,), **how)
    assert np.array_equal(frames(before), want)


def test_negative_text_and_guidance_are_those_of_the_call() -> None:
    backbone = opened()
    tuned, how = TunedPipeline(backbone, word(backbone)), size_of("sd")
    want = by_library("sd", "a dog", 1, negative_prompt="red rain", guidance_scale=3.0)
    (got,) = tuned.draw("a <c>", negative="red rain", guidance=3.0, **how)
    assert np.array_equal(frames(got), want)
    (unguided,) = tuned.draw("a <c>", guidance=1.0, **how)
    assert np.array_equal(frames(unguided), by_library("sd", "a dog", 1, guidance_scale=1.0))


@pytest.mark.parametrize(
    ("family", "asked", "want"),
    [
        ("sd", {}, ("guidance_scale", 7.5, None)),
        ("flux", {}, ("guidance_scale", 3.5, None)),
        ("flux", {"guidance": 2.0}, ("guidance_scale", 2.0, None)),
        ("flux", {"guidance": 4.0, "negative": "x"}, ("true_cfg_scale", 4.0, "x")),
        ("qwen_image", {}, ("guidance_scale", None, None)),
        ("qwen_image", {"guidance": 4.0}, ("true_cfg_scale", 4.0, " ")),
        ("qwen_image", {"negative": "x"}, ("true_cfg_scale", 4.0, "x")),
        ("pixart_sigma", {"negative": "x"}, ("guidance_scale", 4.5, "x")),
    ],
)
def test_guidance_has_the_name_that_the_family_gives_it(
    family: str, asked: dict[str, Any], want: tuple[str, float | None, str | None]
) -> None:
    base = opened()  # settings ask the call's signature alone
    s = TunedPipeline(base, PromptSet()).settings(pipe=shared(family), **asked)
    assert (s.scale, s.guidance, s.negative) == want
    assert s.guided == (want[1] is not None and want[1] > 1)


def test_what_a_call_does_not_take_or_would_not_heed_is_refused() -> None:
    backbone = opened()
    tuned = TunedPipeline(backbone, word(backbone))
    image_to_image, _ = variants(shared("sd"))["image-to-image"]
    for how, message in (
        ({"frames": 5}, "draws pictures, not videos"),
        ({"negative": "red", "guidance": 1.0}, "guidance above 1, and here guidance_scale is 1"),
        ({"negative": "red", "pipe": shared("flux")}, "here true_cfg_scale is 1.0. Give guidance"),
        ({"negative": "red", "pipe": shared("flux2")}, "Flux2Pipeline reads no negative side"),
        ({"size": 16, "pipe": image_to_image}, "as the picture that it is given"),
    ):
        with pytest.raises(ValueError, match=message):
            tuned.settings(**how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"strength=0.5 multiplies rows, and this prompt set has none"):
        tuned.unprompted().draw("a dog", strength=0.5)
    negative = PromptSet({Site("context", "embedded", "negative"): torch.zeros(2, 32)})
    with pytest.raises(ValueError, match="guidance above 1"):
        TunedPipeline(backbone, negative).draw("a dog", guidance=1.0)


def test_strength_multiplies_the_rows() -> None:
    backbone = opened()
    rows = word(backbone)
    half = PromptSet({site: r * 0.5 for site, r in rows.rows.items()}, about=rows.about)
    how = size_of("sd")
    (want,) = TunedPipeline(backbone, half).draw(SENTENCE, **how)
    (got,) = TunedPipeline(backbone, rows).draw(SENTENCE, strength=0.5, **how)
    assert np.array_equal(frames(got), frames(want))
    assert not np.array_equal(frames(got), by_library("sd", "a photo of dog", 1))


def test_prompts_and_seeds_in_batches_draw_what_each_draws_alone() -> None:
    backbone = opened()
    tuned, how = TunedPipeline(backbone, word(backbone)), size_of("sd")
    texts = ["a <c>", "a red photo of <c> in the rain"]
    alone = [tuned.draw(text, seeds=(seed,), **how)[0] for text in texts for seed in (1, 2)]
    together = tuned.draw(texts, seeds=(1, 2), batch_size=3, **how)
    assert len(together) == 4
    for one, other in zip(alone, together, strict=True):
        assert np.abs(frames(one).astype(int) - frames(other)).max() <= 1  # a batch rounds otherwise


def test_a_batch_that_does_not_fit_is_drawn_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, sizes = opened(), []

    def small(room: int) -> Any:
        def draw(pipe: Any, given: Any, seeds: list[int], *rest: Any) -> list[int]:
            sizes.append(len(seeds))
            if len(seeds) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
            return list(seeds)

        return draw

    tuned = TunedPipeline(backbone, word(backbone))
    monkeypatch.setattr(pipeline, "draw_batch", small(2))
    assert tuned.draw(SENTENCE, seeds=range(5), batch_size=4) == list(range(5))
    assert sizes == [4, 2, 2, 1]
    monkeypatch.setattr(pipeline, "draw_batch", small(0))
    with pytest.raises(
        RuntimeError, match=r"one picture does not fit the memory .*9 GiB.* Ask for a smaller size"
    ):
        tuned.draw(SENTENCE, seeds=range(5), batch_size=4)


@pytest.mark.parametrize("name", ["image-to-image", "inpainting", "controlnet"])
def test_other_pipelines_of_the_family_draw_too(name: str) -> None:
    backbone = opened()
    pipe, call = variants(shared("sd"))[name]
    want = pipe(prompt="a dog", num_inference_steps=2, generator=torch.Generator().manual_seed(1), **call)
    rest = {k: v for k, v in call.items() if k not in ("height", "width")}
    (got,) = TunedPipeline(backbone, word(backbone)).draw("a <c>", pipe=pipe, steps=2, call=rest)
    assert np.array_equal(frames(got), frames(want.images[0]))


def test_rows_of_their_own_for_cross_attentions_draw_and_leave_the_network_as_it_was() -> None:
    backbone = opened()
    before = dict(shared("sd").unet.attn_processors)
    count = len(cross_attentions(shared("sd").unet))
    rows = {Site("text", "embedded", "<c>"): backbone.vectors("text", "dog").repeat(count, 1, 1)}
    tuned = TunedPipeline(backbone, PromptSet(rows, about={"placeholders": {"<c>": "dog"}}))
    (got,) = tuned.draw(SENTENCE, **size_of("sd"))
    assert np.array_equal(frames(got), by_library("sd", "a photo of dog", 1))
    after = shared("sd").unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


def test_the_pipeline_is_left_as_it_was() -> None:
    backbone = opened()
    pipe, scheduler = backbone.pipe, backbone.pipe.scheduler
    scheduler.set_timesteps(7)
    bars = dict(getattr(pipe, "_progress_bar_config", {}))
    TunedPipeline(backbone, word(backbone)).draw(SENTENCE, **size_of("sd"))
    assert pipe.scheduler is scheduler
    assert len(scheduler.timesteps) == 7
    assert getattr(pipe, "_progress_bar_config", {}) == bars


def test_a_placeholder_without_a_word_is_said_by_the_one_given() -> None:
    backbone = opened()
    nameless = TunedPipeline(backbone, word(backbone, placeholders={"<c>": ""}))
    with pytest.raises(ValueError, match="does not say what <c> is"):
        nameless.plain(SENTENCE)
    (got,) = nameless.plain(SENTENCE, word="cat", **size_of("sd"))
    assert np.array_equal(frames(got), by_library("sd", "a photo of cat", 1))


def test_several_sets_are_said_in_one_sentence() -> None:
    backbone = opened("sdxl")
    sets = [word(backbone, f"<{name}>", name) for name in ("dog", "cat", "mug")]
    tuned = TunedPipeline.joined(backbone, sets)
    (got,) = tuned.draw("a <dog> with a <cat> in a <mug>", **size_of("sdxl"))
    assert np.array_equal(frames(got), by_library("sdxl", "a dog with a cat in a mug", 1))
    assert tuned.words == {"<dog>": "dog", "<cat>": "cat", "<mug>": "mug"}
    assert tuned.prompts.about["parents"] == [s.hash() for s in sets]
    assert tuned.prompts.about["backbone"]["name"] == "diffusers/sdxl"


def test_sets_that_cannot_meet_are_refused_by_name() -> None:
    backbone = opened()
    context = PromptSet({Site("context", "embedded", "positive"): torch.zeros(2, 32)})
    layered = PromptSet({Site("text", "embedded", "<c>"): torch.zeros(4, 1, 32)})
    text = backbone.fingerprints["text"]
    other = word(backbone, backbone={"name": "diffusers/other", "fingerprints": {"text": "f" * 16}})
    for sets, message in (
        ([], "Give at least one"),
        ([word(backbone), word(backbone, "<C>")], "two of these prompt sets hold rows for <c>"),
        ([context, context], "hold rows for context/positive"),
        ([layered, context], "P\\+ give each cross-attention a context of its own"),
        ([other], f"fingerprint {'f' * 16}, of 'diffusers/other'; the backbone given has {text}"),
    ):
        with pytest.raises(ValueError, match=message):
            TunedPipeline.joined(backbone, sets)


def test_a_baseline_draws_with_the_network_that_it_learned() -> None:
    backbone = opened()
    method = DreamBoothLoRA(backbone, concept="c", word="dog")
    learned = method.learn(backbone.towers["denoiser"]).model
    with torch.no_grad():
        weights = {n: p.normal_(std=0.5) for n, p in learned.named_parameters() if p.requires_grad}
    made = {"name": "dreambooth-lora", "options": {"concept": "c", "word": "dog"}}
    about = {"kind": "baseline", "placeholders": {"<c>": "sks dog"}, "method": made}
    tuned = TunedPipeline(backbone, PromptSet(weights=weights, about=about))
    network = copy.copy(shared("sd"))
    network.unet = learned
    call = {"num_inference_steps": 2, **SMALL["sd"]}
    want = network(prompt="a photo of sks dog", generator=torch.Generator().manual_seed(1), **call).images[0]
    how = size_of("sd")
    assert np.array_equal(frames(tuned.draw(SENTENCE, **how)[0]), frames(want))
    assert np.array_equal(frames(tuned.draw(SENTENCE, pipe=copy.copy(shared("sd")), **how)[0]), frames(want))
    frozen = by_library("sd", "a photo of dog", 1)
    assert np.array_equal(frames(tuned.plain(SENTENCE, **how)[0]), frozen)
    mug = word(backbone, "<mug>", "mug")
    (both,) = TunedPipeline.joined(backbone, [tuned.prompts, mug]).draw("a <c> in a <mug>", **how)
    want = network(prompt="a sks dog in a mug", generator=torch.Generator().manual_seed(1), **call).images[0]
    assert np.array_equal(frames(both), frames(want))
    with pytest.raises(ValueError, match="two of these files change the network"):
        TunedPipeline.joined(backbone, [tuned.prompts, tuned.prompts])


def test_a_black_picture_of_the_safety_checker_is_told() -> None:
    class Checked:
        scheduler = SimpleNamespace()

        def set_progress_bar_config(self, **_: Any) -> None: ...

        def __call__(self, prompt_embeds: Any = None, num_inference_steps: int = 1) -> Any:
            picture = Image.new("RGB", (8, 8))
            return SimpleNamespace(images=[picture, picture], nsfw_content_detected=[False, True])

    settings = TunedPipeline(opened(), PromptSet()).settings(steps=3)
    with pytest.warns(UserWarning, match="safety checker made 1 of 2 pictures black"):
        assert len(draw_batch(Checked(), {}, [1, 2], settings)) == 2
