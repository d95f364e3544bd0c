"""Replays what the original authors' code computed: outputs, gradients, and optimiser steps.

Here the cases of vision transformers; those of CLIP are in test_golden_clip.py. An unknown kind fails there.
"""

import ast
import math
from typing import Any

import pytest
import torch
from golden_case import (
    CASES,
    FILES,
    FINAL,
    FINAL_LOGITS,
    FOLDER,
    LOSSES,
    OUT,
    SCHEDULES,
    STEP1,
    VIT,
    Golden,
    close,
)
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vpt.encode import advance, encode
from vpt.methods.vpt import VPT
from vpt.prompt import Context
from vpt.tasks.schedule import schedule
from vpt.tower import Stream, Tower
from vpt.towers.vit import open_timm

# what the authors' options say that this replay understands; another one would change the numbers unseen
OPTIONS = {"NUM_TOKENS", "DEEP", "NUM_DEEP_LAYERS", "DEEP_SHARED", "PROJECT"}
OPTIONS |= {"REVERSE_DEEP", "FORWARD_DEEP_NOEXPAND"}
ELSEWHERE = {  # known schedules that are not compared here
    "Visual Prompting (pixel prompts)": "recorded with 10 warm-up steps, ours has the authors' 1000",
}
FAMILIES = {  # the schedules that several methods share
    "VPT (ViT)": "vpt",
    "CoOp, CoCoOp, KgCoOp, IVLP, VPT in CLIP, MaPLe, PromptSRC": "coop",
}


def open_vit(case: dict[str, Any]) -> Tower:
    (call,) = ast.parse(case["model"]["timm_constructor"]).body
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    model = VisionTransformer(**{k.arg: ast.literal_eval(k.value) for k in call.value.keywords})
    model.load_state_dict(load_file(FOLDER / case["model"]["weights_file"]))
    return open_timm(model)


class Replay:
    """A VPT case as our own method, tower and head, at the recorded start."""

    def __init__(self, case: dict[str, Any], golden: Golden, live: bool) -> None:
        prompt, self.live = case["prompt"], live
        assert set(prompt["authors_options"]) <= OPTIONS, prompt["authors_options"]
        self.options, self.length = prompt["authors_options"], prompt["num_tokens"]
        shared = isinstance(prompt["layers"][0], list)
        self.layers = prompt["layers"][0] if shared else prompt["layers"]
        self.tower = open_vit(case)
        self.method = VPT(
            self.tower,
            length=self.length,
            layers=",".join(map(str, self.layers)),
            project=prompt["project"] if prompt["project"] > 0 else None,
            shared=shared,
        )
        self.head = self.method.head(self.tower.out, case["head"]["classes"])
        bound = math.sqrt(6 / (3 * case["model"]["patch_size"] ** 2 + prompt["prompt_dim"]))
        assert bound == pytest.approx(prompt["init_bound"])
        assert 0.9 * bound < self.method.image_prompt.table.rows.abs().max() <= bound
        names = {"image_prompt.table.rows": "prompts", "image_prompt.through": "prompt_proj"}
        self.trained = {f"head.{n}": p for n, p in self.head.named_parameters()}
        for name, p in self.method.named_parameters():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            self.trained[name] = p
        start = golden.group("init.")
        assert start.keys() == self.trained.keys()
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(start[name])

    def climb(self, images: Tensor, stage: str, trim: bool = False) -> Tensor:
        """x at a stage, with the two quirks of the authors' code where the case asks for them."""
        inputs: Tensor | Stream = images
        rows = self.method(Context(len(images)))
        if self.options.get(
            "REVERSE_DEEP"
        ):  # rows that overwrite patches: their places are known from the start
            inputs = Stream(images, places={"prefix": torch.arange(1, 1 + self.length)[None]})
        if self.options.get(
            "FORWARD_DEEP_NOEXPAND"
        ):  # rows leave the sequence above the last block that has any
            inputs = advance(self.tower, inputs, rows, self.layers[-1] + 1, live=self.live).without(
                ["prefix"]
            )
        return advance(self.tower, inputs, rows, stage, live=self.live, trim=trim).x

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.climb(images, "pooled", trim=True))


@pytest.mark.parametrize("live", [True, False], ids=["live", "plain"])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case["method"] in VIT])
def test_case(name: str, live: bool) -> None:
    case = CASES[name]
    golden = Golden(case)
    if case["method"] == "ViT, no prompts (check this first)":
        got = encode(open_vit(case), golden["input.images"], live=live)
        close(got, golden["out.features"], OUT, "out.features")
    else:
        replay_vpt(case, golden, live)


def replay_vpt(case: dict[str, Any], golden: Golden, live: bool) -> None:
    images, labels = golden["input.images"], golden["input.labels"]
    replay = Replay(case, golden, live)
    close(replay.climb(images, "pooled", trim=True), golden["out.features"], OUT, "out.features")
    tokens = replay.climb(images, "normed")[0]
    close(tokens, golden["out.tokens_image0"], OUT, "out.tokens_image0")

    settings, losses = case["optimizer"], []
    assert settings["name"] == "SGD"
    assert settings["schedule"].startswith("none")
    exempt = [replay.trained[name] for name in settings["weight_decay_exempt"]]
    decayed = [p for p in replay.trained.values() if all(p is not e for e in exempt)]
    optimizer = torch.optim.SGD(
        [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}],
        lr=settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    for step in range(settings["steps"]):
        logits = replay.logits(images)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            close(logits, golden["out.logits"], OUT, "out.logits")
            close(loss, golden["out.loss"], OUT, "out.loss")
            for key, wanted in golden.group("grad.").items():
                close(replay.trained[key].grad, wanted, OUT * wanted.abs().max().item(), f"grad.{key}")
            assert all(p.grad is None for p in replay.tower.model.parameters())
        optimizer.step()
        if step == 0:
            for key, wanted in golden.group("step1.").items():
                close(replay.trained[key], wanted, STEP1, f"step1.{key}")
    close(torch.stack(losses), golden["train.losses"], LOSSES, "train.losses")
    for key, wanted in golden.group("final.").items():
        if key != "logits":
            close(replay.trained[key], wanted, FINAL, f"final.{key}")
    close(replay.logits(images), golden["final.logits"], FINAL_LOGITS, "final.logits")


@pytest.mark.parametrize("entry", SCHEDULES, ids=lambda e: f"{e['used_by']}-{len(e['lr'])}")
def test_schedule(entry: dict[str, Any]) -> None:
    kind = entry["used_by"]
    if kind in ELSEWHERE:
        pytest.skip(f"{kind}: {ELSEWHERE[kind]}")
    if kind not in FAMILIES:
        pytest.fail(f"unknown kind of schedule: {kind!r}")
    steps, warmup, lr = 3, int(entry["warmup"].split()[0]), entry["base_lr"]
    factor = schedule(FAMILIES[kind], entry["epochs"], steps, warmup)
    got = [lr * factor(step, lr) for step in range(entry["epochs"] * steps)]
    assert got == pytest.approx([lr for lr in entry["lr"] for _ in range(steps)], rel=1e-9, abs=1e-15)


def test_the_folder_holds_cases_of_this_format() -> None:
    assert CASES, f"no cases in {FOLDER}"
    for name, case in CASES.items():
        assert case["format"] == 1, f"{name} is in format {case['format']}, this replay reads 1"
        assert case["case"] == name
    strange = FILES.keys() - CASES.keys() - {"lr-schedules"}
    assert not strange, f"files of an unknown kind: {sorted(strange)}"
