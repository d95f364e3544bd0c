"""Checkpoints of CoOp's line of work as its trainer (Dassl) writes them, and peft's prompt-tuning files.

CoOp, CoCoOp, KgCoOp, ProGrad, VPT in CLIP, IVLP, MaPLe, PromptSRC and MMRL. Many of these files hold a whole CLIP, of
which the prompts alone are kept. What follows from class names (token_prefix, token_suffix) is made anew from names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch.nn.functional as F
from torch import Tensor

from vpt.importers.checkpoint import checked, few, read_tensors
from vpt.prompt import Site

__all__ = ["SIGNS", "Found", "read_dassl"]

File = str | os.PathLike[str]
State = Mapping[str, Any]

SLOT = "<ctx>"
WORDS = "a photo of a"  # the first words of IVLP, MaPLe and PromptSRC, of which rows take the first
BLOCKS = {"image": "image_encoder.transformer.resblocks.", "text": "text_encoder.transformer.resblocks."}
MAPLE = "muzairkhattak/multimodal-prompt-learning"
SIGNS = {  # method to paper, the authors' code, and a key that its files have
    "coop": ("2109.01134", "KaiyangZhou/CoOp", "ctx"),
    "cocoop": ("2203.05557", "KaiyangZhou/CoOp", "meta_net.linear2.weight"),
    "kgcoop": ("2303.13283", "htyao89/KgCoOp", "bias_vectors"),
    "prograd": ("2205.14865", "BeierZhu/Prompt-align", "ctx"),
    "clip-vpt": ("2203.12119", MAPLE, "image_encoder.VPT"),
    "ivlp": ("2210.03117", MAPLE, "prompt_learner.ctx and image_encoder.VPT"),
    "maple": ("2210.03117", MAPLE, "prompt_learner.proj.weight"),
    "promptsrc": ("2307.06948", "muzairkhattak/PromptSRC", "prompt_learner.ctx and image_encoder.VPT"),
    "mmrl": ("2503.08497", "yunncheng/MMRL", "representation_learner.compound_rep_tokens"),
}
ALIKE = {"coop", "kgcoop", "prograd"}, {"ivlp", "promptsrc"}  # files that differ in nothing that counts


class Found(TypedDict):
    """What a file holds.

    rows: by site, [n, width] or, class-specific, [K, n, width]; maps from rows to rows (MaPLe, MMRL) are applied.
    method: what else learned, under the names of vpt's module: CoCoOp's net ("meta_net.0.weight" ...), MMRL's tokens,
        maps and projection.
    options: of the method.
    about: "sentence" that the rows stand in, and as far as the file says, "epoch", "val_result" of the authors' run and
        "classes", their number.
    """

    rows: dict[Site, Tensor]
    method: dict[str, Tensor]
    method_name: str
    options: dict[str, Any]
    about: dict[str, Any]


def read_dassl(path: File, method: str | None = None, *, sentence: str | None = None) -> Found:
    """What ``model.pth.tar-50`` or ``adapter_model.safetensors`` holds; nothing in it is run.

    method: one of those above where the keys cannot tell (ProGrad's files are CoOp's); by default what the keys say.
    sentence: how names are said, where it was not "rows, name" ("{} <ctx*16>." and "<ctx*8> {} <ctx*8>." for CoOp,
        which does not write it down; MMRL's sentence of the data set).
    Raises FileNotFoundError, and ValueError that says what was found and what was wanted.
    """
    whole = read_tensors(path)
    state = _state(whole)
    name = _name(path, state, method)
    found = READERS[name](path, state)
    found["about"] |= {k: v for k in ("epoch", "val_result") if (v := _number(whole, k)) is not None}
    suffix = state.get("token_suffix")
    if isinstance(suffix, Tensor) and suffix.ndim == 3:
        found["about"]["classes"] = len(suffix)
    if sentence is not None:
        _say(path, found, sentence)
    return found


def _state(found: Any) -> dict[str, Any]:
    """Flat names without those of wrappers: "module." of DataParallel, "prompt_learner." of a whole model."""
    while isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    return {re.sub(r"^(module\.|prompt_learner\.)*", "", name): value for name, value in _flat(found)}


def _flat(found: Any, stem: str = "", deep: int = 3) -> Iterator[tuple[str, Any]]:
    if not isinstance(found, Mapping):
        return
    for key, value in found.items():
        if isinstance(value, Mapping) and deep:
            yield from _flat(value, f"{stem}{key}.", deep - 1)
        else:
            yield f"{stem}{key}", value


def _number(found: Any, key: str) -> float | None:
    value = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, (int, float)) and abs(value) < 1e9 else None


def _name(path: File, state: State, asked: str | None) -> str:
    """The method: as asked, where the keys allow it, or as the keys say."""
    if asked is not None and asked not in SIGNS:
        raise ValueError(
            f"no method {asked!r} is imported from such files. Choose one of {', '.join(SIGNS)}."
        )
    says = _guess(state)
    if says is None:
        wanted = "; ".join(f"{name}: {key}" for name, (*_, key) in SIGNS.items())
        raise ValueError(
            f"{path} holds no prompts of these methods ({wanted}); its keys begin with {few(state)}."
        )
    if asked in (None, says) or any({asked, says} <= group for group in ALIKE):
        return asked or says
    raise ValueError(
        f"{path} holds {says} (it has {SIGNS[says][2]}), not {asked}, whose files have {SIGNS[asked or says][2]}. "
        f"Import it as {says}."
    )


def _guess(state: State) -> str | None:
    if any(key.startswith("representation_learner.") for key in state):
        return "mmrl"
    if "ctx" in state and ("proj.weight" in state or "compound_prompts_text.0" in state):
        return "maple"
    deep = any(key.startswith(BLOCKS["text"]) and key.endswith(".VPT_shallow") for key in state)
    if "image_encoder.VPT" in state or deep:
        if "ctx" not in state:
            return "clip-vpt"
        return "promptsrc" if any(key.startswith("ZS_image_encoder.") for key in state) else "ivlp"
    if "ctx" in state:
        net = "cocoop" if "meta_net.linear2.weight" in state else "coop"
        return "kgcoop" if "bias_vectors" in state else net
    return "coop" if "prompt_embeddings" in state else None


def _tensor(path: File, state: State, key: str, ndim: int) -> Tensor:
    """One entry; refuses a file without it, and an empty one."""
    if key not in state:
        raise ValueError(
            f"{path} lacks {key}, a tensor of {ndim} dimensions; its keys begin with {few(state)}."
        )
    found = checked(path, key, state[key], ndim)
    if not found.numel():
        raise ValueError(f"{path}: {key} is empty, {tuple(found.shape)}.")
    return found


def _context(path: File, state: State, name: str = "coop") -> Found:
    """CoOp and what is saved like it."""
    if "ctx" not in state:
        return _peft(path, state, name)
    sets = getattr(state["ctx"], "ndim", 2) == 3
    rows = _tensor(path, state, "ctx", 3 if sets else 2)
    n = rows.shape[-2]
    options: dict[str, Any] = {"length": n}
    if name == "coop":
        options |= {"class_specific": sets}
    else:
        options |= {"words": ""}  # what they started from is not written down
    about = {"sentence": f"<ctx*{n}> {{}}."}
    return Found(
        rows={Site("text", "embedded", SLOT): rows}, method={}, method_name=name, options=options, about=about
    )


def _peft(path: File, state: State, name: str) -> Found:
    """peft's prompt tuning: rows in front of the sentence, here behind its start token."""
    rows = _tensor(path, state, "prompt_embeddings", 2)
    beside = Path(path).with_name("adapter_config.json")
    if beside.is_file():
        try:
            config = dict(json.loads(beside.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{beside} is damaged ({error}). Copy it again, or remove it.") from None
        kind, parts = config.get("peft_type"), config.get("num_transformer_submodules") or 1
        if kind not in ("PROMPT_TUNING", "P_TUNING") or parts != 1:
            raise ValueError(
                f"{path} holds {kind} for {parts} part(s) of a network, by the adapter_config.json beside it. What can "
                "be imported are PROMPT_TUNING and P_TUNING of one encoder: rows that enter at its embeddings."
            )
    found = _context(path, {"ctx": rows}, name)
    found["about"]["code"] = "huggingface/peft"
    return found


def _cocoop(path: File, state: State) -> Found:
    found = _context(path, state, "cocoop")
    width = next(iter(found["rows"].values())).shape[-1]
    for ours, theirs in (("0", "linear1"), ("2", "linear2")):
        for part, ndim in (("weight", 2), ("bias", 1)):
            found["method"][f"meta_net.{ours}.{part}"] = _tensor(
                path, state, f"meta_net.{theirs}.{part}", ndim
            )
    gives = len(found["method"]["meta_net.2.weight"])
    if gives != width:
        raise ValueError(
            f"{path}: meta_net gives {gives} channels and ctx is {width} wide; CoCoOp's gives as many as ctx is wide. "
            "If this is a file of another method with a net of that name (TCP), vpt does not import it."
        )
    return found


def _numbered(path: File, state: State, stem: str, tail: str, start: int) -> list[str]:
    """Keys STEM<number>TAIL in order; refuses gaps."""
    pattern = re.compile(rf"{re.escape(stem)}(\d{{1,4}}){re.escape(tail)}")
    numbers = sorted(int(m[1]) for m in map(pattern.fullmatch, state) if m)
    if numbers != list(range(start, start + len(numbers))):
        raise ValueError(
            f"{path} holds {stem}N{tail} for N in {numbers}; wanted are {start} and those that follow, without a gap."
        )
    return [f"{stem}{i}{tail}" for i in numbers]


def _layers(path: File, state: State, keys: Sequence[str]) -> list[Tensor]:
    """Tables [n, width] of one shape."""
    layers = [_tensor(path, state, key, 2) for key in keys]
    if wrong := [key for key, rows in zip(keys, layers, strict=True) if rows.shape != layers[0].shape]:
        raise ValueError(
            f"{path}: {wrong[0]} is {tuple(state[wrong[0]].shape)}, the rows of {keys[0]} are {tuple(layers[0].shape)}."
        )
    return layers


def _sites(tower: str, layers: Sequence[Tensor]) -> dict[Site, Tensor]:
    """Rows that enter below the first block and are replaced before the blocks above it."""
    first, slot = ("embedded", SLOT) if tower == "text" else ("placed", "suffix")
    stages = [first, *map(str, range(1, len(layers)))]
    return {Site(tower, stage, slot): rows for stage, rows in zip(stages, layers, strict=True)}


def _words(path: File, state: State, n: int) -> tuple[str, str]:
    """What IVLP and MaPLe said: the option "words" and the sentence.

    Of "a photo of a", n rows replace the first n words and the others stay; where names follow the rows at once, the
    tokens behind the rows differ from class to class.
    """
    rest = WORDS.split()[n:]
    if rest and "token_suffix" in state:
        suffix = checked(path, "token_suffix", state["token_suffix"], 3)[:, : len(rest)]
        if len(suffix) > 1 and not (suffix == suffix[:1]).all():
            rest = []
    return (WORDS if rest else ""), " ".join([f"<ctx*{n}>", *rest, "{}."])


def _both(path: File, state: State, name: str = "ivlp") -> Found:
    """IVLP and PromptSRC, the image tower's part alone too (VPT in CLIP)."""
    keys = {"text": ["ctx"], "image": ["image_encoder.VPT"]}
    for tower, own in keys.items():
        deep = _numbered(path, state, BLOCKS[tower], ".VPT_shallow", 1)
        if own[0] not in state and deep:
            raise ValueError(f"{path} holds {deep[0]} without {own[0]}, the rows of the first layer.")
        keys[tower] = own + deep if own[0] in state else []
    layers = {tower: _layers(path, state, own) for tower, own in keys.items()}
    rows = {site: r for tower, own in layers.items() if own for site, r in _sites(tower, own).items()}
    n, image = (len(layers[tower][0]) if layers[tower] else 0 for tower in ("text", "image"))
    about = {"sentence": f"{WORDS} {{}}."}
    if name == "clip-vpt":
        options: dict[str, Any] = {"length": image, "layers": len(layers["image"])}
        return Found(rows=rows, method={}, method_name=name, options=options, about=about)
    words, about["sentence"] = _words(path, state, n)
    options = {"length": n, "image_length": image, "layers": len(layers["text"]), "words": words}
    if image:
        options["image_layers"] = len(layers["image"])
    return Found(rows=rows, method={}, method_name=name, options=options, about=about)


def _map(path: File, state: State, stem: str, rows: Tensor) -> Tensor:
    """A linear layer of the file applied to rows [n, width in]."""
    weight, bias = _tensor(path, state, f"{stem}.weight", 2), _tensor(path, state, f"{stem}.bias", 1)
    if weight.shape[1] != rows.shape[1] or weight.shape[0] != len(bias):
        raise ValueError(
            f"{path}: {stem} is {tuple(weight.shape)} with {len(bias)} biases, and maps rows {rows.shape[1]} wide."
        )
    return F.linear(rows, weight, bias)


def _maple(path: File, state: State) -> Found:
    deep = _numbered(path, state, "compound_prompts_text.", "", 0)
    text = _layers(path, state, ["ctx", *deep])
    maps = ["proj", *[f"compound_prompt_projections.{i}" for i in range(len(deep))]]
    image = [_map(path, state, stem, rows) for stem, rows in zip(maps, text, strict=True)]
    words, sentence = _words(path, state, len(text[0]))
    options = {"length": len(text[0]), "layers": len(text), "words": words}
    rows = {**_sites("text", text), **_sites("image", image)}
    return Found(rows=rows, method={}, method_name="maple", options=options, about={"sentence": sentence})


def _mmrl(path: File, state: State) -> Found:
    """Tokens shared by both towers and mapped into each of their last layers, behind the class and the start token."""
    stem = "representation_learner.compound_rep_tokens"
    if any(key.startswith("representation_learner.srra_") for key in state):
        raise ValueError(
            f"{path} is a file of MMRL++, which mixes its rows with what the layer below made of them; rows that enter "
            "as they are cannot say this. Files of MMRL are imported."
        )
    tokens = _tensor(path, state, stem, 2)
    method = {"shared_tokens": tokens, "projection": _tensor(path, state, "image_encoder.proj_rep", 2)}
    counts = []
    rows: dict[Site, Tensor] = {}
    for tower, part in (("image", "_r2vproj"), ("text", "_r2tproj")):
        keys = _numbered(path, state, f"{stem}{part}.", ".weight", 0)
        blocks = {
            key.removeprefix(BLOCKS[tower]).split(".")[0] for key in state if key.startswith(BLOCKS[tower])
        }
        counts.append(len(keys))
        depth = len(blocks) or 12  # of ViT-B/16, where the file holds no CLIP
        if not 1 <= len(keys) <= depth:
            raise ValueError(
                f"{path} maps its tokens into {len(keys)} layers of {depth} ({stem}{part}.N.weight)."
            )
        for i, key in enumerate(keys):
            layer = key.removesuffix(".weight")
            rows[Site(tower, str(depth - len(keys) + i), "prefix")] = _map(path, state, layer, tokens)
            method |= {f"to_{tower}.{i}.{p}": state[f"{layer}.{p}"].float() for p in ("weight", "bias")}
    if counts[0] != counts[1]:
        raise ValueError(
            f"{path} maps its tokens into {counts[0]} layers of one tower and {counts[1]} of the other."
        )
    options = {"length": len(tokens), "layers": counts[0], "shared": tokens.shape[1]}
    about = {"sentence": f"{WORDS} {{}}."}
    return Found(rows=rows, method=method, method_name="mmrl", options=options, about=about)


READERS: dict[str, Callable[[File, State], Found]] = {
    "coop": _context,
    "kgcoop": lambda path, state: _context(path, state, "kgcoop"),
    "prograd": lambda path, state: _context(path, state, "prograd"),
    "cocoop": _cocoop,
    "clip-vpt": lambda path, state: _both(path, state, "clip-vpt"),
    "ivlp": _both,
    "promptsrc": lambda path, state: _both(path, state, "promptsrc"),
    "maple": _maple,
    "mmrl": _mmrl,
}


def _say(path: File, found: Found, sentence: str) -> None:
    """Another sentence: with one place for the name, and for as many rows as the file has for the text's words."""
    rows = found["rows"].get(Site("text", "embedded", SLOT))
    wanted = 0 if rows is None else rows.shape[-2]
    places = [int(m[1] or 1) for m in re.finditer(r"<ctx(?:\*(\d+))?>", sentence)]
    if (names := sentence.count("{}")) != 1 or sum(places) != wanted:
        raise ValueError(
            f"the sentence {sentence!r} has {names} places for the name and {sum(places)} for rows; wanted are one "
            f"{{}} and, as in {path}, {wanted} rows: {found['about']['sentence']!r}."
        )
    found["about"]["sentence"] = sentence
    if found["method_name"] == "coop":
        before, _, behind = sentence.partition("{}")
        found["options"]["place"] = (
            "end" if SLOT[:-1] not in behind else "middle" if SLOT[:-1] in before else "front"
        )
    elif found["method_name"] in ("clip-vpt", "mmrl"):
        found["options"]["template"] = sentence
