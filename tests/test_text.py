"""Sentences packed, cut and recomputed give the features and gradients of the sentences one by one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

import vpt.text as home
from vpt.encode import advance, encode
from vpt.prompt import Site
from vpt.text import Sentence, encode_text, lay, pack
from vpt.tower import Stream, Tower
from vpt.towers.backbone import Backbone
from vpt.towers.clip import open_text

NAMES = [
    "cat",
    "golden retriever",
    "red panda",
    "great white shark",
    "catfish",
    "tabby cat",
    "red-footed booby",
]
LAYOUTS = {
    "front": "<ctx*4> {}.",
    "behind words": "a photo of a <ctx*2> {}.",
    "middle": "<ctx*2> {} <ctx*2>.",
    "end": "{} <ctx*4>.",
    "none": "a photo of a {}.",
}
WIDTH = 24  # of tiny_clip's text tower


def sites(deep: bool) -> list[Site]:
    return [Site("text", stage, "<ctx>") for stage in (("embedded", "1", "2") if deep else ("embedded",))]


def one_by_one(tower: Tower, sentences: list[Sentence], rows: Mapping[Site, Tensor], classes: bool) -> Tensor:
    """The truth: every sentence alone, at its full length, plainly, with the rows of its own."""
    features = []
    for s in sentences:
        context = tower.reading.context  # type: ignore[union-attr]
        ids = torch.tensor([[*s.ids, *[0] * (context - len(s.ids))]])
        places = {slot: torch.tensor([at]) for slot, at in s.slots.items()}
        stream = tower.begin(ids)
        own = {site: r[s.group] if classes else r for site, r in rows.items()} if places else {}
        features.append(encode(tower, replace(stream, places={**stream.places, **places}), own, live=False))
    return torch.cat(features)


def grads(features: Tensor, rows: Mapping[Site, Tensor]) -> list[Tensor]:
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    return list(torch.autograd.grad((features * weight).sum(), list(rows.values())))


@pytest.mark.parametrize("way", ["packed", "groups", "cut", "recomputed", "recomputed, cut"])
@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
@pytest.mark.parametrize("classes", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_gives_the_sentences_one_by_one(
    tiny_clip: Backbone, layout: str, classes: bool, deep: bool, way: str
) -> None:
    tower, sentences = tiny_clip.text, tiny_clip.sentences(LAYOUTS[layout], NAMES, grouped=classes)
    n = sum(len(places) for places in sentences[0].slots.values())
    shape = (len(NAMES), n, WIDTH) if classes else (n, WIDTH)
    rows = {site: torch.randn(shape, requires_grad=True) for site in sites(deep)} if n else {}
    ways: dict[str, dict[str, Any]] = {
        "packed": {},
        "groups": {"group": 20},
        "recomputed": {"group": 20},
        "cut": {"packed": False, "batch": 3},
        "recomputed, cut": {"packed": False, "batch": 3},
    }
    streams = lay(tower, sentences, **ways[way])
    assert (len(streams) > 1) == (way != "packed")
    got = encode_text(tower, streams, rows, recompute="recomputed" in way)
    want = one_by_one(tower, sentences, rows, classes)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (want[0] - want[1:]).abs().amax(1).min() > 1e-3
    if rows:
        for ours, theirs in zip(grads(got, rows), grads(want, rows), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert theirs.abs().amax(-1).min() > 1e-5


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("passes", [10_000, 60])
def test_sets_of_rows_meet_every_sentence(
    tiny_clip: Backbone, packed: bool, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CoCoOp: as many sets as pictures, also where there are as many as sentences; deep rows are shared by all."""
    monkeypatch.setitem(home.PASS, "cpu", passes)
    tower, sentences = tiny_clip.text, tiny_clip.sentences("<ctx*4> {}.", NAMES)
    first, second = sites(True)[:2]
    for sets in (1, 3, len(NAMES)):
        rows = {first: torch.randn(sets, 4, WIDTH, requires_grad=True), second: torch.randn(4, WIDTH)}
        streams = lay(tower, sentences, packed=packed, group=30, batch=4)
        got = encode_text(tower, streams, rows, sets=sets)
        assert got.shape == (sets, len(NAMES), 16)
        want = torch.stack(
            [
                one_by_one(tower, sentences, {first: rows[first][i], second: rows[second]}, False)
                for i in range(sets)
            ]
        )
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        own = {first: rows[first]}
        torch.testing.assert_close(grads(got, own)[0], grads(want, own)[0], rtol=1e-4, atol=1e-5)


def test_several_placeholders_and_rows_of_one_sentence(tiny_clip: Backbone) -> None:
    tower, sentences = tiny_clip.text, tiny_clip.sentences("<a> of <b*2> {} <a>", NAMES)
    rows = {
        Site("text", "embedded", slot): torch.randn(2, WIDTH, requires_grad=True) for slot in ("<a>", "<b>")
    }
    got = encode_text(tower, lay(tower, sentences), rows)
    want = one_by_one(tower, sentences, rows, False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads(got, rows), grads(want, rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_packed_row_holds_every_beginning_once(tiny_clip: Backbone) -> None:
    [stream] = lay(tiny_clip.text, tiny_clip.sentences("<ctx*4> {}.", ["cat", "cat food", "dog"]))
    cat, food, dog, stop = (tiny_clip.tokens.words(w)[0] for w in ("cat", "food", "dog", "."))
    holder, end = tiny_clip.tokens.words("X")[0], 49407
    assert stream.x.tolist() == [[49406, *[holder] * 4, cat, stop, end, food, stop, end, dog, stop, end]]
    assert stream.positions is not None
    assert stream.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 5, 6, 7]]
    assert stream.places["end"].tolist() == [[7, 10, 13]]
    assert stream.places["<ctx>"].tolist() == [[1, 2, 3, 4]]
    assert stream.source["<ctx>"].tolist() == [[0, 1, 2, 3]]
    seen = stream.mask == 0
    ancestors = [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}]
    stem = ancestors[-1]
    ancestors += [stem | {5}, stem | {5, 6}, stem | {5, 6, 7}, stem | {5, 8}, stem | {5, 8, 9}]
    ancestors += [stem | {5, 8, 9, 10}, stem | {11}, stem | {11, 12}, stem | {11, 12, 13}]
    assert [set(row.nonzero()[:, 0].tolist()) for row in seen] == ancestors


def test_a_row_of_a_class_is_no_beginning_of_another(tiny_clip: Backbone) -> None:
    names = ["cat", "dog", "fish"]
    shared, own = (
        lay(tiny_clip.text, tiny_clip.sentences("<ctx*2> {}", names, grouped=grouped))[0]
        for grouped in (False, True)
    )
    assert own.x.numel() == shared.x.numel() + 2 * 2
    assert own.source["<ctx>"].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_equal_sentences_are_one_and_come_back_as_often_as_they_went_in(tiny_clip: Backbone) -> None:
    sentences = tiny_clip.sentences("a {}.", ["cat", "dog", "cat"])
    [stream] = lay(tiny_clip.text, sentences)
    assert stream.places["end"][0, 0] == stream.places["end"][0, 2]
    features = encode_text(tiny_clip.text, [stream], {})
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[1])


def test_groups_are_about_as_large_as_asked_and_keep_the_order(tiny_clip: Backbone) -> None:
    names = [
        f"{a} {b}" for a in ("red", "green", "blue", "small", "large") for b in ("cat", "dog", "fish", "bird")
    ]
    sentences = tiny_clip.sentences("a photo of a {}.", names)
    streams = lay(tiny_clip.text, sentences, group=20)
    sizes = [s.x.shape[1] for s in streams]
    assert len(sizes) > 2
    assert max(sizes) <= 35  # a group, and the beginning that it repeats
    assert sum(s.places["end"].shape[1] for s in streams) == len(names)
    apart = torch.cat([encode_text(tiny_clip.text, lay(tiny_clip.text, [s]), {}) for s in sentences])
    torch.testing.assert_close(encode_text(tiny_clip.text, streams, {}), apart, rtol=1e-5, atol=1e-5)


def bidirectional(**options: Any) -> Tower:
    sizes = {
        "context_length": 14,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 2,
        "layers": 2,
        "output_dim": 16,
    }
    return open_text(TextTransformer(**sizes, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        {"no_causal_mask": True},
        {"embed_cls": True},
    ],
    ids=["siglip", "mobileclip", "coca"],
)
def test_towers_that_see_padding_read_full_length(options: dict[str, Any], shaken: Any) -> None:
    tower = bidirectional(**options)
    shaken(tower.model, 0.5)
    sentences = [
        Sentence((49406, 5, 6, *ids, 49407), {"<ctx>": (1, 2)}) for ids in ((9,), (10, 11), (12, 13, 14))
    ]
    streams = lay(tower, sentences)
    assert [tuple(s.x.shape) for s in streams] == [(3, 14)]
    rows = {
        Site("text", stage, "<ctx>"): torch.randn(2, WIDTH, requires_grad=True) for stage in ("embedded", "1")
    }
    got, want = encode_text(tower, streams, rows), one_by_one(tower, sentences, rows, False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads(got, rows), grads(want, rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        ids = torch.tensor([[*s.ids, *[0] * (14 - len(s.ids))] for s in sentences])
        assert torch.equal(encode_text(tower, streams, {}), tower.model(ids))


def test_causal_sentences_are_cut_after_the_longest(tiny_clip: Backbone) -> None:
    sentences = tiny_clip.sentences("a {}.", NAMES)
    [plain] = lay(tiny_clip.text, sentences, packed=False)
    assert plain.x.shape == (len(NAMES), 77)  # packed=False is the library's way
    assert plain.mask is None


def test_memory_does_not_grow_with_the_number_of_sentences(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recompute keeps nothing of a group but its features: tensors that backward needs are counted."""
    tower, sentences = tiny_clip.text, tiny_clip.sentences("<ctx*4> {}.", NAMES)
    rows = {sites(False)[0]: torch.randn(4, WIDTH, requires_grad=True)}

    def kept(count: int, **options: Any) -> int:
        seen: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            seen[id(t)] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            encode_text(tower, lay(tower, sentences[:count], group=14), rows, **options)
        return sum(seen.values())

    assert kept(7, recompute=False) > 1.4 * kept(3, recompute=False)
    assert kept(7, recompute=True) < 0.2 * kept(7, recompute=False)
    assert kept(7) == kept(7, recompute=False)  # small enough to be kept
    monkeypatch.setattr(home, "GRAPH", 1)
    assert kept(7) == kept(7, recompute=True)
    with torch.no_grad():
        assert encode_text(tower, lay(tower, sentences, group=14), rows, recompute=True).shape == (7, 16)


def test_memory_does_not_grow_with_the_number_of_sets(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that depend on the picture (CoCoOp): one packed row a picture, and none is kept for backward."""
    tower, (stream,) = tiny_clip.text, lay(tiny_clip.text, tiny_clip.sentences("<ctx*4> {}.", NAMES))

    def kept(sets: int) -> int:
        seen: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            seen[id(t)] = t.numel()
            return t

        rows = {sites(False)[0]: torch.randn(sets, 4, WIDTH, requires_grad=True)}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            assert encode_text(tower, [stream], rows, sets=sets).shape == (sets, len(NAMES), 16)
        return sum(seen.values())

    whole = kept(6)
    assert whole > 1.8 * kept(3)
    monkeypatch.setattr(home, "GRAPH", 1)
    assert kept(6) < 0.1 * whole


def test_rows_of_other_towers_and_no_rows_pass(tiny_clip: Backbone) -> None:
    tower, sentences = tiny_clip.text, tiny_clip.sentences("a {}.", NAMES)
    rows = {Site("image", "0", "prefix"): torch.randn(2, 32)}
    plain = encode(tower, tiny_clip.tokens([f"a {name}." for name in NAMES]))
    torch.testing.assert_close(encode_text(tower, lay(tower, sentences), rows), plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the 'image' tower reads no sentences"):
        lay(tiny_clip.image, sentences)


def test_a_packed_stream_can_stop_and_go_on(tiny_clip: Backbone) -> None:
    tower = tiny_clip.text
    stream = pack(tiny_clip.sentences("<ctx*4> {}.", NAMES))
    rows = {Site("text", "2", "<ctx>"): torch.randn(4, WIDTH)}
    half = advance(tower, stream, {}, "2")
    assert isinstance(half, Stream)
    torch.testing.assert_close(encode(tower, half, rows), encode(tower, stream, rows))
