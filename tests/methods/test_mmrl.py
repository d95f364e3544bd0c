"""MMRL against a loop over open_clip's own modules written by hand, and the slot that a causal tower opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt import text as text_module
from vpt.encode import encode, tap
from vpt.methods.mmrl import MMRL
from vpt.prompt import Site
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.tune import tune
from vpt.tasks.tuned import load_prompts
from vpt.text import encode_text, lay
from vpt.towers.backbone import Backbone

NAMES = ("red_square", "green circle", "blue star 3", "car")
OPTIONS: dict[str, Any] = {"length": 3, "layers": 2, "shared": 20}


@pytest.fixture
def made(tiny_clip: Backbone) -> Learner:
    torch.manual_seed(0)
    method = build_method("mmrl", tiny_clip, OPTIONS)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(torch.randn_like(p) * 0.3)  # the maps of a tower start alike
    return Learner(method, tiny_clip, NAMES)


def text_by_hand(t: Any, ids: Tensor, rows: list[Tensor]) -> Tensor:
    """Text features [K, out]: 77 tokens up to the layer where rows enter behind the start token, then more."""
    blocks, n = list(t.transformer.resblocks), len(rows[0])
    x = t.token_embedding(ids) + t.positional_embedding
    below = len(blocks) - len(rows)
    for i, block in enumerate(blocks):
        if i >= below:
            rest = x[:, 1:] if i == below else x[:, 1 + n :]
            x = torch.cat([x[:, :1], rows[i - below].expand(len(x), -1, -1), rest], 1)
        x = block(x, attn_mask=torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1))
    assert x.shape[1] == 77 + n
    return t.ln_final(x)[torch.arange(len(ids)), ids.argmax(1) + n] @ t.text_projection


def image_by_hand(v: Any, images: Tensor, rows: list[Tensor], projection: Tensor) -> tuple[Tensor, Tensor]:
    """The class token's feature and that of the rows' outputs, [batch, out] each."""
    blocks, n = list(v.transformer.resblocks), len(rows[0])
    x = v.conv1(images).flatten(2).mT
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    x, below = v.ln_pre(x), len(blocks) - len(rows)
    for i, block in enumerate(blocks):
        if i >= below:
            rest = x[:, 1:] if i == below else x[:, 1 + n :]
            x = torch.cat([x[:, :1], rows[i - below].expand(len(x), -1, -1), rest], 1)
        x = block(x)
    x = v.ln_post(x)
    return x[:, 0] @ v.proj, x[:, 1 : 1 + n].mean(1) @ projection


def by_hand(method: MMRL, b: Backbone, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ids = b.tokens([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    text = text_by_hand(b.text.model, ids, [m(method.shared_tokens) for m in method.to_text])
    rows = [m(method.shared_tokens) for m in method.to_image]
    return (*image_by_hand(b.image.model, images, rows, method.projection), text)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_features_loss_and_gradients_are_those_of_a_loop_by_hand(
    made: Learner, packed: bool, tiny_clip: Backbone, images: Tensor
) -> None:
    b, method, labels = tiny_clip, made.method, torch.tensor([0, 3, 2])
    assert isinstance(method, MMRL)
    made.speech.packed = packed
    made.train()
    seen = made.see(images)
    by_class, by_rows, text = by_hand(method, b, images)
    assert len(made.streams()[0].x) == (1 if packed else len(NAMES))
    torch.testing.assert_close(seen.image, by_class, rtol=0, atol=2e-5)
    assert seen.text is not None
    torch.testing.assert_close(seen.text, text, rtol=0, atol=2e-5)
    v, r, t = (F.normalize(f, dim=-1) for f in (by_class, by_rows, text))
    logits, read = b.scale * v @ t.T, b.scale * r @ t.T
    torch.testing.assert_close(seen.logits, 0.7 * logits + 0.3 * read, rtol=0, atol=1e-4)
    v0 = encode(b.image, images)
    ids = b.tokens([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    t0 = encode(b.text, ids)
    wanted = 0.7 * F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(read, labels)
    wanted = wanted + 2 - F.cosine_similarity(v, v0, dim=1).mean() - F.cosine_similarity(t, t0, dim=1).mean()
    loss = method.total(method.losses(seen, lambda x: F.cross_entropy(x, labels)))
    torch.testing.assert_close(loss, wanted, rtol=0, atol=2e-5)
    params = list(method.parameters())
    for got, want in zip(torch.autograd.grad(loss, params), torch.autograd.grad(wanted, params), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=5e-5 * float(want.abs().max()) + 1e-7)
    assert all(p.grad is None for tower in b.towers.values() for p in tower.model.parameters())


def test_other_names_are_told_by_the_class_token_alone(
    made: Learner, tiny_clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    about = {"kind": "prompt set", "method": {"name": "mmrl", "options": OPTIONS}, "classes": list(NAMES)}
    prompts = made.eval().export({**about, "backbone": tiny_clip.label()})
    prompts.save(tmp_path / "p.safetensors")
    tuned = load_prompts(tmp_path / "p.safetensors", tiny_clip, device="cpu")
    assert not tuned.rows
    assert isinstance(made.method, MMRL)
    by_class, by_rows, text = by_hand(made.method, tiny_clip, images)
    v, r, t = (F.normalize(f, dim=-1).detach() for f in (by_class, by_rows, text))
    alone, mixed = tiny_clip.scale * v @ t.T, tiny_clip.scale * (0.7 * v + 0.3 * r) @ t.T
    torch.testing.assert_close(tuned.logits(images), mixed, rtol=0, atol=1e-4)
    some = tuned.with_classes(["car", "red_square"])
    torch.testing.assert_close(some.logits(images), mixed[:, [3, 0]], rtol=0, atol=1e-4)
    new = some.with_classes(["car", "red_square", "dog"])
    torch.testing.assert_close(new.logits(images)[:, :2], alone[:, [3, 0]], rtol=0, atol=1e-4)
    new.save(tmp_path / "new.safetensors")
    again = load_prompts(tmp_path / "new.safetensors", tiny_clip, device="cpu")
    torch.testing.assert_close(again.logits(images), new.logits(images))
    back = new.with_classes(list(NAMES))
    torch.testing.assert_close(back.logits(images), mixed, rtol=0, atol=1e-4)
    torch.testing.assert_close(tuned.encode_image(images), by_class.detach(), rtol=0, atol=2e-5)
    torch.testing.assert_close(tuned.encode_text(["car"])[0], text[3].detach(), rtol=0, atol=2e-5)


def test_frozen_features_are_made_for_training_alone(
    made: Learner, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpt.tasks import learner as module

    passes: list[bool] = []
    inner = module.encode
    monkeypatch.setattr(module, "encode", lambda t, x, *r: (passes.append(x is images), inner(t, x, *r))[1])
    made.eval().see(images)
    assert passes.count(True) == 0
    made.train().see(images)
    assert passes.count(True) == 1


def test_it_trains_from_stored_streams_as_from_pictures(
    tiny_clip: Backbone, paint: Callable[..., Path], tmp_path: Path
) -> None:
    data = paint(tmp_path, {"train": 4, "val": 1, "test": 4}, noise=30)
    recipe = {"epochs": 6, "lr": 0.01, "batch_size": 6, "device": "cpu", "progress": False}
    recipe |= {"precision": "float32", **OPTIONS}
    stored, fresh = (tune(tiny_clip, str(data), "mmrl", store=where, **recipe) for where in ("memory", "off"))
    assert {m["name"]: m["value"] for m in stored.metrics if m["split"] == "test"}["top1"] > 0.8
    for key, value in stored.prompts.method.items():
        torch.testing.assert_close(fresh.prompts.method[key], value, rtol=0, atol=1e-4)


def test_blocks_below_the_rows_read_the_names_once(
    made: Learner, tiny_clip: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    block: Any = tiny_clip.text.model
    passes: list[int] = []
    lowest = block.transformer.resblocks[0]
    handle = lowest.register_forward_hook(lambda *_: passes.append(1))
    made.train()
    made.taught()  # the frozen features of the names need it too
    passes.clear()
    with torch.inference_mode():
        made.see(images)
    first = made.see(images)
    for _ in range(2):
        again = made.see(images)
    handle.remove()
    assert len(passes) == 1
    assert first.text is not None
    assert again.text is not None
    assert torch.equal(first.text, again.text)
    first.text.sum().backward()
    assert made.method.shared_tokens.grad.abs().sum() > 0  # type: ignore[operator,union-attr]
    kept = made._kept["below"]
    monkeypatch.setattr(text_module, "GRAPH", 0)
    own = {s: r for s, r in made.method(made.context()).items() if s.tower == "text"}
    both = [kept[0], kept[0]]  # several streams, each computed anew in backward
    twice = encode_text(tiny_clip.text, both, own)
    torch.testing.assert_close(twice[: len(NAMES)], first.text)
    assert text_module._graph(tiny_clip.text, kept, 1) == text_module._graph(
        tiny_clip.text, made.streams(), 1
    )


def test_the_last_block_works_for_what_is_read(made: Learner, tiny_clip: Backbone, images: Tensor) -> None:
    """The class token and the rows; the patches are keys and values there."""
    v: Any = tiny_clip.image.model
    lengths: list[int] = []
    handle = v.transformer.resblocks[-1].mlp.register_forward_hook(
        lambda m, x, y: lengths.append(x[0].shape[1])
    )
    made.eval().see(images)
    handle.remove()
    assert lengths == [1 + 3]


def test_what_cannot_be_is_refused(tiny_clip: Backbone) -> None:
    with pytest.raises(ValueError, match="layers=4 does not fit towers of which the shallower has 3"):
        build_method("mmrl", tiny_clip, {"layers": 4})
    ids = tiny_clip.tokens(["a car"])
    for stage, slot, said in (
        ("1", "suffix", r"seen by no token.*behind the start token"),
        ("embedded", "prefix", "no slot can be opened at text/embedded"),
    ):
        rows = {Site("text", stage, slot): torch.zeros(2, 24)}
        with pytest.raises(ValueError, match=said):
            encode(tiny_clip.text, ids, rows)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("group", [8, 384])
def test_a_tree_grows_behind_its_start_token(tiny_clip: Backbone, live: bool, group: int) -> None:
    """Sentences that share more than their start, rows of several pictures, rows that are not replaced."""
    b, names = tiny_clip, ["red car", "red", "red car door", "sky"]
    sentences = b.sentences("a photo of a {}.", names)
    packed = lay(b.text, sentences, group=group)
    assert (len(packed) > 1) == (group == 8)
    torch.manual_seed(0)
    rows = {Site("text", "1", "prefix"): torch.randn(5, 4, 24)}
    found = encode_text(b.text, packed, rows, sets=5, live=live)
    t: Any = b.text.model
    ids = b.tokens([f"a photo of a {n}." for n in names])
    for i in range(5):
        x = t.token_embedding(ids) + t.positional_embedding
        causal = torch.full((81, 81), -torch.inf).triu(1)
        for k, block in enumerate(t.transformer.resblocks):
            if k == 1:
                own = rows[Site("text", "1", "prefix")][i].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], own, x[:, 1:]], 1)
            x = block(x, attn_mask=causal[: x.shape[1], : x.shape[1]])
        wanted = t.ln_final(x)[torch.arange(4), ids.argmax(1) + 4] @ t.text_projection
        torch.testing.assert_close(found[i], wanted, rtol=0, atol=2e-5)


def test_a_tapped_tree_shows_what_a_row_sees(tiny_clip: Backbone) -> None:
    """The start token is before the rows and stays as it is; every other token moves."""
    (packed,) = lay(tiny_clip.text, tiny_clip.sentences("a {}.", ["car", "red dog"]))
    rows = {Site("text", "1", "prefix"): torch.randn(2, 24)}
    with_rows = tap(tiny_clip.text, packed, rows, at=["2"])["2"]
    without = tap(tiny_clip.text, packed, {}, at=["2"])["2"]
    assert with_rows.x.shape[1] == without.x.shape[1] + 2
    moved = (with_rows.own() - without.x).abs().amax(-1)[0]
    assert moved[0] < 1e-5
    assert moved[1:].min() > 1e-3
    assert torch.equal(with_rows.places["prefix"], torch.tensor([[1, 2]]))
    longer = {Site("text", "1", "prefix"): torch.cat([rows[Site("text", "1", "prefix")], torch.randn(1, 24)])}
    third = tap(tiny_clip.text, packed, longer, at=["2"])["2"]
    torch.testing.assert_close(
        third.x[:, 1:3], with_rows.x[:, 1:3], rtol=0, atol=1e-5
    )  # a row sees none behind it


def test_the_learned_are_tokens_maps_and_projection_as_published(tiny_clip: Backbone) -> None:
    torch.manual_seed(0)
    method = MMRL(tiny_clip.image, tiny_clip.text, shared=512)
    assert method.shared_tokens.shape == (5, 512)
    assert abs(float(method.shared_tokens.detach().std()) - 0.02) < 2e-3
    assert abs(float(method.projection.detach().std()) - 32**-0.5) < 2e-2
    assert isinstance(method.to_image[0], nn.Linear)
    assert torch.equal(method.to_image[0].weight, method.to_image[1].weight)
    assert len(method.to_image) == len(method.to_text) == 2  # 7/12 of 3
