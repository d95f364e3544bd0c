"""Replays of the CLIP methods: features, loss, gradients and optimiser steps that the authors' code computed."""

from collections.abc import Callable
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from golden_case import CASES, FINAL, FINAL_LOGITS, FOLDER, LOSSES, OUT, STEP1, VIT, Golden, close
from safetensors.torch import load_file
from torch import Tensor, nn

from vpt.methods.cocoop import CoCoOp
from vpt.methods.coop import CoOp
from vpt.methods.ivlp import IVLP, ClipVPT
from vpt.methods.kgcoop import KgCoOp
from vpt.methods.maple import MaPLe
from vpt.methods.method import Method
from vpt.methods.pixel import ClipPixel
from vpt.methods.promptsrc import PromptSRC
from vpt.pixels import pixel_places
from vpt.tasks.learner import Learner
from vpt.tower import Stream
from vpt.towers.backbone import Backbone
from vpt.towers.load_clip import backbone_of

WAITING = {"TPT"}  # replayed in tests/tasks/test_test_time.py, where its task is
NAMES = [name for name, case in CASES.items() if case["method"] not in {*VIT, *WAITING}]


@cache
def backbone() -> Backbone:
    """The small CLIP that all cases share; rows of the word table that no case uses are NaN."""
    model = next(case["model"] for case in CASES.values() if case["method"] not in VIT)
    vision, text = model["vision"], model["text"]
    clip = open_clip.model.CLIP(
        model["embed_dim"],
        vision_cfg=open_clip.model.CLIPVisionCfg(
            layers=vision["layers"],
            width=vision["width"],
            head_width=vision["head_width"],
            patch_size=model["patch_size"],
            image_size=model["image_size"],
        ),
        text_cfg=open_clip.model.CLIPTextCfg(
            context_length=text["context_length"],
            vocab_size=text["vocab_size"],
            width=text["width"],
            heads=text["heads"],
            layers=text["layers"],
        ),
        quick_gelu=True,
    )
    state = load_file(FOLDER / model["weights_file"])
    table = torch.full((text["vocab_size"], text["width"]), torch.nan)
    table[state.pop("token_embedding.ids")] = state.pop("token_embedding.rows")
    found = clip.load_state_dict({**state, "token_embedding.weight": table}, strict=False)
    assert not found.unexpected_keys
    clip.visual.image_mean = clip.visual.image_std = None
    clip.visual.preprocess_cfg = {"size": model["image_size"]}
    return backbone_of(clip, "open_clip/golden", "ViT-B-32")


def context(case: dict[str, Any]) -> dict[str, Any]:
    prompt = case["prompt"]
    return {"length": prompt["n_ctx"], "words": prompt["ctx_init"] or ""}


def coop(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    prompt = case["prompt"]
    options = {"place": prompt["class_token_position"], "class_specific": prompt["class_specific"]}
    return CoOp(towers["text"], towers["tokens"], towers["classes"], **context(case), **options)


def kgcoop(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    told = {"teacher": case["classes"]["teacher_template"], "weight": case["prompt"]["consistency_weight"]}
    return KgCoOp(towers["text"], towers["tokens"], towers["classes"], **context(case), **told)


def cocoop(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    return CoCoOp(towers["image"], towers["text"], towers["tokens"], **context(case))


def both(case: dict[str, Any]) -> dict[str, Any]:
    p = case["prompt"]
    return {
        "length": p["n_ctx_text"],
        "image_length": p["n_ctx_vision"],
        "layers": p["depth_text"] or None,
        "image_layers": p["depth_vision"] or None,
        "words": p["ctx_init"] or "",
    }


def ivlp(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    return IVLP(towers["image"], towers["text"], towers["tokens"], **both(case))


def promptsrc(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    p = case["prompt"]
    weights = {f"{k}_weight": p[f"{k}_loss_weight"] for k in ("text", "image", "logits")}
    averaging = {"mean": p["gpa"]["mean"], "std": p["gpa"]["std"]}
    parts = (towers["image"], towers["text"], towers["tokens"])
    return PromptSRC(*parts, **both(case), **weights, **averaging)


def vpt(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    p = case["prompt"]
    parts = (towers["image"], towers["text"], towers["tokens"])
    return ClipVPT(*parts, length=p["n_ctx_vision"], layers=p["depth_vision"])


def maple(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    parts = (towers["image"], towers["text"], towers["tokens"])
    return MaPLe(*parts, **context(case), layers=case["prompt"]["depth"])


def pixel(case: dict[str, Any], towers: dict[str, Any]) -> Method:
    kind = {"padding": "padding", "fixed_patch": "patch", "random_patch": "random-patch"}[
        case["prompt"]["kind"]
    ]
    return ClipPixel(towers["image"], kind=kind, size=case["prompt"]["prompt_size"], picture=32)


MAKE: dict[str, Callable[[dict[str, Any], dict[str, Any]], Method]] = {
    "CoOp": coop,
    "KgCoOp": kgcoop,
    "CoCoOp": cocoop,
    "IVLP (independent vision-language prompting)": ivlp,
    "VPT in CLIP (vision-only prompting)": vpt,
    "MaPLe": maple,
    "PromptSRC": promptsrc,
    "Visual Prompting (pixel prompts)": pixel,
}


def trained(method: Any) -> dict[str, Callable[[Callable[[nn.Parameter], Tensor]], Tensor]]:
    """The recorded tensors by name, each made of what ``f`` gives for our parameters (value or gradient)."""
    if isinstance(method, CoOp):
        shape = (method.sets, method.length, -1) if method.class_specific else (method.length, -1)
        return {"ctx": lambda f: f(method.text_prompt.table.rows).view(shape)}
    if isinstance(method, CoCoOp):
        net = {"linear1": method.meta_net[0], "linear2": method.meta_net[2]}
        parts = {
            f"meta_net.{name}.{k}": lambda f, p=p: f(p)
            for name, layer in net.items()
            for k, p in layer.named_parameters()
        }
        return {"ctx": lambda f: f(method.text_prompt.table.rows)[0], **parts}
    if isinstance(method, MaPLe):
        return {
            "text_prompts": lambda f: f(method.text_prompt.table.rows),
            "coupling.weight": lambda f: torch.stack([f(m.weight) for m in method.maps]),
            "coupling.bias": lambda f: torch.stack([f(m.bias) for m in method.maps]),
        }
    found = {}
    if method.text_prompt is not None:
        found["text_prompts"] = lambda f: f(method.text_prompt.table.rows)
    if method.image_prompt is not None:
        found["visual_prompts"] = lambda f: f(method.image_prompt.table.rows)
    return found


def set_start(method: Any, start: dict[str, Tensor]) -> None:
    """Put the recorded start into our parameters; where it follows from words, ours must be there already."""
    with torch.no_grad():
        if isinstance(method, MaPLe):
            for i, m in enumerate(method.maps):
                m.weight.copy_(start["coupling.weight"][i])
                m.bias.copy_(start["coupling.bias"][i])
        if isinstance(method, CoCoOp):
            for name, layer in (("linear1", method.meta_net[0]), ("linear2", method.meta_net[2])):
                layer.weight.copy_(start[f"meta_net.{name}.weight"])
                layer.bias.copy_(start[f"meta_net.{name}.bias"])
        for key in ("ctx", "text_prompts", "visual_prompts"):
            if key in start:
                prompt = method.image_prompt if key == "visual_prompts" else method.text_prompt
                prompt.table.rows.copy_(start[key].reshape(prompt.table.rows.shape))


class Replay:
    """A case as our own method and learner, at the recorded start."""

    def __init__(self, case: dict[str, Any], golden: Golden, packed: bool) -> None:
        names = case["classes"]["names_used"]
        b = backbone()
        parts = {**b.towers, "tokens": b.tokens, "classes": len(names)}
        torch.manual_seed(0)
        self.method = MAKE[case["method"]](case, parts)
        self.learner = Learner(self.method, b, names, packed=packed).train()
        if isinstance(self.method, ClipPixel):
            self.strips = {k: v[0] for k, v in golden.group("init.").items()}
            with torch.no_grad():
                self.method.image_prompt.table.rows.copy_(self.pixel_rows(golden.group("init."))[None])
            self.trained: dict[str, Any] = {"": lambda f: f(self.method.image_prompt.table.rows)[0]}
            return
        self.trained = trained(self.method)
        start = golden.group("init.")
        assert start.keys() == self.trained.keys()
        words = case["prompt"].get("ctx_init")
        first = "ctx" if "ctx" in start else "text_prompts"
        if words and first in start:
            mine, theirs = self.trained[first](lambda p: p.detach()), start[first]
            close(*((mine, theirs) if first == "ctx" else (mine[0], theirs[0])), 1e-6, "start from words")
        set_start(self.method, start)

    def pixel_rows(self, strips: dict[str, Tensor]) -> Tensor:
        """Recorded strips or a patch as rows of our slot."""
        if "patch" in strips:
            return strips["patch"][0].flatten(1).T
        up, left = strips["pad_up"][0], strips["pad_left"][0]
        frame = torch.zeros(3, up.shape[-1], up.shape[-1])
        n = up.shape[-2]
        frame[:, :n], frame[:, -n:] = up, strips["pad_down"][0]
        frame[:, n:-n, :n], frame[:, n:-n, -n:] = left, strips["pad_right"][0]
        rows = self.method.image_prompt.table.rows  # type: ignore[union-attr]
        return frame.flatten(1)[:, pixel_places("border", rows.shape[-2], frame.shape[-2:])].T

    def recorded(self, group: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"": self.pixel_rows(group)} if isinstance(self.method, ClipPixel) else group


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, packed: bool) -> None:
    case = CASES[name]
    golden = Golden(case)
    if case["method"].startswith("CLIP zero-shot"):
        check_frozen(case, golden, packed)
    elif case["method"] in MAKE:
        replay(case, golden, packed)
    else:
        pytest.fail(f"{name} is of an unknown kind: {case['method']!r}")


def check_frozen(case: dict[str, Any], golden: Golden, packed: bool) -> None:
    b = backbone()
    ids = b.tokens(case["classes"]["texts"])
    assert torch.equal(ids, torch.tensor(case["classes"]["token_ids"]))
    method = ClipPixel(b.image, size=1, picture=32)
    method.sentence = "a photo of a {}."
    with torch.no_grad():
        method.image_prompt.table.rows.zero_()
    seen = Learner(method, b, case["classes"]["names_used"], packed=packed).eval().see(golden["input.images"])
    for key, got in (("image_features", seen.image), ("text_features", seen.text), ("logits", seen.logits)):
        close(got, golden[f"out.{key}"], OUT, key)


def inputs(replay: Replay, golden: Golden, step: int | None) -> Tensor | Stream:
    """Pictures; a random patch goes to the recorded place."""
    images = golden["input.images"]
    if "input.position_forward" not in golden.entries:
        return images
    at = golden["input.position_forward"] if step is None else golden["input.positions_train"][step]
    size = int(len(replay.method.image_prompt.table.rows[0]) ** 0.5)  # type: ignore[union-attr,arg-type,index]
    grid = torch.arange(images.shape[-2] * images.shape[-1]).view(images.shape[-2:])
    r, c = at.tolist()
    return Stream(images, places={"anywhere": grid[r : r + size, c : c + size].reshape(1, -1)})


def replay(case: dict[str, Any], golden: Golden, packed: bool) -> None:
    run, settings = Replay(case, golden, packed), case["optimizer"]
    learner, method = run.learner, run.method
    labels, losses = golden["input.labels"], []
    assert settings["name"] == "SGD"
    optimizer = torch.optim.SGD(
        [p for p in learner.parameters() if p.requires_grad],
        lr=settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    rates = settings.get("lr_per_step") or [settings["lr"]] * settings["steps"]
    average = case["prompt"].get("gpa")
    seen = learner.see(inputs(run, golden, None))
    for key, got in (("image_features", seen.image), ("text_features", seen.text), ("logits", seen.logits)):
        close(got, golden[f"out.{key}"], OUT, f"out.{key}")
    for step in range(settings["steps"]):
        optimizer.param_groups[0]["lr"] = rates[step]
        seen = learner.see(inputs(run, golden, step))
        parts = method.losses(seen, lambda logits: nn.functional.cross_entropy(logits, labels))
        loss = method.total(parts)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            check_first(run, golden, parts, loss)
        optimizer.step()
        if step == 0:
            for key, wanted in run.recorded(golden.group("step1.")).items():
                close(run.trained[key](lambda p: p.detach()), wanted, STEP1, f"step1.{key}")
        if average and (step + 1) % average["batches_per_epoch"] == 0:
            check_epoch(run, golden, average, (step + 1) // average["batches_per_epoch"])
    close(torch.stack(losses), golden["train.losses"], LOSSES, "train.losses")
    final = golden.group("gpa." if average else "final.")
    wanted = {k: v for k, v in final.items() if k not in ("logits", "weights")}
    for key, value in run.recorded(wanted).items():
        close(run.trained[key](lambda p: p.detach()), value, FINAL, f"final.{key}")
    if "logits" in final:
        got = learner.eval().see(golden["input.images"]).logits
        close(got, final["logits"], FINAL_LOGITS, "final.logits")


def check_first(run: Replay, golden: Golden, parts: dict[str, Tensor], loss: Tensor) -> None:
    if "out.loss" in golden.entries:
        close(loss, golden["out.loss"], OUT, "out.loss")
    named = {"task": "loss_ce", "text": "loss_text", "image": "loss_image", "logits": "loss_logits"}
    for ours, theirs in named.items():
        if f"out.{theirs}" in golden.entries:
            close(parts[ours], golden[f"out.{theirs}"], OUT, theirs)
    for key, wanted in run.recorded(golden.group("grad.")).items():
        got = run.trained[key](lambda p: p.grad)
        close(got, wanted, OUT * wanted.abs().max().item(), f"grad.{key}")
    towers = backbone().towers.values()
    assert all(p.grad is None for tower in towers for p in tower.model.parameters())


def check_epoch(run: Replay, golden: Golden, average: dict[str, Any], epoch: int) -> None:
    for key in run.trained:
        got = run.trained[key](lambda p: p.detach())
        close(got, golden[f"epoch_end.{key}"][epoch - 1], FINAL, f"epoch_end.{key}")
    run.method.after_epoch(epoch, average["epochs"], run.learner.tower, tuple, None)


def test_an_unknown_kind_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "new", {"method": "X-Prompt", "tensors": {}})
    with pytest.raises(pytest.fail.Exception, match="new is of an unknown kind: 'X-Prompt'"):
        test_case("new", True)
