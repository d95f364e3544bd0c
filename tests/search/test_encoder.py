"""Queries and pictures to vectors, against the plain calls below."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vpt.encode import encode
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.search.encoder import Encoder, placeholders
from vpt.tasks.tuned import Tuned
from vpt.text import encode_text, lay
from vpt.towers.backbone import Backbone
from vpt.towers.vit import tiny

CTX, MUG, CAT = (Site("text", "embedded", slot) for slot in ("<ctx>", "<my-mug>", "<my-cat>"))


def rows(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def named(sentence: str) -> dict[str, dict[str, object]]:
    return {"names": {"sentence": sentence, "class_specific": False}}


@pytest.fixture(scope="module")
def coop() -> PromptSet:
    return PromptSet({CTX: rows(3, 24, 1)}, about=named("<ctx*3> {}."))


@pytest.fixture(scope="module")
def mug() -> PromptSet:
    return PromptSet({MUG: rows(2, 24, 2)}, about=named("a photo of <my-mug>"))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (50, 40, 3), dtype=np.uint8))


def plain(backbone: Backbone, text: str, given: dict[Site, Tensor] | None = None) -> np.ndarray:
    """One sentence on its own, not packed."""
    with torch.no_grad():
        streams = lay(backbone.text, [backbone.tokens.sentence(text)], packed=False)
        return F.normalize(encode_text(backbone.text, streams, given or {}), dim=-1)[0].numpy()


def same(a: np.ndarray, b: np.ndarray) -> None:
    assert np.allclose(a, b, atol=1e-5)


def test_without_prompts_they_are_the_librarys_features(tiny_clip: Backbone) -> None:
    e = Encoder(tiny_clip)
    pixels = tiny_clip.preprocess(picture())[None]
    with torch.no_grad():
        same(e.images([picture()]), F.normalize(encode(tiny_clip.image, pixels), dim=-1).numpy())
        tokens = tiny_clip.tokens(["a red bicycle"])
        same(e.texts(["a red bicycle"]), F.normalize(encode(tiny_clip.text, tokens), dim=-1).numpy())
    assert e.images([]).shape == (0, 16)
    about = e.about()
    assert about["fingerprint"] == tiny_clip.label()["fingerprints"]["image"]
    assert (about["rows"], about["width"], about["backbone"]["name"]) == ("", 16, "open_clip/tiny")


def test_text_rows_go_around_every_text_and_leave_pictures_alone(
    tiny_clip: Backbone, coop: PromptSet
) -> None:
    e = Encoder(tiny_clip, coop)
    same(e.texts(["a red mug"])[0], plain(tiny_clip, "<ctx*3> a red mug.", coop.rows))
    same(e.texts(["a red mug"]), Tuned(tiny_clip, coop).encode_text("a red mug", normalize=True).numpy())
    assert (e.images([picture()]) == Encoder(tiny_clip).images([picture()])).all()
    assert e.about() == Encoder(tiny_clip).about()


def test_image_rows_are_written_and_named(tiny_clip: Backbone) -> None:
    prompts = PromptSet({Site("image", "0", "prefix"): rows(2, 32, 5)}, about=named("a photo of a {}."))
    e = Encoder(tiny_clip, prompts)
    pixels = tiny_clip.preprocess(picture())[None]
    with torch.no_grad():
        same(
            e.images([picture()]), F.normalize(encode(tiny_clip.image, pixels, prompts.rows), dim=-1).numpy()
        )
    assert e.about()["rows"] == prompts.written("image") != ""
    # a sentence without rows is for class names; a query is said as it is
    same(e.texts(["two cats"])[0], plain(tiny_clip, "two cats"))


def test_concepts_stand_where_a_text_says_their_names(
    tiny_clip: Backbone, coop: PromptSet, mug: PromptSet
) -> None:
    cat = PromptSet({CAT: rows(4, 24, 3), Site("text", "1", "<my-cat>"): rows(4, 24, 4)}, about=named("{}"))
    assert placeholders(cat) == ["my-cat"]
    every = {**coop.rows, **mug.rows, **cat.rows}
    texts = [
        "a red mug",
        "a <my-mug> on grass",
        "<my-cat> beside <my-mug>",
        "two cats",
        "<my-mug> and <my-mug>",
    ]
    said = [
        "<ctx*3> a red mug.",
        "<ctx*3> a <my-mug*2> on grass.",
        "<ctx*3> <my-cat*4> beside <my-mug*2>.",
        "<ctx*3> two cats.",
        "<ctx*3> <my-mug*2> and <my-mug*2>.",
    ]
    found = Encoder(tiny_clip, coop, [mug, cat]).texts(texts)
    for vector, sentence in zip(found, said, strict=True):
        own = {s: r for s, r in every.items() if s.slot[:-1] in sentence}
        if sentence.count("<my-mug") == 2:
            own[MUG] = torch.cat([own[MUG]] * 2)
        same(vector, plain(tiny_clip, sentence, own))
    # of the same user alone, and without the prompts
    same(
        Encoder(tiny_clip, None, [mug]).texts(texts[1:2])[0],
        plain(tiny_clip, "a <my-mug*2> on grass", mug.rows),
    )
    assert Encoder(tiny_clip, coop, [mug, cat]).about()["rows"] == ""


def test_a_name_that_nobody_learned_is_refused_with_those_that_are(
    tiny_clip: Backbone, mug: PromptSet
) -> None:
    with pytest.raises(ValueError, match=r"<my-dog> in 'a <my-dog>'; there are rows for <my-mug>"):
        Encoder(tiny_clip, None, [mug]).texts(["a <my-dog>"])
    with pytest.raises(ValueError, match="rows for none"):
        Encoder(tiny_clip).texts(["a <my-dog>"])
    with pytest.raises(ValueError, match="two of these files have rows for text/embedded/<my-mug>"):
        Encoder(tiny_clip, mug, [mug])
    with pytest.raises(ValueError, match=r"holds image/0/prefix.*as prompts"):
        Encoder(tiny_clip, None, [PromptSet({Site("image", "0", "prefix"): rows(2, 32, 1)})])
    with pytest.raises(ValueError, match="query 2 of 2 has no words"):
        Encoder(tiny_clip).texts(["a", " "])


def test_a_long_text_loses_its_last_words_and_is_told_of(
    tiny_clip: Backbone, coop: PromptSet, mug: PromptSet
) -> None:
    long = " ".join(["red"] * 60 + ["bicycle"] * 60)
    with pytest.warns(UserWarning, match=r"longer than the 77 tokens.*cut after"):
        found = Encoder(tiny_clip, coop).texts([long])[0]
    same(found, plain(tiny_clip, "<ctx*3> " + " ".join(["red"] * 60 + ["bicycle"] * 11) + ".", coop.rows))
    with pytest.warns(UserWarning, match="cut"):
        found = Encoder(tiny_clip, None, [mug]).texts([f"a <my-mug> beside {long}"])[0]
    cut = "a <my-mug*2> beside " + " ".join(["red"] * 60 + ["bicycle"] * 11)
    same(found, plain(tiny_clip, cut, mug.rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Encoder(tiny_clip).texts([" ".join(["red"] * 75)])  # with start and end as long as can be


def test_rows_of_one_class_each_say_no_other_text(tiny_clip: Backbone) -> None:
    own = PromptSet(
        {CTX: torch.zeros(2, 3, 24)},
        about={"names": {"sentence": "<ctx*3> {}.", "class_specific": True}, "classes": ["a", "b"]},
    )
    with pytest.raises(ValueError, match="one class each"):
        Encoder(tiny_clip, own).texts(["a cat"])
    assert Encoder(tiny_clip, own).images([picture()]).shape == (1, 16)


def test_a_network_of_pictures_alone_is_searched_by_picture() -> None:
    backbone = Backbone(
        "timm/tiny",
        {"image": tiny()},
        {
            "input_size": [3, 32, 32],
            "interpolation": "bilinear",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "crop_pct": 1.0,
        },
        "timm",
    )
    e = Encoder(backbone)
    assert np.allclose(np.linalg.norm(e.images([picture()]), axis=1), 1)
    with pytest.raises(ValueError, match=r"no text tower.*searched by picture only"):
        e.texts(["a cat"])
    about = {"head": {"reads": "features"}, "classes": ["a", "b"]}
    head = {"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}
    prompts = PromptSet({Site("image", "0", "prefix"): rows(2, 32, 1)}, head, about=about)
    with torch.no_grad():
        pixels = backbone.preprocess(picture())[None]
        want = F.normalize(encode(backbone.image, pixels, prompts.rows), dim=-1).numpy()
    same(Encoder(backbone, prompts).images([picture()]), want)


def test_opened_from_files_it_takes_the_backbone_they_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which backbone"):
        Encoder.open()
    bare = PromptSet({CTX: rows(3, 24, 1)}).save(tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="which backbone"):
        Encoder.open(prompts=bare)
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        Encoder.open(concepts=[tmp_path / "none.safetensors"])
