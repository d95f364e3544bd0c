"""What is written is what the other tools' own loaders read, and what our reader reads back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from vpt.importers import read_embeddings, write_embeddings
from vpt.importers.embeddings import CROSS_ATTENTION, LENGTHS, NEGATIVE
from vpt.importers.embeddings_out import LAYOUTS
from vpt.prompt import Site
from vpt.promptset import PromptSet

WIDTHS = {"text": 8, "text_2": 12, "text_3": 16, "context": 8}


def embedded(slot: str = "<my-mug>", **rows: Tensor) -> PromptSet:
    """A set with these rows by tower at one placeholder."""
    return PromptSet({Site(tower, "embedded", slot): r for tower, r in rows.items()})


def fitting(layout: str, n: int, slot: str = "<my-mug>") -> PromptSet:
    if layout == "reneg":
        return PromptSet({NEGATIVE: torch.randn(77, 8)})
    sets = (16,) if layout == "xti" else ()
    made = embedded(slot, **{t: torch.randn(*sets, n, WIDTHS[t]) for t in LAYOUTS[layout]})
    return replace(made, about={"axis": "cross-attention"}) if sets else made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    n=st.integers(1, 4),
    name=st.from_regex(r"[\w-]*\w[\w-]*", fullmatch=True).filter(lambda s: s != "ctx" and s == s.strip("-")),
    suffix=st.sampled_from([".safetensors", ".pt", ".bin", ".PT"]),
)
def test_what_is_written_is_read_back_equal(
    tmp_path: Path, layout: str, n: int, name: str, suffix: str
) -> None:
    if layout in ("a1111", "reneg") and suffix == ".safetensors":
        suffix = ".pt"
    made = fitting(layout, n, f"<{name}>")
    path = write_embeddings(made, tmp_path / f"file{suffix}", layout)
    found = read_embeddings(path, "" if layout in ("diffusers", "a1111", "reneg") else name)
    assert found.rows.keys() == made.rows.keys()
    for site, rows in made.rows.items():
        assert torch.equal(found.rows[site], rows)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("layout", "suffix"), [("diffusers", ".safetensors"), ("diffusers", ".bin"), ("a1111", ".pt")]
)
def test_diffusers_loads_the_same_embeddings(tmp_path: Path, layout: str, suffix: str, n: int) -> None:
    from pipelines import sd

    pipe = sd()
    table = pipe.text_encoder.get_input_embeddings()
    rows = torch.randn(n, table.weight.shape[1])
    path = write_embeddings(embedded(text=rows), tmp_path / f"learned_embeds{suffix}", layout)
    pipe.load_textual_inversion(str(path))
    token = "my-mug" if layout == "a1111" else "<my-mug>"
    tokens = [token, *(f"{token}_{i}" for i in range(1, n))]
    ids = pipe.tokenizer.convert_tokens_to_ids(tokens)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], rows)


def test_diffusers_loads_the_two_encoders_of_sdxl_one_by_one(tmp_path: Path) -> None:
    from pipelines import sdxl

    pipe = sdxl()
    encoders = {
        "clip_l": (pipe.text_encoder, pipe.tokenizer),
        "clip_g": (pipe.text_encoder_2, pipe.tokenizer_2),
    }
    rows = {k: torch.randn(2, e.get_input_embeddings().weight.shape[1]) for k, (e, _) in encoders.items()}
    made = embedded(text=rows["clip_l"], text_2=rows["clip_g"])
    held = load_file(write_embeddings(made, tmp_path / "mug.safetensors", "sdxl"))
    assert held.keys() == rows.keys()
    for key, (encoder, tokenizer) in encoders.items():
        pipe.load_textual_inversion(held[key], token="<my-mug>", text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer.convert_tokens_to_ids(["<my-mug>", "<my-mug>_1"])
        assert torch.equal(encoder.get_input_embeddings().weight[ids], rows[key])


def test_what_is_imported_says_the_same_as_what_diffusers_loads(tmp_path: Path) -> None:
    """To the bit, both encoders and the pooled state: in one pipeline the vocabulary grew, in the other nothing did."""
    from pipelines import sdxl

    from vpt.towers.diffusion import open_pipeline

    grown, backbone = sdxl(), open_pipeline(sdxl(), "diffusers/tiny")
    widths = {name: tower.width for name, tower in backbone.towers.items()}
    held = {"clip_l": torch.randn(2, widths["text"]), "clip_g": torch.randn(2, widths["text_2"])}
    torch.save(held, tmp_path / "mug.pt")
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        part = {
            "text_encoder": getattr(grown, f"text_encoder{end}"),
            "tokenizer": getattr(grown, f"tokenizer{end}"),
        }
        grown.load_textual_inversion(held[key], token="<mug>", **part)
    rows = read_embeddings(tmp_path / "mug.pt", encoders=widths).rows
    found = backbone.embeds("a <mug> dog", rows, negative="")
    wanted = grown.encode_prompt("a <mug> dog", device="cpu", negative_prompt="")
    for key, value in zip(
        ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds"), wanted, strict=False
    ):
        assert torch.equal(found[key], value)


def test_the_layouts_key_by_key(tmp_path: Path) -> None:
    rows = {tower: torch.randn(2, width) for tower, width in WIDTHS.items() if tower != "context"}
    pair = {t: rows[t] for t in ("text", "text_2")}

    def held(layout: str, made: PromptSet, suffix: str = ".safetensors") -> Any:
        path = write_embeddings(made, tmp_path / f"{layout}{suffix}", layout)
        return load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)

    alone = embedded(text=rows["text"])
    assert held("diffusers", alone).keys() == {"<my-mug>"}
    assert held("kohya", alone).keys() == {"emb_params"}
    assert held("t5", alone).keys() == {"t5xxl"}
    assert held("flux", embedded(**pair)).keys() == {"clip_l", "t5xxl"}
    assert held("sd3", embedded(**rows)).keys() == {"clip_l", "clip_g", "t5xxl"}
    assert torch.equal(held("sd3", embedded(**rows))["clip_g"], rows["text_2"])
    layers = held("xti", fitting("xti", 2))
    assert layers.keys() == set(CROSS_ATTENTION)
    a1111 = held("a1111", replace(alone, about={"train": {"step": 40}}), ".pt")
    assert torch.equal(a1111["string_to_param"]["*"], rows["text"])
    assert a1111["name"] == "my-mug"
    assert a1111["step"] == 40
    negative = fitting("reneg", 1)
    assert torch.equal(held("reneg", negative, ".bin"), negative.rows[NEGATIVE])


def test_one_placeholder_of_several_is_asked_for(tmp_path: Path) -> None:
    made = PromptSet({Site("text", "embedded", f"<{c}>"): torch.randn(1, 8) for c in "ab"})
    with pytest.raises(ValueError, match=r"placeholders <a>, <b>; an embeddings file holds one\. Say which"):
        write_embeddings(made, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="none called <c>"):
        write_embeddings(made, tmp_path / "a.pt", name="c")
    path = write_embeddings(made, tmp_path / "a.pt", name="b")
    assert torch.equal(torch.load(path)["<b>"], made.rows[Site("text", "embedded", "<b>")])


ROWS = torch.ones(2, 8)
DEEP = PromptSet({Site("text", stage, "<my-mug>"): ROWS for stage in ("embedded", "1")})


@pytest.mark.parametrize(
    ("made", "layout", "file", "message"),
    [
        (PromptSet(), "diffusers", "a.pt", "holds no rows; embeddings files hold rows at a placeholder"),
        (DEEP, "diffusers", "a.pt", "holds text/1/<my-mug>; .*Keep the prompt file"),
        (PromptSet({NEGATIVE: ROWS}), "diffusers", "a.pt", "written with the layout 'reneg'"),
        (PromptSet({Site("image", "0", "prefix"): ROWS}), "kohya", "a.pt", "holds image/0/prefix"),
        (PromptSet({Site("text", "embedded", "suffix"): ROWS}), "kohya", "a.pt", "holds text/embedded/suffix"),
        (replace(embedded(text=ROWS), head={"weight": ROWS}), "kohya", "a.pt", "holds head"),
        (embedded(text=ROWS), "sdxl", "a.pt", "for text, text_2; those at <my-mug> .*Choose diffusers or a1111"),
        (embedded(text=ROWS, text_2=ROWS), "kohya", "a.pt", "Choose sdxl or flux"),
        (embedded(text=ROWS.expand(5, 2, 8)), "diffusers", "a.pt", r"\(5, 2, 8\).*Choose the prompt file"),
        (embedded(text=ROWS.expand(16, 2, 8)), "diffusers", "a.pt", "Choose xti"),
        (embedded(text=ROWS.expand(16, 2, 8)), "xti", "a.pt", "one a class"),
        (embedded(text=ROWS.expand(5, 2, 8)), "xti", "a.pt", "rows 16, one a cross-attention"),
        (embedded(text=torch.ones(1, 768), text_2=torch.ones(1, 4096)), "sdxl", "a.pt", "clip_g, which is 1280"),
        (embedded(text=torch.ones(1, 768), text_2=torch.ones(1, 1280)), "flux", "a.pt", "t5xxl, which is 4096"),
        (embedded(text=ROWS), "reneg", "a.pt", r"this set holds text/embedded/<my-mug> \(2, 8\)"),
        (PromptSet({NEGATIVE: ROWS}), "reneg", "a.pt", "of 77, 120, 256, 300, 512 rows"),
        (embedded(text=ROWS / 0), "diffusers", "a.pt", "NaN or infinity"),
        (embedded(text=ROWS), "a1111", "a.safetensors", r"'\.safetensors'; the layout 'a1111' is written as \.pt"),
        (embedded(text=ROWS), "diffusers", "a", "ends in ''"),
        (embedded(text=ROWS), "comfy", "a.pt", "no layout 'comfy'. Choose one of diffusers"),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path: Path, made: PromptSet, layout: str, file: str, message: str
) -> None:
    (tmp_path / file).write_bytes(b"kept")
    with pytest.raises(ValueError, match=message):
        write_embeddings(made, tmp_path / file, layout)
    assert [p.name for p in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_bytes() == b"kept"


def test_a_length_that_is_read_as_a_context_is_one_that_is_written(tmp_path: Path) -> None:
    for n in LENGTHS:
        path = write_embeddings(PromptSet({NEGATIVE: torch.randn(n, 4)}), tmp_path / "a.bin", "reneg")
        assert list(read_embeddings(path).rows) == [NEGATIVE]
