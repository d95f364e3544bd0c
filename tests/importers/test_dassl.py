"""Checkpoints of CoOp's line of work, made here in their format, against the rows that they should give."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from vpt.importers import read_dassl
from vpt.importers.dassl import SIGNS
from vpt.methods import METHODS, method_class
from vpt.prompt import Site

T, V = 32, 48  # widths of the text and the image tower
CTX = Site("text", "embedded", "<ctx>")


def prefixed(stem: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {stem + key: value for key, value in state.items()}


def context(n: int = 4, *shape: int, **more: Tensor) -> dict[str, Tensor]:
    """What CoOp's prompt learner saves for 5 classes."""
    fixed = {"token_prefix": torch.randn(5, 1, T).half(), "token_suffix": torch.randn(5, 16, T).half()}
    return {"ctx": torch.randn(*shape, n, T), **fixed, **more}


def clip(depth: int = 12) -> dict[str, Tensor]:
    """Frozen weights as whole models hold them; NaN, so that taking one is noticed."""
    state = {"logit_scale": torch.tensor(torch.nan), "image_encoder.proj": torch.full((V, 24), torch.nan)}
    for tower, width in (("image_encoder", V), ("text_encoder", T)):
        for i in range(depth):
            key = f"{tower}.transformer.resblocks.{i}.attn.in_proj_weight"
            state[key] = torch.full((width, 3), torch.nan)
    return state


def visual(n: int, layers: int) -> dict[str, Tensor]:
    deep = {
        f"image_encoder.transformer.resblocks.{i}.VPT_shallow": torch.randn(n, V) for i in range(1, layers)
    }
    return {"image_encoder.VPT": torch.randn(n, V), **deep}


def textual(layers: int, n: int) -> dict[str, Tensor]:
    keys = [f"text_encoder.transformer.resblocks.{i}.VPT_shallow" for i in range(1, layers)]
    return {key: torch.randn(n, T) for key in keys}


def words_stay(state: dict[str, Tensor], words: int) -> dict[str, Tensor]:
    """The first tokens behind the rows are the same for all classes."""
    suffix = state["token_suffix"].clone()
    suffix[:, :words] = suffix[:1, :words]
    return {**state, "token_suffix": suffix}


def maple(layers: int = 3, n: int = 2) -> dict[str, Tensor]:
    deep, maps = nn.ParameterList([torch.randn(n, T) for _ in range(layers - 1)]), nn.ModuleList()
    for _ in range(layers - 1):
        maps.append(nn.Linear(T, V))
    return {
        **words_stay(context(n), 2),
        **prefixed("proj.", nn.Linear(T, V).half().state_dict()),
        **prefixed("compound_prompts_text.", deep.state_dict()),
        **prefixed("compound_prompt_projections.", maps.state_dict()),
    }


def mmrl(layers: int = 7) -> dict[str, Tensor]:
    learner: Any = nn.Module()
    learner.compound_rep_tokens = nn.Parameter(torch.randn(5, 16))
    learner.compound_rep_tokens_r2vproj = nn.ModuleList(nn.Linear(16, V) for _ in range(layers))
    learner.compound_rep_tokens_r2tproj = nn.ModuleList(nn.Linear(16, T) for _ in range(layers))
    own = prefixed("representation_learner.", learner.state_dict())
    return {
        **clip(),
        **own,
        "image_encoder.proj_rep": torch.randn(V, 24),
        "prompt_embeddings": torch.randn(5, 9, T),
    }


def dassl(path: Path, state: Any, **more: Any) -> Path:
    """As Dassl's trainer saves: with a scheduler of a class that the reader does not have, and a numpy scalar."""
    gone = ModuleType("dassl_gone")
    gone.Warmup = type("Warmup", (), {"__module__": "dassl_gone"})  # type: ignore[attr-defined]
    scheduler = gone.Warmup()
    scheduler.__dict__ |= {
        "base_lrs": [0.002],
        "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1),
    }
    sys.modules["dassl_gone"] = gone
    try:
        held = {"state_dict": state, "epoch": 50, "optimizer": {"state": {0: {"momentum_buffer": None}}}}
        torch.save({**held, "scheduler": scheduler, "val_result": np.float64(81.25), **more}, path)
    finally:
        del sys.modules["dassl_gone"]
    return path


def sites(tower: str, layers: int) -> list[Site]:
    first, slot = ("embedded", "<ctx>") if tower == "text" else ("placed", "suffix")
    return [Site(tower, stage, slot) for stage in (first, *map(str, range(1, layers)))]


def test_coop_shared_and_class_specific(tmp_path: Path) -> None:
    state = context(16)
    found = read_dassl(dassl(tmp_path / "model.pth.tar-50", state))
    assert list(found["rows"]) == [CTX]
    assert torch.equal(found["rows"][CTX], state["ctx"])
    assert (found["method_name"], found["method"]) == ("coop", {})
    assert found["options"] == {"length": 16, "class_specific": False}
    assert found["about"] == {"sentence": "<ctx*16> {}.", "epoch": 50, "val_result": 81.25, "classes": 5}
    own = context(4, 5)
    found = read_dassl(dassl(tmp_path / "b.pth.tar-200", own, val_result=None, epoch=np.int64(200)))
    assert torch.equal(found["rows"][CTX], own["ctx"])
    assert found["options"] == {"length": 4, "class_specific": True}
    assert found["about"] == {"sentence": "<ctx*4> {}.", "epoch": 200, "classes": 5}


@pytest.mark.parametrize("protocol", [2, 4])
def test_wrappers_are_looked_through(tmp_path: Path, protocol: int) -> None:
    state = context()
    parallel = {f"module.{key}": value for key, value in state.items()}
    whole = {**prefixed("module.prompt_learner.", state), **prefixed("module.", clip())}
    held = nn.ParameterDict({key: nn.Parameter(value) for key, value in state.items()})
    nested = {"prompt_learner": held, "logit_scale": torch.ones(())}
    for i, saved in enumerate((state, parallel, whole, held, nested)):
        for wrapped in (saved, {"state_dict": saved, "epoch": 3}):
            torch.save(wrapped, tmp_path / f"{i}.pth", pickle_protocol=protocol)
            assert torch.equal(read_dassl(tmp_path / f"{i}.pth")["rows"][CTX], state["ctx"])
    half = {"ctx": state["ctx"].half()}
    torch.save(half, tmp_path / "half.pth")
    rows = read_dassl(tmp_path / "half.pth")["rows"][CTX]
    assert rows.dtype == torch.float32
    assert torch.equal(rows, half["ctx"].float())


@pytest.mark.parametrize(
    ("sentence", "place"),
    [("{} <ctx*16>.", "front"), ("<ctx*8> {} <ctx*8>.", "middle"), ("<ctx*16> {}, a flower.", "end")],
)
def test_the_place_of_the_name_is_said_by_the_reader(tmp_path: Path, sentence: str, place: str) -> None:
    path = dassl(tmp_path / "a.pth", context(16))
    found = read_dassl(path, sentence=sentence)
    assert found["about"]["sentence"] == sentence
    assert found["options"]["place"] == place
    for wrong in ("{} <ctx*15>.", "<ctx*16>.", "{} {} <ctx*16>."):
        with pytest.raises(ValueError, match=r"places for the name .* 16 rows: '<ctx\*16> \{\}\.'"):
            read_dassl(path, sentence=wrong)


def test_cocoops_net_computes_what_the_authors_does(tmp_path: Path) -> None:
    theirs = nn.Sequential()
    theirs.add_module("linear1", nn.Linear(24, 3))
    theirs.add_module("relu", nn.ReLU())
    theirs.add_module("linear2", nn.Linear(3, T))
    state = context(4, **prefixed("meta_net.", theirs.state_dict()))
    found = read_dassl(dassl(tmp_path / "a.pth", state))
    assert (found["method_name"], found["options"]) == ("cocoop", {"length": 4, "words": ""})
    assert torch.equal(found["rows"][CTX], state["ctx"])
    ours = nn.ModuleDict({"meta_net": nn.Sequential(nn.Linear(24, 3), nn.ReLU(), nn.Linear(3, T))})
    ours.load_state_dict(found["method"])
    x = torch.randn(2, 24)
    assert torch.equal(ours["meta_net"](x), theirs(x))


def test_kgcoop_and_prograd(tmp_path: Path) -> None:
    unused = {"bias_vectors": torch.randn(1, T), "meta_net.linear1.weight": torch.randn(T, T)}
    path = dassl(tmp_path / "a.pth", context(4, **unused))
    assert read_dassl(path)["method_name"] == "kgcoop"
    assert read_dassl(path)["method"] == {}
    assert read_dassl(path, "coop")["method_name"] == "coop"
    assert read_dassl(dassl(tmp_path / "b.pth", context(16)), "prograd")["method_name"] == "prograd"


def test_ivlp_and_promptsrc_keep_the_prompts_of_a_whole_clip(tmp_path: Path) -> None:
    image, deep, learner = visual(4, 9), textual(9, 4), context(4)
    state = {**clip(), **prefixed("prompt_learner.", learner), **image, **deep}
    found = read_dassl(dassl(tmp_path / "a.pth", state))
    assert found["method_name"] == "ivlp"
    assert list(found["rows"]) == sites("text", 9) + sites("image", 9)
    wanted = [learner["ctx"], *deep.values(), *image.values()]
    assert all(torch.equal(a, b) for a, b in zip(found["rows"].values(), wanted, strict=True))
    assert found["options"] == {"length": 4, "image_length": 4, "layers": 9, "image_layers": 9, "words": ""}
    assert found["about"]["sentence"] == "<ctx*4> {}."
    teacher = prefixed(
        "prompt_learner.ZS_image_encoder.", {"proj": torch.ones(V, 24), "VPT": torch.zeros(4, V)}
    )
    source = read_dassl(dassl(tmp_path / "b.pth", {**state, **teacher}))
    assert source["method_name"] == "promptsrc"
    assert all(torch.equal(a, b) for a, b in zip(source["rows"].values(), wanted, strict=True))
    assert read_dassl(tmp_path / "a.pth", "promptsrc")["method_name"] == "promptsrc"


def test_prompts_of_one_tower_alone(tmp_path: Path) -> None:
    image = visual(8, 12)
    found = read_dassl(dassl(tmp_path / "a.pth", {**clip(), **image}))
    assert (found["method_name"], found["options"]) == ("clip-vpt", {"length": 8, "layers": 12})
    assert list(found["rows"]) == sites("image", 12)
    assert all(torch.equal(a, b) for a, b in zip(found["rows"].values(), image.values(), strict=True))
    assert found["about"]["sentence"] == "a photo of a {}."
    said = read_dassl(tmp_path / "a.pth", sentence="a sketch of {}.")
    assert said["options"]["template"] == said["about"]["sentence"] == "a sketch of {}."
    state = {**clip(), **prefixed("prompt_learner.", context(4)), **textual(12, 4)}
    found = read_dassl(dassl(tmp_path / "b.pth", state))
    assert (found["method_name"], found["options"]["image_length"]) == ("ivlp", 0)
    assert list(found["rows"]) == sites("text", 12)


@pytest.mark.parametrize(
    ("n", "fixed", "sentence", "words"),
    [
        (2, 2, "<ctx*2> of a {}.", "a photo of a"),
        (2, 1, "<ctx*2> {}.", ""),  # names that begin alike, behind "X X"
        (2, 0, "<ctx*2> {}.", ""),
        (3, 1, "<ctx*3> a {}.", "a photo of a"),
        (4, 0, "<ctx*4> {}.", ""),
        (6, 2, "<ctx*6> {}.", ""),
    ],
)
def test_words_that_no_row_replaced_stay_in_the_sentence(
    tmp_path: Path, n: int, fixed: int, sentence: str, words: str
) -> None:
    state = {**prefixed("prompt_learner.", words_stay(context(n), fixed)), **visual(n, 2)}
    found = read_dassl(dassl(tmp_path / "a.pth", state))
    assert (found["about"]["sentence"], found["options"]["words"]) == (sentence, words)


@pytest.mark.parametrize("layers", [1, 3])
def test_maples_image_rows_are_the_mapped_text_rows(tmp_path: Path, layers: int) -> None:
    learner = maple(layers)
    found = read_dassl(dassl(tmp_path / "a.pth", {**clip(), **prefixed("prompt_learner.", learner)}))
    assert found["method_name"] == "maple"
    assert list(found["rows"]) == sites("text", layers) + sites("image", layers)
    text = [learner["ctx"], *(learner[f"compound_prompts_text.{i}"] for i in range(layers - 1))]
    stems = ["proj", *(f"compound_prompt_projections.{i}" for i in range(layers - 1))]
    for i, (rows, stem) in enumerate(zip(text, stems, strict=True)):
        layer = nn.Linear(T, V)
        layer.load_state_dict({part: learner[f"{stem}.{part}"].float() for part in ("weight", "bias")})
        assert torch.equal(found["rows"][sites("text", layers)[i]], rows)
        torch.testing.assert_close(found["rows"][sites("image", layers)[i]], layer(rows).detach())
    assert found["options"] == {"length": 2, "layers": layers, "words": "a photo of a"}
    assert not any(rows.requires_grad for rows in found["rows"].values())


def test_mmrls_tokens_enter_the_last_layers_of_both_towers(tmp_path: Path) -> None:
    state = mmrl()
    found = read_dassl(dassl(tmp_path / "a.pth", state))
    assert (found["method_name"], found["options"]) == ("mmrl", {"length": 5, "layers": 7, "shared": 16})
    wanted = [Site(t, str(i), "prefix") for t in ("image", "text") for i in range(5, 12)]
    assert list(found["rows"]) == wanted
    stem = "representation_learner.compound_rep_tokens"
    for site, part in (
        (Site("image", "5", "prefix"), "r2vproj.0"),
        (Site("text", "11", "prefix"), "r2tproj.6"),
    ):
        expected = state[stem] @ state[f"{stem}_{part}.weight"].mT + state[f"{stem}_{part}.bias"]
        torch.testing.assert_close(found["rows"][site], expected)
    assert torch.equal(found["method"]["projection"], state["image_encoder.proj_rep"])
    assert torch.equal(found["method"]["to_text.6.bias"], state[f"{stem}_r2tproj.6.bias"])
    other = read_dassl(tmp_path / "a.pth", sentence="{} texture.")
    assert (other["options"]["template"], other["about"]["sentence"]) == ("{} texture.", "{} texture.")
    less = {k: v for k, v in state.items() if "r2tproj.6" not in k}
    with pytest.raises(ValueError, match="into 7 layers of one tower and 6 of the other"):
        read_dassl(dassl(tmp_path / "less.pth", less))
    assert len(found["method"]) == 2 + 2 * 2 * 7
    bare = {key: value for key, value in state.items() if key.startswith(("repr", "image_encoder.proj_rep"))}
    assert list(read_dassl(dassl(tmp_path / "b.pth", bare))["rows"]) == wanted
    pp = {**bare, "representation_learner.srra_r2vproj.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"MMRL\+\+, which mixes its rows"):
        read_dassl(dassl(tmp_path / "c.pth", pp))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_peft_saves(tmp_path: Path) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
    from transformers import BertConfig, BertModel

    size = {"hidden_size": T, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = {"task_type": TaskType.FEATURE_EXTRACTION, "num_virtual_tokens": 3}
    tuned = get_peft_model(BertModel(BertConfig(vocab_size=30, **size)), PromptTuningConfig(**config))
    tuned.save_pretrained(str(tmp_path / "a"))
    wanted = tuned.get_prompt_embedding_to_save("default")
    found = read_dassl(tmp_path / "a" / "adapter_model.safetensors")
    assert torch.equal(found["rows"][CTX], wanted)
    assert found["options"] == {"length": 3, "class_specific": False}
    assert found["about"] == {"sentence": "<ctx*3> {}.", "code": "huggingface/peft"}
    torch.save({"prompt_embeddings": wanted}, tmp_path / "adapter_model.bin")  # without its configuration
    assert torch.equal(read_dassl(tmp_path / "adapter_model.bin")["rows"][CTX], wanted)
    prefix = get_peft_model(BertModel(BertConfig(vocab_size=30, **size)), PrefixTuningConfig(**config))
    prefix.save_pretrained(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="holds PREFIX_TUNING for 1 part"):
        read_dassl(tmp_path / "b" / "adapter_model.safetensors")
    (tmp_path / "b" / "adapter_config.json").write_text("[1")
    with pytest.raises(ValueError, match=r"adapter_config\.json is damaged"):
        read_dassl(tmp_path / "b" / "adapter_model.safetensors")


def test_options_are_those_of_the_methods(tmp_path: Path) -> None:
    learner = prefixed("prompt_learner.", context(4))
    net = {"meta_net.linear1.weight": torch.ones(3, 24), "meta_net.linear1.bias": torch.ones(3)}
    net |= {"meta_net.linear2.weight": torch.ones(T, 3), "meta_net.linear2.bias": torch.ones(T)}
    files = {
        "coop": context(),
        "kgcoop": context(),
        "prograd": context(),
        "cocoop": context(4, **net),
        "clip-vpt": visual(2, 3),
        "ivlp": {**learner, **visual(2, 3)},
        "promptsrc": {**learner, **visual(2, 3)},
        "maple": maple(),
    }
    for name, state in files.items():
        found = read_dassl(dassl(tmp_path / "a.pth", state), name)
        known = inspect.signature(method_class(name)).parameters
        assert found["options"].keys() <= known.keys()
        assert SIGNS[name][0] == METHODS[name].paper


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"weights": torch.ones(1)}, {}, "no prompts of these methods .*coop: ctx;.* its keys begin with weights"),
        ([1, 2], {}, "its keys begin with epoch"),
        (context(), {"method": "copo"}, "no method 'copo' .*Choose one of coop, cocoop"),
        (context(), {"method": "maple"}, r"holds coop \(it has ctx\), not maple, .*prompt_learner.proj.weight"),
        (maple(), {"method": "coop"}, "holds maple .*Import it as maple"),
        (visual(2, 3), {"method": "ivlp"}, "holds clip-vpt .*not ivlp, whose files have prompt_learner.ctx and"),
        (context(0), {}, r"ctx is empty, \(0, 32\)"),
        ({"ctx": "x"}, {}, "ctx should be a tensor of 2 dimensions, found str"),
        ({"ctx": torch.ones(4)}, {}, r"of 2 dimensions, found \(4,\)"),
        ({"ctx": torch.full((4, T), torch.nan)}, {}, "ctx hold NaN"),
        ({"ctx": torch.ones(1).expand(10**6, 10**6)}, {}, "reaches beyond its storage of 1"),
        (context(**{"meta_net.linear2.weight": torch.ones(T, 3)}), {}, "lacks meta_net.linear1.weight"),
        (
            context(
                **{f"meta_net.linear{i}.bias": torch.ones(9) for i in (1, 2)},
                **{"meta_net.linear1.weight": torch.ones(9, T), "meta_net.linear2.weight": torch.ones(4 * T, 9)},
            ),
            {},
            r"meta_net gives 128 channels and ctx is 32 wide.*\(TCP\)",
        ),
        (
            {k: v for k, v in visual(2, 4).items() if "resblocks.2" not in k},
            {},
            r"VPT_shallow for N in \[1, 3\]; wanted are 1 and those that follow",
        ),
        ({k: v for k, v in visual(2, 4).items() if "resblocks" in k}, {}, "keys begin with image_encoder"),
        (textual(3, 2), {}, "without ctx, the rows of the first layer"),
        (
            {**visual(2, 3), "image_encoder.VPT": torch.ones(4, V)},
            {},
            r"resblocks.1.VPT_shallow is \(2, 48\), the rows of image_encoder.VPT are \(4, 48\)",
        ),
        ({k: v for k, v in maple().items() if k != "proj.bias"}, {}, "lacks proj.bias"),
        ({**maple(), "proj.weight": torch.ones(V, 7)}, {}, r"proj is \(48, 7\) with 48 biases, and maps rows 32 wide"),
        ({k: v for k, v in mmrl().items() if "r2tproj" not in k}, {}, "into 0 layers of 12"),
        (mmrl(13), {}, "into 13 layers of 12"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, state: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dassl(dassl(tmp_path / "a.pth", state), **options)


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
            read_dassl(tmp_path / name)
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"a\.safetensors is no safetensors file"):
        read_dassl(tmp_path / "a.safetensors")
    save_file({"prompt_embeddings": torch.ones(3, T, 1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"of 2 dimensions, found \(3, 32, 1\)"):
        read_dassl(tmp_path / "b.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "P_TUNING", "num_transformer_submodules": 2})
    )
    save_file({"prompt_embeddings": torch.ones(3, T)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"P_TUNING for 2 part"):
        read_dassl(tmp_path / "b.safetensors")


KEYS = [
    *context(), *visual(1, 3), *textual(3, 1), *maple(), *mmrl(1), "prompt_learner.ctx", "module.ctx", "bias_vectors",
    "meta_net.linear2.weight", "prompt_embeddings",
]  # fmt: skip
VALUES = st.one_of(
    st.lists(st.integers(0, 3), max_size=4).map(lambda shape: torch.ones(shape)),
    st.sampled_from([None, "x", 3, [1], {"weight": torch.ones(1)}, torch.ones(2, 2, dtype=torch.long)]),
)


@settings(max_examples=150, deadline=None)
@given(state=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12))
def test_any_other_file_is_read_or_refused(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.pth"
    torch.save({"state_dict": state, "epoch": state.get("ctx")}, path)
    with contextlib.suppress(ValueError):  # any other error fails
        found = read_dassl(path)
        assert all(rows.numel() and rows.isfinite().all() for rows in found["rows"].values())
