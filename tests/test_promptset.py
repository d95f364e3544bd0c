"""The artifact: what goes in comes out, damage is refused, and sets compose like the vectors that they hold."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vpt.header import BadPromptFile, read_header
from vpt.prompt import Site
from vpt.promptset import (
    PromptSet,
    average,
    fingerprint,
    interpolate,
    join,
    renamed,
    slerp,
    write_atomically,
)
from vpt.tower import Tower
from vpt.towers.vit import tiny

again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def a_set(
    seed: int = 0, *, sites: tuple[str, ...] = ("image/0/prefix", "image/1/prefix"), **about: Any
) -> PromptSet:
    torch.manual_seed(seed)
    rows = {Site(*site.split("/", 2)): torch.randn(3, 4) for site in sites}
    head = {"weight": torch.randn(2, 4), "bias": torch.randn(2)}
    label = {
        "classes": ["cat", "dog"],
        "backbone": {"name": "b", "fingerprints": {"image": "f" * 16}},
        **about,
    }
    return PromptSet(rows, head, {"net.weight": torch.randn(5)}, {"block.bias": torch.randn(2)}, label)


def same(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same(a: PromptSet, b: PromptSet) -> None:
    assert all(same(getattr(a, part), getattr(b, part)) for part in ("rows", "head", "method", "weights"))
    assert {k: b.about[k] for k in a.about} == a.about


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def prompt_sets(draw: st.DrawFn) -> PromptSet:
    def tensor(*shape: int) -> Tensor:
        size = int(torch.Size(shape).numel())
        return torch.tensor(draw(st.lists(NUMBERS, min_size=size, max_size=size)), dtype=torch.float32).view(
            shape
        )

    text = st.characters(exclude_categories=["Cs"])
    towers, stages = (
        st.sampled_from(["image", "text", "text_2"]),
        st.sampled_from(["input", "embedded", "0", "11"]),
    )
    slots = st.sampled_from(["prefix", "kv", "<ctx>", "</s>"]) | st.text(text, min_size=1, max_size=6)
    sites = draw(st.sets(st.builds(Site, towers, stages, slots), max_size=3))
    shapes = st.lists(st.integers(1, 3), min_size=2, max_size=3)
    named = st.sets(st.text(text, min_size=1, max_size=6), max_size=2)
    unknown = draw(st.dictionaries(st.text(min_size=1, max_size=6).map(lambda k: f"x-{k}"), JSON, max_size=3))
    return PromptSet(
        {site: tensor(*draw(shapes)) for site in sites},
        {k: tensor(2) for k in draw(named)},
        {k: tensor(2, 2) for k in draw(named)},
        {},
        {**unknown, "classes": draw(st.lists(st.text(max_size=6), max_size=3))},
    )


@again
@given(prompt_sets())
def test_what_is_saved_comes_back_with_labels_that_this_version_does_not_know(
    tmp_path: Path, s: PromptSet
) -> None:
    path = s.save(tmp_path / "deep" / "x.safetensors")
    back = PromptSet.load(path)
    assert_same(s, back)
    assert back.classes == s.classes
    assert back.hash() == s.hash()
    label = read_header(path).about
    assert label["created"].keys() == {"date", "vpt"}
    assert len(label["sites"]) == len(s.rows)
    assert os.listdir(path.parent) == [path.name]
    assert_same(s, PromptSet.load(back.save(tmp_path / "again")))


def test_names_of_another_encoding_and_class_axes_survive(tmp_path: Path) -> None:
    """A folder that is no UTF-8 gives a class name with a lone surrogate; writing it as such would fail."""
    name = os.fsdecode(b"caf\xe9")
    rows = {
        Site("text", "embedded", "<ctx>"): torch.randn(5, 2, 3),
        Site("image", "0", "prefix"): torch.randn(2, 3),
    }
    back = PromptSet.load(PromptSet(rows, about={"classes": [name, "日本"]}).save(tmp_path / "x"))
    assert back.classes == (name, "日本")
    assert [(s["n"], s.get("sets"), s.get("axis")) for s in back.about["sites"]] == [
        (2, 5, "class"),
        (2, None, None),
    ]


def test_rows_are_stored_as_float32_whatever_they_were(tmp_path: Path) -> None:
    table = torch.nn.Parameter(torch.randn(1, 2, 4, dtype=torch.float64))
    rows = {
        Site("image", str(i), "prefix"): r for i, r in enumerate(table.expand(3, -1, -1))
    }  # one storage for three
    back = PromptSet.load(PromptSet(rows).save(tmp_path / "x"))
    assert all(torch.equal(r, table[0].float()) and not r.requires_grad for r in back.rows.values())


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = a_set().save(tmp_path / "x")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadPromptFile):
            PromptSet.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(BadPromptFile, match="was cut short or has trailing bytes"):
        PromptSet.load(path)


def test_every_changed_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = (s := a_set()).save(tmp_path / "x")
    whole = path.read_bytes()
    for at in range(len(whole)):
        change = (0x01, 0x20, 0x80)[at % 3]
        path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
        try:
            back = PromptSet.load(path)
        except BadPromptFile:
            continue
        assert_same(s, back)


@again
@given(st.data())
def test_no_damage_raises_anything_but_a_refusal(tmp_path: Path, data: st.DataObject) -> None:
    """Without the check, so that the damage reaches every rule and safetensors' own reader."""
    s = a_set()
    save_file(s.tensors(), tmp_path / "x", {"vpt": json.dumps(s.label())})
    raw = bytearray((tmp_path / "x").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "x").write_bytes(raw)
    with contextlib.suppress(BadPromptFile):
        PromptSet.load(tmp_path / "x")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["image/0/prefix", "head/weight", "method/net.weight", "weights/block.bias"])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, name: str, bad: float
) -> None:
    path = (s := a_set()).save(tmp_path / "x")
    before, tensors = path.read_bytes(), s.tensors()
    tensors[name] = tensors[name].index_fill(0, torch.tensor([0]), bad)
    save_file(tensors, tmp_path / "y", {"vpt": json.dumps(s.label())})
    with pytest.raises(BadPromptFile, match=f"{name} holds NaN or infinity"):
        PromptSet.load(tmp_path / "y")
    part, key = ("rows", Site("image", "0", "prefix")) if name.startswith("image") else tuple(name.split("/"))
    getattr(s, part)[key] = tensors[name]
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity, so nothing was written"):
        s.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["image/0/prefix", "head/weight", "method/net.weight", "weights/block.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    s = a_set()
    left = {k: t for k, t in s.tensors().items() if k != name}
    save_file(left, tmp_path / "x", {"vpt": json.dumps(s.label())})
    with pytest.raises(BadPromptFile, match=f"is incomplete: .*{name}"):
        PromptSet.load(tmp_path / "x")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save_file(a_set().tensors(), tmp_path / "x", {"vpt": json.dumps({**a_set().label(), "format": 2})})
    with pytest.raises(BadPromptFile, match="has format 2, this vpt reads format 1"):
        PromptSet.load(tmp_path / "x")


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = a_set(0).save(tmp_path / "x")
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    def half(self: Path, data: bytes) -> None:
        with open(self, "wb") as f:
            f.write(data[: len(data) // 2])
        full()

    monkeypatch.setattr(*((Path, "write_bytes", half) if when == "write" else (os, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        a_set(1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


def test_writing_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a" / "b" / "x", b"old")
    assert write_atomically(path, b"new").read_bytes() == b"new"


@pytest.fixture(scope="module")
def small() -> Tower:
    return tiny()


def fitting(tower: Tower, **rows: Tensor) -> PromptSet:
    prints = {"image": fingerprint(tower, {"size": 32})}
    at = {Site("image", "0", slot): r for slot, r in rows.items()}
    return PromptSet(at, about={"backbone": {"name": "timm/one", "fingerprints": prints}})


def test_the_tower_that_rows_were_learned_on_is_accepted(small: Tower) -> None:
    fitting(small, prefix=torch.zeros(2, 32), kv=torch.zeros(2, 64)).check([small], {"size": 32})
    PromptSet({Site("image", "input", "border"): torch.zeros(112, 3)}).check([small])


@pytest.mark.parametrize(
    ("make", "preprocessing", "message"),
    [
        (
            lambda t: fitting(tiny(num_heads=4), prefix=torch.zeros(2, 32)),
            {"size": 32},
            "another 'image' tower",
        ),
        (lambda t: fitting(t, prefix=torch.zeros(2, 32)), {"size": 48}, "another 'image' tower"),
        (lambda t: fitting(t, prefix=torch.zeros(2, 16)), {"size": 32}, "are 16 wide, this tower takes 32"),
        (lambda t: fitting(t, kv=torch.zeros(2, 32)), {"size": 32}, "are 32 wide, this tower takes 64"),
        (
            lambda t: PromptSet({Site("text", "0", "<ctx>"): torch.zeros(2, 3)}),
            {},
            r"a 'text' tower.*\['image'\]",
        ),
        (
            lambda t: PromptSet({Site("image", "7", "prefix"): torch.zeros(2, 32)}),
            {},
            "no stage '7', only input",
        ),
    ],
    ids=["weights", "picture size", "width", "kv width", "tower", "depth"],
)
def test_another_backbone_is_refused_with_both_values(
    small: Tower, make: Callable[[Tower], PromptSet], preprocessing: dict[str, int], message: str
) -> None:
    s = make(small)
    with pytest.raises(ValueError, match=message) as caught:
        s.check([small], preprocessing)
    if "another" in message:
        assert s.about["backbone"]["fingerprints"]["image"] in str(caught.value)
        assert fingerprint(small, preprocessing) in str(caught.value)
        assert "timm/one" in str(caught.value)


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 5.0]])
def test_an_average_is_the_weighted_mean_of_every_number(weights: list[float] | None) -> None:
    sets = [a_set(i, metrics=[1], train={}, created={"date": "then"}, note="kept") for i in range(3)]
    mean = average(sets, weights)
    share = torch.tensor(weights or [1.0, 1.0, 1.0])
    for name, t in mean.tensors().items():
        stacked = torch.stack([s.tensors()[name] for s in sets])
        want = (stacked * (share / share.sum()).view(-1, *[1] * t.ndim)).sum(0)
        assert torch.allclose(t, want, atol=1e-6)
    assert mean.about["parents"] == [s.hash() for s in sets]
    assert mean.about["note"] == "kept"
    assert not {"metrics", "train", "created"} & mean.about.keys()  # what was measured on others


def test_interpolation_runs_from_one_set_to_the_other() -> None:
    a, b = a_set(0), a_set(1)
    for t in (0.0, 0.25, 1.0):
        mixed = interpolate(a, b, t).tensors()
        assert all(
            torch.allclose(mixed[k], torch.lerp(v, b.tensors()[k], t), atol=1e-6)
            for k, v in a.tensors().items()
        )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (a_set(1, sites=("image/0/prefix",)), "the same sites and shapes"),
        (a_set(1, classes=["dog", "cat"]), "the same classes in the same order"),
        (
            a_set(1, backbone={"fingerprints": {"image": "0" * 16}}),
            "of one backbone; these were learned on 2",
        ),
    ],
)
def test_sets_that_do_not_belong_together_are_not_mixed(other: PromptSet, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average([a_set(0), other])
    with pytest.raises(ValueError, match=message):
        interpolate(a_set(0), other, 0.5)


def test_weights_that_make_no_mean_are_refused() -> None:
    for weights in ([1.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="an average of 2 sets needs as many weights of positive sum"):
            average([a_set(0), a_set(1)], weights)
    with pytest.raises(ValueError, match="needs at least one prompt set"):
        average([])


def test_a_join_is_the_union_in_which_the_later_wins() -> None:
    a, b = (
        a_set(0, note="a", metrics=[1]),
        a_set(1, sites=("image/1/prefix", "text/embedded/<ctx>"), note="b"),
    )
    b.about["backbone"] = {"name": "c", "fingerprints": {"text": "e" * 16}}
    both = join(a, b)
    assert same(both.rows, a.rows | b.rows)
    assert same(both.head, b.head)
    assert both.about["note"] == "b"
    assert "metrics" not in both.about
    assert both.about["parents"] == [a.hash(), b.hash()]
    assert both.about["backbone"]["fingerprints"] == {"image": "f" * 16, "text": "e" * 16}


def test_class_names_go_with_the_head_that_is_kept() -> None:
    a, b = a_set(0), a_set(1, sites=("image/0/suffix",), classes=["x"])
    headless = PromptSet(b.rows, about=b.about)
    assert join(a, headless).classes == ("cat", "dog")
    assert same(join(a, headless).head, a.head)
    assert join(headless, a).classes == ("cat", "dog")


def test_rows_of_different_weights_of_a_tower_are_not_joined() -> None:
    other = a_set(1, backbone={"fingerprints": {"image": "0" * 16}})
    with pytest.raises(ValueError, match=f"different 'image' towers, {'f' * 16} and {'0' * 16}"):
        join(a_set(0), other)


def test_a_join_knows_the_placeholders_of_both() -> None:
    a, b = (
        PromptSet({Site("text", "embedded", slot): torch.randn(1, 4)}, about={"placeholders": {slot: word}})
        for slot, word in (("<my-mug>", "mug"), ("<my-cat>", "cat"))
    )
    assert join(a, b).about["placeholders"] == {"<my-mug>": "mug", "<my-cat>": "cat"}
    assert "placeholders" not in join(a_set(0), a_set(1)).about


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_rows_turn_on_the_sphere_with_constant_speed_and_their_length_goes_linearly(t: float) -> None:
    a, b = a_set(0), a_set(1)
    mixed = slerp(a, b, t)
    for site, got in mixed.rows.items():
        for x, y, row in zip(a.rows[site].double(), b.rows[site].double(), got.double(), strict=True):
            omega = torch.arccos(x @ y / x.norm() / y.norm())
            way = torch.sin((1 - t) * omega) * x / x.norm() + torch.sin(t * omega) * y / y.norm()
            length = (1 - t) * x.norm() + t * y.norm()
            assert torch.allclose(row, length * way / torch.sin(omega), atol=1e-6)
            assert float(row.norm()) == pytest.approx(float(length), abs=1e-6)
            turned = torch.arccos((x @ row / x.norm() / row.norm()).clamp(-1, 1))
            assert float(turned) == pytest.approx(float(t * omega), abs=1e-3)
    assert same(mixed.head, interpolate(a, b, t).head)
    assert mixed.about["parents"] == [a.hash(), b.hash()]


def test_both_ends_of_the_sphere_are_exact() -> None:
    a, b = a_set(0), a_set(1)
    assert same(slerp(a, b, 0).rows, a.rows)
    assert same(slerp(a, b, 1).rows, b.rows)
    assert all(torch.allclose(slerp(a, a, 0.3).rows[s], r, atol=1e-6) for s, r in a.rows.items())


def test_rows_without_a_direction_are_interpolated_and_opposite_ones_have_no_way() -> None:
    site = Site("text", "embedded", "<c>")
    a, b = PromptSet({site: torch.tensor([[0.0, 0], [0, 2]])}), PromptSet({site: torch.ones(2, 2)})
    assert torch.allclose(slerp(a, b, 0.25).rows[site][0], torch.tensor([0.25, 0.25]))
    with pytest.raises(ValueError, match="text/embedded/<c> point in opposite directions"):
        slerp(b, PromptSet({site: -torch.ones(2, 2)}), 0.5)


def test_a_placeholder_gets_another_name() -> None:
    mug, context = Site("text", "embedded", "<my-mug>"), Site("context", "embedded", "positive")
    rows = {mug: torch.randn(1, 4), context: torch.randn(2, 4)}
    s = PromptSet(rows, about={"placeholders": {"<my-mug>": "mug", "<cat>": "cat"}, "metrics": [1]})
    cup = renamed(s, "<my-mug>", "<cup>")
    assert same(cup.rows, {mug._replace(slot="<cup>"): rows[mug], context: rows[context]})
    assert cup.about == {"placeholders": {"<cup>": "mug", "<cat>": "cat"}, "metrics": [1]}
    assert s.about["placeholders"]["<my-mug>"] == "mug"  # the set given is as it was
    with pytest.raises(ValueError, match="has no <dog>; its placeholders: <cat>, <my-mug>"):
        renamed(s, "<dog>", "<cup>")
    with pytest.raises(ValueError, match="two called <cat>"):
        renamed(s, "<my-mug>", "<cat>")


def test_written_names_what_a_set_does_to_one_tower():
    text, image = Site("text", "embedded", "<ctx>"), Site("image", "0", "prefix")
    one, other = torch.ones(2, 4), torch.zeros(2, 4)
    words = PromptSet({text: one})
    assert words.written("image") == ""
    assert words.written("text") == PromptSet({text: one}, about={"task": "retrieve"}).written("text") != ""
    both = PromptSet({text: other, image: one})
    assert both.written("image") == PromptSet({image: one}).written("image") != ""
    assert both.written("image") != PromptSet({image: other}).written("image")
    changed = PromptSet(weights={"text.block.weight": one})
    assert changed.written("image") == "" != changed.written("text")
    assert PromptSet(method={"net": one}).written("image") != ""
