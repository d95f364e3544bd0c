"""The methods by name. A plain dict: a new method is one file and one line here. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

__all__ = ["EPOCHS", "METHODS", "Entry", "method_class", "methods"]


@dataclass(frozen=True)
class Entry:
    """A method under its name.

    home: module and class.  options: what this name fixes.
    baseline: learns weights, or solves a closed form; its result is no prompt set.
    only: the one objective that it is for, if it is for one only.
    lr, weight_decay, optimizer: what `vpt fit` uses when nothing is said, chosen for few-shot work; the
        papers' own recipes are in configs/.
    """

    home: str
    paper: str
    summary: str
    sites: str
    options: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    lr: float = 2e-3
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    only: str = ""


EPOCHS = {"denoise": 200}
"""Passes over the pictures where nothing is said, of objectives whose few pictures are a step or two."""

METHODS: dict[str, Entry] = {
    "vpt-shallow": Entry(
        "vpt.methods.vpt:VPT",
        "2203.12119",
        "rows behind the class token, once, before the first block",
        "image/0/prefix",
        {"layers": "first"},
    ),
    "vpt-deep": Entry(
        "vpt.methods.vpt:VPT",
        "2203.12119",
        "rows behind the class token, new ones before every block",
        "image/0../prefix",
        {"layers": "all"},
    ),
    "vfpt": Entry(
        "vpt.methods.vfpt:VFPT",
        "2411.01327",
        "VPT-deep with part of its rows passed through a Fourier transform",
        "image/0../prefix",
    ),
    "prefix": Entry(
        "vpt.methods.prefix:Prefix",
        "2101.00190",
        "prefix tuning: keys and values of their own in every block",
        "image/0../kv",
    ),
    "pixel": Entry(
        "vpt.methods.pixel:Pixel",
        "2203.17274",
        "a frame or patch added to the picture; also on closed towers (CNN, Swin)",
        "image/input/border",
        lr=1e-2,
        weight_decay=0.0,
    ),
    "clip-pixel": Entry(
        "vpt.methods.pixel:ClipPixel",
        "2203.17274",
        "pixel prompts on CLIP, the classes named by its text tower",
        "image/input/border",
        lr=1e-2,
        weight_decay=0.0,
    ),
    "coop": Entry(
        "vpt.methods.coop:CoOp",
        "2109.01134",
        "rows in place of the words around a class name; shared or class-specific",
        "text/embedded/<ctx>",
    ),
    "cocoop": Entry(
        "vpt.methods.cocoop:CoCoOp",
        "2203.05557",
        "CoOp whose rows a small net shifts by the picture's feature",
        "text/embedded/<ctx>",
    ),
    "kgcoop": Entry(
        "vpt.methods.kgcoop:KgCoOp",
        "2303.13283",
        "CoOp held near the features of a hand-written sentence",
        "text/embedded/<ctx>",
    ),
    "prograd": Entry(
        "vpt.methods.prograd:ProGrad",
        "2205.14865",
        "CoOp whose gradient is projected where it works against the zero-shot model",
        "text/embedded/<ctx>",
    ),
    "clip-vpt": Entry(
        "vpt.methods.ivlp:ClipVPT",
        "2203.12119",
        "VPT in CLIP's image tower, as the CLIP methods place it; names said in a fixed sentence",
        "image/placed../suffix",
    ),
    "ivlp": Entry(
        "vpt.methods.ivlp:IVLP",
        "2210.03117",
        "rows in both towers that know nothing of each other",
        "text/embedded../<ctx> image/placed../suffix",
    ),
    "ivlp-low-rank": Entry(
        "vpt.methods.ivlp:IVLP",
        "2210.03117",
        "IVLP with each tower's rows as a product of two thin tables",
        "text/embedded../<ctx> image/placed../suffix",
        {"rank": 2},
    ),
    "maple": Entry(
        "vpt.methods.maple:MaPLe",
        "2210.03117",
        "rows in both towers, the image tower's a linear map of the text tower's",
        "text/embedded../<ctx> image/placed../suffix",
    ),
    "promptsrc": Entry(
        "vpt.methods.promptsrc:PromptSRC",
        "2307.06948",
        "IVLP held near the frozen model by three terms, averaged over epochs",
        "text/embedded../<ctx> image/placed../suffix",
    ),
    "mmrl": Entry(
        "vpt.methods.mmrl:MMRL",
        "2503.08497",
        "shared tokens in the upper layers of both towers, read back as a second image feature",
        "text/upper/prefix image/upper/prefix",
        lr=1e-3,
    ),
    "concept": Entry(
        "vpt.methods.concept:Concept",
        "2208.01618",
        "a new word such as <my-mug>, learned from a few pictures against a background set",
        "text/embedded/<my-concept>",
        lr=5e-3,
        weight_decay=0.0,
        only="retrieve",
    ),
    "random-rows": Entry(
        "vpt.methods.baselines.random_rows:RandomRows",
        "",
        "control: VPT-deep's rows at their random start, frozen; only the head learns",
        "image/0../prefix",
        baseline=True,
    ),
    "linear": Entry(
        "vpt.methods.baselines.linear:Linear",
        "",
        "linear probe by gradient: the head alone",
        "none",
        baseline=True,
    ),
    "linear-exact": Entry(
        "vpt.methods.baselines.linear_exact:LinearExact",
        "",
        "linear probe by L-BFGS on stored features, its strength chosen on val",
        "none",
        baseline=True,
    ),
    "bias": Entry(
        "vpt.methods.baselines.bias:Bias",
        "2106.10199",
        "the biases of the network and a head",
        "none",
        baseline=True,
    ),
    "lora": Entry(
        "vpt.methods.baselines.lora:LoRA",
        "2106.09685",
        "low-rank updates of the attention's projections (peft) and a head",
        "none",
        baseline=True,
    ),
    "full": Entry(
        "vpt.methods.baselines.full:Full",
        "",
        "full fine-tuning: every weight and a head",
        "none",
        baseline=True,
        lr=1e-4,
    ),
    "zero-shot": Entry(
        "vpt.methods.baselines.zero_shot:ZeroShot",
        "2103.00020",
        "class names in one sentence, nothing learned",
        "none",
        baseline=True,
    ),
    "zero-shot-ensemble": Entry(
        "vpt.methods.baselines.zero_shot:ZeroShot",
        "2103.00020",
        "class names in CLIP's 80 sentences, nothing learned",
        "none",
        {"templates": "imagenet-80"},
        baseline=True,
    ),
    "zero-shot-descriptions": Entry(
        "vpt.methods.baselines.zero_shot:Descriptions",
        "2209.03320",
        "sentences that describe each class, from a JSON file, nothing learned",
        "none",
        baseline=True,
    ),
    "waffle": Entry(
        "vpt.methods.baselines.zero_shot:Waffle",
        "2306.07282",
        "class names with random words behind them, nothing learned",
        "none",
        baseline=True,
    ),
    "lp++": Entry(
        "vpt.methods.baselines.lp_plus_plus:LPPlusPlus",
        "2404.02285",
        "linear probe that starts from class names, its step chosen on val",
        "none",
        baseline=True,
    ),
    "tip-adapter": Entry(
        "vpt.methods.baselines.tip_adapter:TipAdapter",
        "2111.03930",
        "zero-shot logits and a cache of the training pictures, weighed on val",
        "none",
        baseline=True,
    ),
    "tip-adapter-f": Entry(
        "vpt.methods.baselines.tip_adapter:TipAdapter",
        "2111.03930",
        "Tip-Adapter whose keys learn",
        "none",
        {"finetune": True},
        baseline=True,
        lr=1e-3,
    ),
    "polar": Entry(
        "vpt.methods.baselines.polar:Polar",
        "2506.10182",
        "a concept as a rank-1 update of the text tower's last value matrix",
        "none",
        baseline=True,
        lr=1e-3,
        weight_decay=0.0,
        only="retrieve",
    ),
    "clip-lora": Entry(
        "vpt.methods.baselines.clip_lora:ClipLoRA",
        "2405.18541",
        "low-rank updates of the attention in both towers (peft), the classes named",
        "none",
        baseline=True,
        lr=2e-4,
    ),
    "clip-full": Entry(
        "vpt.methods.baselines.full:ClipFull",
        "",
        "full fine-tuning of both towers, the classes named",
        "none",
        baseline=True,
        lr=1e-5,
    ),
    "textual-inversion": Entry(
        "vpt.methods.textual_inversion:TextualInversion",
        "2208.01618",
        "text to image: rows for a new word, in the text encoders of a diffusion pipeline",
        "text/embedded/<my-concept>",
        lr=5e-3,
        weight_decay=0.0,
        only="denoise",
    ),
    "direction": Entry(
        "vpt.methods.textual_inversion:TextualInversion",
        "2512.13672",
        "textual inversion whose rows keep their length and turn (DTI); with optimizer=direction",
        "text/embedded/<my-concept>",
        {"norm": "fixed"},
        lr=1e-2,
        weight_decay=0.0,
        only="denoise",
    ),
    "p-plus": Entry(
        "vpt.methods.textual_inversion:PPlus",
        "2303.09522",
        "textual inversion with a set of rows for each cross-attention of the U-Net",
        "text/embedded/<my-concept>",
        lr=5e-3,
        weight_decay=0.0,
        only="denoise",
    ),
    "context": Entry(
        "vpt.methods.context:ContextRows",
        "2412.19637",
        "text to image: rows in the sequence that the network's cross-attention reads, or its negative",
        "context/embedded/positive",
        lr=1e-2,
        weight_decay=0.0,
        only="denoise",
    ),
    "dreambooth-lora": Entry(
        "vpt.methods.baselines.dreambooth_lora:DreamBoothLoRA",
        "2208.12242",
        "text to image: low-rank updates of the network's attention (peft), and a rare word",
        "none",
        baseline=True,
        lr=1e-4,
        only="denoise",
    ),
}


def methods() -> dict[str, str]:
    """Names and what they do, as `vpt methods` prints them."""
    return {name: entry.summary for name, entry in METHODS.items()}


def method_class(name: str) -> Any:
    """The class behind a name; raises ValueError that lists the names. Imports torch."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}. Choose one of {', '.join(METHODS)}.")
    module, _, attribute = METHODS[name].home.partition(":")
    return getattr(import_module(module), attribute)
