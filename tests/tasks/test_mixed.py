"""One batch of many users gives what each user's own prompt set gives alone, in one pass a layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

import vpt.tasks.mixed as home
import vpt.text
from vpt.encode import encode, encode_grid
from vpt.prompt import Site
from vpt.promptset import PromptSet
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.mixed import encode_images, encode_texts
from vpt.tasks.tuned import Tuned
from vpt.tower import Tower
from vpt.towers.backbone import Backbone
from vpt.towers.load_clip import backbone_of

USERS = {  # all of these may share one packed row
    "coop": ("coop", {"length": 4}),
    "coop, other rows": ("coop", {"length": 4}),
    "coop, middle": ("coop", {"length": 3, "place": "middle"}),
    "coop, front": ("coop", {"length": 2, "place": "front"}),
    "deep": ("ivlp", {"length": 3, "image_length": 2}),
    "deep, other rows": ("ivlp", {"length": 3, "image_length": 2}),
    "deep, words": ("ivlp", {"length": 2, "image_length": 2}),
    "deep, lower": ("maple", {"length": 2, "layers": 2}),
    "pictures only": ("clip-vpt", {"length": 2}),
    "pixels": ("pixel", {"size": 2}),
    "a head": ("vpt-deep", {"length": 2}),
    "zero-shot": ("zero-shot", {"template": "a drawing of a {}."}),
    "ensemble": ("zero-shot-ensemble", {"templates": "imagenet-7"}),
}


def tuned_on(backbone: Backbone, name: str, options: dict[str, Any], seed: int = 0) -> Tuned:
    """A prompt set with rows (or a baseline with weights) far enough from the start to be seen."""
    torch.manual_seed(seed)
    learner = Learner(build_method(name, backbone, options), backbone, ["cat", "dog"])
    with torch.no_grad():
        for p in learner.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * (0.05 if learner.network else 0.5))
    kind = "baseline" if learner.network or not learner.method.trains else "prompt set"
    about = {"kind": kind, "method": {"name": name, "options": options}, "classes": ["cat", "dog"]}
    return Tuned(backbone, learner.export(about))


def concept(backbone: Backbone, name: str = "<my-mug>", length: int = 2, seed: int = 50) -> Tuned:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(length, backbone.text.width, generator=generator)
    return Tuned(backbone, PromptSet({Site("text", "embedded", name): rows}))


@pytest.fixture(scope="module")
def users(tiny_clip: Backbone) -> dict[str, Tuned]:
    return {label: tuned_on(tiny_clip, *how, seed=i) for i, (label, how) in enumerate(USERS.items())}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What went through a whole tower, one entry a pass."""
    seen: list[str] = []

    def grid(tower: Tower, *given: Any, **options: Any) -> Tensor:
        seen.append("text")
        return encode_grid(tower, *given, **options)

    def one(tower: Tower, *given: Any, **options: Any) -> Tensor:
        seen.append("image")
        return encode(tower, *given, **options)

    monkeypatch.setattr(vpt.text, "encode_grid", grid)
    monkeypatch.setattr(home, "encode", one)
    return seen


def shuffled(pairs: list[Any]) -> list[Any]:
    return [pairs[i] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(4)).tolist()]


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    far = torch.cdist(want.double(), want.double())
    assert (far + torch.eye(len(want)) * 9).min() > 1e-3, (
        "users whose features are alike would hide a mistake"
    )


def texts(users: dict[str, Tuned], backbone: Backbone) -> list[tuple[Tuned, str]]:
    mug = concept(backbone)
    asked = [(t, name) for t in users.values() for name in ("cat", "red_panda")]
    own = [(users["coop"], "two <ctx*4> beside a dog"), (users["deep"], "<ctx> and <ctx*2>")]
    own += [(mug, "a photo of <my-mug*2> on a shelf"), (mug, "my <my-mug*2>")]
    # a concept under the very name of CoOp's slot
    return shuffled(asked + own + [(concept(backbone, "<ctx>", 4), "<ctx*4> cat.")])


def test_texts_of_many_users_are_those_one_by_one_in_one_pass(
    users: dict[str, Tuned], tiny_clip: Backbone, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(t, s) for t, s in texts(users, tiny_clip) if t not in (users["pictures only"], users["pixels"])]
    want = torch.cat([tuned.encode_text(text) for tuned, text in asked])
    passes.clear()
    monkeypatch.setattr(vpt.text, "GROUP", 10_000)
    same(encode_texts(asked), want)
    assert passes == ["text"]
    monkeypatch.setattr(vpt.text, "GROUP", 40)  # more than one packed row, none of which holds all sets
    passes.clear()
    same(encode_texts(asked), want)
    assert len(passes) > 3
    unit = encode_texts(asked, normalize=True)
    torch.testing.assert_close(unit, nn.functional.normalize(want, dim=-1), rtol=1e-5, atol=1e-5)


def test_captions_are_said_as_each_set_says_them(tiny_clip: Backbone, passes: list[str]) -> None:
    sets = []
    for i, label in enumerate(("coop", "coop, middle", "deep", "zero-shot", "ensemble")):
        tuned = tuned_on(tiny_clip, *USERS[label], seed=i)
        sets.append(
            Tuned(tiny_clip, replace(tuned.prompts, about={**tuned.prompts.about, "task": "retrieve"}))
        )
    long = " ".join(["two dogs  run"] * 40)  # loses its last words
    asked = shuffled([(t, text) for t in sets[:4] for text in (long, "a <b> cat")])
    asked += [(sets[0], "beside <ctx> a dog"), (tuned_on(tiny_clip, *USERS["coop, front"], seed=9), "a dog")]
    want = torch.cat([tuned.encode_text(text) for tuned, text in asked])
    passes.clear()
    same(encode_texts(asked), want)
    assert len(passes) < 4
    torch.testing.assert_close(
        encode_texts([(sets[4], long)]), sets[4].encode_text(long), rtol=1e-5, atol=1e-5
    )


def test_users_who_write_nothing_read_alike(users: dict[str, Tuned]) -> None:
    """Rows in the image tower only: no text tower hears of them."""
    a, b, c = encode_texts([(users[k], "cat") for k in ("pictures only", "a head", "coop")])
    assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(a, c, atol=1e-2)


def test_equal_sets_share_their_tokens(
    users: dict[str, Tuned], tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []

    def counted(tower: Tower, sentences: Any, **options: Any) -> Any:
        streams = vpt.text.lay(tower, sentences, **options)
        tokens.append(sum(s.x.numel() for s in streams))
        return streams

    monkeypatch.setattr(home, "lay", counted)
    mine = users["coop"]
    copy = Tuned(tiny_clip, replace(mine.prompts, rows={k: r.clone() for k, r in mine.prompts.rows.items()}))
    a, b = encode_texts([(mine, "cat"), (copy, "cat")])
    encode_texts([(mine, "cat")])
    encode_texts([(mine, "cat"), (users["coop, other rows"], "cat")])
    assert torch.equal(a, b)
    assert tokens[0] == tokens[1]
    assert tokens[2] == 2 * tokens[1] - 1  # the start token alone is before any row


def test_what_cannot_share_a_pass_runs_apart_and_comes_back_in_its_place(
    users: dict[str, Tuned], tiny_clip: Backbone, passes: list[str]
) -> None:
    apart = [
        tuned_on(tiny_clip, "mmrl", {"length": 2, "shared": 8}, 20),  # opens a slot in the text tower
        tuned_on(tiny_clip, "clip-full", {}, 21),  # weights of its own
    ]
    some = [*apart, *(users[k] for k in ("coop", "deep", "zero-shot"))]
    asked = shuffled([(t, name) for t in some for name in ("cat", "dog", "a house")])
    asked.append((concept(tiny_clip, length=3), "<my-mug*2> and no third"))
    want = torch.cat([tuned.encode_text(text) for tuned, text in asked])
    passes.clear()
    same(encode_texts(asked), want)
    assert len(passes) == 4
    alone = [(t, s) for t, s in asked if t is apart[0]]
    same(encode_texts(alone), torch.cat([t.encode_text(s) for t, s in alone]))


def test_a_text_tower_that_sees_behind_takes_one_pass_a_layout(
    passes: list[str], shaken: Callable[..., nn.Module]
) -> None:
    text = open_clip.model.CLIPTextCfg(width=24, heads=2, layers=3, no_causal_mask=True)
    vision = open_clip.model.CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=8, image_size=32)
    model = open_clip.model.CLIP(16, vision_cfg=vision, text_cfg=text)
    model.visual.preprocess_cfg = {"size": 32}
    backbone = backbone_of(shaken(model, 0.5), "open_clip/bidirectional", "ViT-B-32")
    assert not backbone.text.causal
    users = {
        k: tuned_on(backbone, *USERS[k], seed=i)
        for i, k in enumerate(("coop", "coop, other rows", "coop, front", "deep", "zero-shot"))
    }
    asked = [(t, name) for t in users.values() for name in ("cat", "red_panda")]
    asked = shuffled([*asked, (concept(backbone), "a <my-mug*2>."), (users["deep"], "<ctx> or <ctx*2>")])
    want = torch.cat([tuned.encode_text(text) for tuned, text in asked])
    passes.clear()
    same(encode_texts(asked), want)
    assert len(passes) == 5  # two users of coop lie side by side, and all without rows


def test_pictures_of_many_users_are_those_one_by_one_in_one_pass_a_layout(
    users: dict[str, Tuned], tiny_clip: Backbone, passes: list[str]
) -> None:
    some = [
        *users.values(),
        tuned_on(tiny_clip, "clip-vpt", {"length": 2}, 30),
        tuned_on(tiny_clip, "clip-vpt", {"length": 3}, 31),
        tuned_on(tiny_clip, "mmrl", {"length": 2, "shared": 8}, 32),
        tuned_on(tiny_clip, "prefix", {"length": 2}, 33),
        tuned_on(tiny_clip, "clip-full", {}, 34),
        Tuned(tiny_clip, users["deep"].prompts, precision="bf16-mixed"),
    ]
    pictures = torch.randn(2 * len(some), 3, 32, 32)
    asked = shuffled(list(zip([*some, *some], pictures, strict=True)))
    want = torch.cat([tuned.encode_image(picture[None]).float() for tuned, picture in asked])
    got = encode_images(asked)
    half = [t.precision == "bf16-mixed" for t, _ in asked]
    full = [not h for h in half]
    same(got[full], want[full])
    torch.testing.assert_close(got[half], want[half], rtol=0.02, atol=0.02)
    # nothing written, ivlp's (three users and clip-vpt's two lie side by side), maple's, 3 rows, mmrl's, keys and
    # values, pixels, vpt-deep's, bf16; the baseline runs through its own copy
    assert len(passes) == 9
    unit = encode_images(asked, normalize=True)
    torch.testing.assert_close(unit, nn.functional.normalize(got, dim=-1))


def test_pooling_is_part_of_the_layout(tiny_clip: Backbone) -> None:
    own, rows, both = (
        tuned_on(tiny_clip, "vpt-deep", {"length": 2, "pool": pool}, 40)
        for pool in ("own", "prompt", "global")
    )
    picture = torch.randn(3, 32, 32)
    want = torch.cat([t.encode_image(picture[None]) for t in (rows, both)])
    same(encode_images([(rows, picture), (both, picture)]), want)
    with pytest.raises(ValueError, match=r"pool to \[16, 32\] numbers"):
        encode_images([(own, picture), (rows, picture)])


def test_sets_of_two_backbones_are_refused_with_both_names(
    users: dict[str, Tuned], tiny_clip: Backbone
) -> None:
    twin = replace(tiny_clip, name="a twin")  # the same weights under another name are one backbone
    mine, same_weights = users["coop"], Tuned(twin, users["coop"].prompts)
    assert torch.equal(*encode_texts([(mine, "cat"), (same_weights, "cat")]))
    model = open_clip.model.CLIP(
        16,
        vision_cfg=open_clip.model.CLIPVisionCfg(
            layers=3, width=32, head_width=16, patch_size=8, image_size=32
        ),
        text_cfg=open_clip.model.CLIPTextCfg(width=24, heads=2, layers=3),
    )
    model.visual.preprocess_cfg = {"size": 32}
    other = Tuned(backbone_of(model, "open_clip/other", "ViT-B-32"), mine.prompts)
    with pytest.raises(ValueError, match=r"one backbone.*open_clip/tiny.*[0-9a-f]{16}.*open_clip/other"):
        encode_texts([(mine, "cat"), (other, "cat")])
    with pytest.raises(ValueError, match=r"one backbone.*image tower"):
        encode_images([(mine, torch.zeros(3, 32, 32)), (other, torch.zeros(3, 32, 32))])


def test_what_a_set_refuses_alone_it_refuses_in_a_batch(users: dict[str, Tuned], tiny_clip: Backbone) -> None:
    own_rows = tuned_on(tiny_clip, "coop", {"length": 2, "class_specific": True}, 41)
    with pytest.raises(ValueError, match="belong to a picture or to one class each"):
        encode_texts([(users["coop"], "cat"), (own_rows, "cat")])
    plain = encode_texts([(users["coop"], "cat"), (concept(tiny_clip), "no mug here")])[1:]
    torch.testing.assert_close(plain, concept(tiny_clip).encode_text(["no mug here"]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="nothing was asked"):
        encode_texts([])
