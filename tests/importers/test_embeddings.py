"""Embeddings files as other tools write them, written here by hand, and files that are none."""

import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vpt.importers import read_embeddings
from vpt.importers.embeddings import CROSS_ATTENTION
from vpt.prompt import Site
from vpt.promptset import PromptSet

KOHYA = [
    "IN01",
    "IN02",
    "IN04",
    "IN05",
    "IN07",
    "IN08",
    "MID",
]  # in the order in which it runs and saves them
KOHYA += [f"OUT{i:02}" for i in range(3, 12)]


def text(slot: str, tower: str = "text") -> Site:
    return Site(tower, "embedded", slot)


def read(tmp_path: Path, held: Any, file: str = "my toy.pt", **options: Any) -> PromptSet:
    """What the reader makes of a file that holds this, by torch.save or safetensors."""
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return read_embeddings(path, **options)


def only(prompts: PromptSet, slot: str) -> Tensor:
    assert list(prompts.rows) == [text(slot)]
    return prompts.rows[text(slot)]


@pytest.mark.parametrize("file", ["learned_embeds.safetensors", "learned_embeds.bin"])
@pytest.mark.parametrize("shape", [(32,), (1, 32), (4, 32)])
def test_what_diffusers_saves(tmp_path: Path, file: str, shape: tuple[int, ...]) -> None:
    rows = torch.randn(shape)
    found = read(tmp_path, {"<cat-toy>": rows}, file)
    assert torch.equal(only(found, "<cat-toy>"), rows.view(-1, 32))
    about = found.about
    length = rows.numel() // 32
    assert about["method"] == {
        "name": "textual-inversion",
        "options": {"length": length},
        "paper": "2208.01618",
    }
    assert about["placeholders"] == {"<cat-toy>": ""}
    assert about["task"] == "denoise"
    assert about["train"] == {"imported": file, "code": "huggingface/diffusers"}


@pytest.mark.parametrize(
    ("token", "name", "slot"),
    [
        ("<cat-toy>", "", "<cat-toy>"),
        ("cat toy!", "", "<cat-toy>"),
        ("*", "", "<my-toy>"),  # the file's own name
        ("<ctx>", "", "<my-toy>"),  # ctx is where classes' rows stand
        ("<cat-toy>", "mug_2", "<mug_2>"),
        ("猫", "", "<猫>"),
    ],
)
def test_the_placeholder_is_the_files_token_or_the_name_asked_for(
    tmp_path: Path, token: str, name: str, slot: str
) -> None:
    assert only(read(tmp_path, {token: torch.ones(8)}, name=name), slot).shape == (1, 8)


def test_a_file_without_letters_in_its_name_gets_one(tmp_path: Path) -> None:
    assert only(read(tmp_path, {"*": torch.ones(8)}, "+.pt"), "<my-concept>").shape == (1, 8)


@pytest.mark.parametrize("name", ["a mug", "<mug>", "mug*2", "ctx", "é/"])
def test_a_name_that_is_no_placeholder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a placeholder cannot be called"):
        read(tmp_path, {"*": torch.ones(8)}, name=name)


def a1111(rows: Any, **more: Any) -> dict[str, Any]:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, **more}


def test_what_automatic1111_saves(tmp_path: Path) -> None:
    rows = torch.randn(3, 32)
    made = {"name": "mug", "step": 500, "sd_checkpoint": "4711", "sd_checkpoint_name": None}
    found = read(tmp_path, a1111(nn.Parameter(rows), **made))
    assert torch.equal(only(found, "<mug>"), rows)
    assert not found.rows[text("<mug>")].requires_grad
    code = {"imported": "my toy.pt", "code": "AUTOMATIC1111/stable-diffusion-webui"}
    assert found.about["train"] == {**code, "step": 500, "sd_checkpoint": "4711"}


def test_what_rinongals_code_saves(tmp_path: Path) -> None:
    """Its ParameterDict is no type that torch reads safely, and there is no name."""
    rows = torch.randn(2, 32)
    held = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": rows})}
    torch.save(held, tmp_path / "embeddings_gs-6099.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "embeddings_gs-6099.pt", weights_only=True)
    found = read_embeddings(tmp_path / "embeddings_gs-6099.pt")
    assert torch.equal(only(found, "<embeddings_gs-6099>"), rows)
    assert found.about["train"]["code"] == "rinongal/textual_inversion"


@pytest.mark.parametrize("key", ["emb_params", "emp_params", "gemma"])
@pytest.mark.parametrize("file", ["mug.safetensors", "mug.pt"])
def test_layouts_of_one_encoder_without_a_token(tmp_path: Path, key: str, file: str) -> None:
    rows = torch.randn(2, 32, dtype=torch.bfloat16)
    found = only(read(tmp_path, {key: rows}, file), "<mug>")
    assert found.dtype == torch.float32
    assert torch.equal(found.bfloat16(), rows)


@pytest.mark.parametrize(
    ("keys", "towers"),
    [
        (["clip_l", "clip_g"], ["text", "text_2"]),
        (["text_encoders_0", "text_encoders_1"], ["text", "text_2"]),
        (["clip_l", "clip_g", "t5xxl"], ["text", "text_2", "text_3"]),
        (["clip_l", "clip_g", "t5"], ["text", "text_2", "text_3"]),
        (["clip_l", "t5xxl"], ["text", "text_2"]),
        (["clip_g"], ["text_2"]),
        (["t5"], ["text"]),
    ],
)
def test_several_encoders(tmp_path: Path, keys: list[str], towers: list[str]) -> None:
    state = {key: torch.randn(2, 8 + i) for i, key in enumerate(keys)}
    found = read(tmp_path, state, "mug.safetensors")
    assert {site: r.shape for site, r in found.rows.items()} == {
        text("<mug>", tower): state[key].shape for key, tower in zip(keys, towers, strict=True)
    }
    for key, rows in zip(keys, found.rows.values(), strict=True):
        assert torch.equal(rows, state[key])


def test_t5_is_the_last_encoder_of_the_pipeline_that_is_given(tmp_path: Path) -> None:
    widths = {"text": 8, "text_2": 9, "text_3": 10}
    state = {"clip_l": torch.ones(1, 8), "t5xxl": torch.ones(1, 10)}
    assert [s.tower for s in read(tmp_path, state).rows] == ["text", "text_2"]
    assert [s.tower for s in read(tmp_path, state, encoders=widths).rows] == ["text", "text_3"]
    alone = read(tmp_path, {"t5xxl": torch.ones(1, 10)}, encoders={"text": 8, "text_2": 10, "context": 10})
    assert [s.tower for s in alone.rows] == ["text_2"]


def test_kohyas_layers_are_put_into_the_order_of_diffusers(tmp_path: Path) -> None:
    state = {key: torch.full((2, 8), float(i)) for i, key in enumerate(KOHYA)}
    found = read(tmp_path, state, "mug.safetensors")
    rows = only(found, "<mug>")
    assert rows.shape == (16, 2, 8)
    assert [KOHYA[int(layer[0, 0])] for layer in rows] == found.about["layers"] == list(CROSS_ATTENTION)
    assert found.about["axis"] == "cross-attention"
    assert found.about["method"]["name"] == "p-plus"
    loaded = PromptSet.load(found.save(tmp_path / "prompts.safetensors"))
    assert torch.equal(only(loaded, "<mug>"), rows)


def test_that_order_is_the_order_of_a_real_unet() -> None:
    """Kohya's names count the order in which cross-attentions run: so a U-Net of SD's shape tells which is which."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4
    )
    ran: list[str] = []
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    with torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 8))
    kohya = dict(zip(ran, KOHYA, strict=True))
    listed = [k.removesuffix(".processor") for k in unet.attn_processors]
    assert [kohya[name] for name in listed if name.endswith("attn2")] == list(CROSS_ATTENTION)


@pytest.mark.parametrize("shape", [(77, 768), (77, 1024), (120, 64), (1, 77, 768), (300, 8)])
def test_renegs_bare_tensors_are_a_whole_negative_context(tmp_path: Path, shape: tuple[int, ...]) -> None:
    held = torch.randn(shape)
    found = read(tmp_path, held, "embeddings.bin")
    site = Site("context", "embedded", "negative")
    assert list(found.rows) == [site]
    assert torch.equal(found.rows[site], held.view(shape[-2:]))
    assert found.about["method"] == {
        "name": "context",
        "options": {"length": shape[-2], "side": "negative"},
        "paper": "2412.19637",
    }
    assert "placeholders" not in found.about
    assert read(tmp_path, held, encoders={"text": 5}).rows.keys() == {site}
    assert read(tmp_path, held, encoders={"text": 5, "context": shape[-1]}).rows.keys() == {site}
    with pytest.raises(ValueError, match=rf"rows {shape[-1]} wide for the encoder 'context'.*'context' of 5"):
        read(tmp_path, held, encoders={"context": 5})
    with pytest.raises(ValueError, match=r"stands at no placeholder such as <mug>\. Leave the name out"):
        read(tmp_path, held, name="mug")


def test_other_bare_tensors_are_rows_of_a_word(tmp_path: Path) -> None:
    rows = torch.randn(3, 8)
    assert torch.equal(only(read(tmp_path, rows), "<my-toy>"), rows)
    assert torch.equal(only(read(tmp_path, rows[0]), "<my-toy>"), rows[:1])


@pytest.mark.parametrize(
    ("held", "encoders", "message"),
    [
        ({"<a>": (768,)}, {"text": 1024}, r"768 wide for the encoder 'text'.*'text' of 1024.*SD 1\.x"),
        ({"<a>": (2, 1024)}, {"text": 768, "text_2": 1280}, r"1024 wide.*'text_2' of 1280.*SD 2\.x"),
        ({"clip_l": (768,), "clip_g": (1280,)}, {"text": 768}, r"1280 wide for the encoder 'text_2'.*SDXL"),
        ({"clip_l": (768,), "t5xxl": (4096,)}, {"text": 768, "text_2": 1280}, "4096 wide.*Flux"),
        ({"<a>": (7,)}, {}, "7 wide for the encoder 'text'.*another pipeline"),
        ({"t5": (4096,)}, {"text": 768}, "4096 wide for the encoder 'text'.*T5-XXL"),
    ],
)
def test_a_misfit_names_encoder_and_widths_and_what_the_file_is_for(
    tmp_path: Path, held: dict[str, tuple[int, ...]], encoders: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, {k: torch.zeros(shape) for k, shape in held.items()}, encoders=encoders)


def test_a_fit_passes(tmp_path: Path) -> None:
    held = {"clip_l": torch.zeros(768), "clip_g": torch.zeros(1280)}
    found = read(tmp_path, held, encoders={"text": 768, "text_2": 1280, "context": 2048})
    assert [s.tower for s in found.rows] == ["text", "text_2"]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({}, "a dict without keys; wanted one tensor under a token"),
        ([torch.ones(8)], "a list without keys"),
        ({"a": torch.ones(8), "b": torch.ones(8)}, "2 keys that begin with a, b"),
        ({"clip_l": torch.ones(8), "lora": torch.ones(8)}, "2 keys that begin with clip_l, lora"),
        ({k: torch.ones(8) for k in KOHYA[:-1]}, "15 keys that begin with IN01"),
        (
            {k: torch.ones(1 + (k == "MID"), 8) for k in KOHYA},
            r"its layers have rows of shapes \[\(1, 8\), \(2, 8\)\]",
        ),
        ({"<a>": torch.ones(2, 3, 4)}, r"the rows of '<a>' should be a tensor of 2 dimensions.*\(2, 3, 4\)"),
        ({"<a>": torch.ones(8).int()}, "should be a tensor"),
        ({"<a>": "words"}, "found str"),
        ({"<a>": torch.ones(0, 8)}, "are empty"),
        ({"<a>": torch.full((8,), torch.nan)}, "NaN or infinity"),
        ({"<a>": torch.full((8,), 1e300, dtype=torch.float64)}, "NaN or infinity"),
        ({"<a>": torch.ones(2, 8).to_sparse()}, "a cpu torch.sparse_coo one"),
        (torch.ones(8).expand(10**6, 8), "claim more numbers than the file holds"),
        ({"clip_l": torch.ones(8), "clip_l_out": torch.ones(8)}, "output of a text encoder"),
        ({"emp_params_out": torch.ones(8)}, "output of a text encoder"),
        ({"t5": torch.ones(8), "t5xxl": torch.ones(8)}, "same encoder under two names"),
        ({"string_to_param": {"*": torch.ones(8), "+": torch.ones(8)}}, "one token, found 2 tokens"),
        ({"string_to_param": torch.ones(8)}, "one token, found a Tensor"),
        (a1111([1.0], name="a"), "the rows of string_to_param.*found list"),
    ],
)
def test_other_files_are_refused_with_what_they_hold(tmp_path: Path, held: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, held)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_embeddings(tmp_path / "none.safetensors")
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
        with pytest.raises(ValueError, match=r"a\.(safetensors|pt)"):
            read_embeddings(tmp_path / name)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("place", ["beside", "value", "container"])
def test_nothing_in_a_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    rows = torch.ones(2, 8)
    held = {
        "beside": a1111(rows, name="mug", optimiser=Bomb()),
        "value": {"<mug>": Bomb()},
        "container": {"string_to_param": Bomb(), "name": "mug"},
    }[place]
    if place == "beside":
        assert torch.equal(only(read(tmp_path, held), "<mug>"), rows)
    else:
        with pytest.raises(ValueError, match="_Inert"):
            read(tmp_path, held)
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "my toy.pt", weights_only=False)
    assert (tmp_path / "exploded").exists()  # it would have gone off


def _file(held: Any, safe: bool, path: Path) -> bytes:
    if safe:
        save_file(held, path)
        return path.read_bytes()
    file = io.BytesIO()
    torch.save(held, file)
    return file.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), safe=st.booleans())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, safe: bool) -> None:
    path = tmp_path / ("a.safetensors" if safe else "a.pt")
    whole = bytearray(_file({"clip_l": torch.ones(1, 4), "clip_g": torch.ones(1, 6)}, safe, path))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[: end if data.draw(st.booleans()) else None])
    with contextlib.suppress(ValueError):
        assert read_embeddings(path).rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    held=st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.sampled_from([torch.ones(3), torch.ones(1, 2, 2)]),
        lambda inner: st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["*", "name", "string_to_param", "clip_l", "clip_g", "t5", "emb_params", "<a>", "MID"])
            | st.integers(),
            inner,
            max_size=3,
        ),
        max_leaves=5,
    )
)  # fmt: skip
def test_any_other_content_is_read_or_refused_by_name(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "a.pt")
    says = ""
    try:
        found = read_embeddings(tmp_path / "a.pt")
        assert all(rows.ndim == 2 and rows.isfinite().all() for rows in found.rows.values())
    except ValueError as error:
        says = str(error)
    assert not says or "a.pt" in says


def test_a_set_read_is_saved_and_read_again(tmp_path: Path) -> None:
    found = read(tmp_path, {"clip_l": torch.randn(2, 4), "clip_g": torch.randn(2, 6)}, "mug.safetensors")
    again = PromptSet.load(found.save(tmp_path / "prompts.safetensors"))
    assert again.hash() == found.hash()
    assert again.about["placeholders"] == {"<mug>": ""}
    assert load_file(tmp_path / "prompts.safetensors").keys() == {
        "text/embedded/<mug>",
        "text_2/embedded/<mug>",
    }
