"""Trains clip-mini, and measures the committed weights.

    python -m vpt.tasks.starters.clip_mini --data DIR --out DIR
    python -m vpt.tasks.starters.clip_mini --evaluate --data DIR

DIR holds the folders tiny-imagenet, emoji, flickr8k-mini and caltech101 (which only ``--evaluate`` reads).

First the text tower alone learns the sentence space of all-MiniLM-L6-v2 (reading.py), so that a name which no
picture showed has a sensible place. What vit-mini's frozen part makes of every picture is kept (tokens.py). Then
the last three blocks and the projection learn to put pictures where their words are, while the text tower goes
on; scenes come in pairs that differ in their arrangement alone. In the last steps the names of photographs
move apart, too, as far as the pictures ask for it. Killed at any moment, the same command goes on.
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vpt.data.scenes import Scene, captions, is_held_out, scene
from vpt.tasks.starters.clip_evaluate import evaluate
from vpt.tasks.starters.loop import Training
from vpt.tasks.starters.minilm import MiniLM
from vpt.tasks.starters.reading import SCALE, Reader, encode, pair_up, places, start_words, teach, tell_apart
from vpt.tasks.starters.sentences import class_names, collect, emoji_names, flickr_captions, keep_vectors
from vpt.tasks.starters.shards import find_shards, labels_of, pictures
from vpt.tasks.starters.tokens import Front, KeptTokens, Rear, captioned, drawn, labelled
from vpt.towers.starter.clip_mini import clip_mini, clip_mini_tokenizer, owns, shared_weights
from vpt.towers.starter.vit_mini import CLASSES, load_vit_mini

__all__ = ["Recipe", "held_out_emoji", "main", "paired_scenes", "start", "train"]


class Recipe(NamedTuple):
    """What the committed weights were made with."""

    text_steps: int = 550
    text_lr: float = 2e-3
    steps: int = 450
    projection_lr: float = 1e-3
    block_lr: float = 4e-4
    joint_text_lr: float = 1.5e-3
    last_steps: int = 240  # in which the names of photographs move too
    tiny_views: int = 1
    other_views: int = 3  # of emoji and captioned pictures
    scenes: int = 20_000
    seed: int = 0


class Shares(NamedTuple):
    """What one step of joint training sees."""

    tiny: int = 96
    emoji: int = 32
    flickr: int = 32
    scenes: int = 64
    names: int = 160  # read by the text tower as before
    sentences: int = 40


SHARES, TEXT_SHARES = Shares(), Shares(names=160, sentences=64, scenes=48)
LAST_SHARES = Shares(tiny=192, emoji=32, flickr=16, scenes=48, names=64, sentences=16)
NEAR = 4.0  # weight of a photograph's distance to its name, beside which of the names it is
LAST_NEAR, LAST_RATE = 2.0, 0.5  # of the last steps: that weight, and the share of the learning rates
DROPPED = 0.25  # of the patches of photographs
RIDGE = 1e-2  # of the projection's start, of the mean eigenvalue


def start() -> CLIP:
    """clip-mini before training: vit-mini's trunk, a random text tower; only what its file will hold learns."""
    model = clip_mini()
    trunk = load_vit_mini()
    state = model.state_dict()
    state |= {name: t.float() for name, t in shared_weights().items()}
    state |= {
        n: t for n, t in ((f"visual.trunk.{k}", t) for k, t in trunk.state_dict().items()) if n in state
    }
    model.load_state_dict(state)
    for name, p in model.named_parameters():
        p.requires_grad_(owns(name) and name != "logit_scale")
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
    return model.eval()  # no dropout, and the stem's statistics stay


def paired_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes 2i and 2i + 1 show the same shapes; the second turns the arrangement round, where that is allowed."""
    found: list[Scene] = []
    for i in range(0, count, 2):
        one = scene(seed, i)
        turned = one.kind.turned()
        allowed = not is_held_out(turned)
        found += [one, scene(seed, i + 1, kind=turned) if allowed else scene(seed, i + 1)]
    return found


def held_out_emoji(shards: list[Path]) -> np.ndarray:
    """bool [n]: the pictures of the shards that are among the test pictures in vpt/data/emoji."""
    folder = files("vpt.data") / "emoji" / "test"
    tests = [
        f for kind in folder.iterdir() if kind.is_dir() for f in kind.iterdir() if f.name.endswith(".webp")
    ]
    held = set()
    for file in tests:
        with file.open("rb") as stream:
            held.add(Image.open(stream).convert("RGB").tobytes())
    return np.array([picture.tobytes() in held for shard in shards for picture in pictures(shard)])


class Pictures:
    """Kept tokens of the four sets, with their words."""

    def __init__(self, data: Path, out: Path, recipe: Recipe):
        tiny, emoji = find_shards(f"{data}/tiny-imagenet", "train"), find_shards(f"{data}/emoji", "emoji")
        flickr = [s for split in ("train", "extra") for s in find_shards(f"{data}/flickr8k-mini", split)]
        seed, views = recipe.seed, recipe.other_views
        self.scene_list = paired_scenes(recipe.scenes, seed)

        def kept(name: str, chunks: object) -> KeptTokens:
            return KeptTokens(out / "tokens" / name, chunks)  # type: ignore[arg-type]

        self.tiny = kept("tiny", labelled(tiny, seed, recipe.tiny_views))
        self.emoji = kept("emoji", labelled(emoji, seed, views))
        self.flickr = kept("flickr", captioned(flickr, seed, views))
        self.scenes = kept("scenes", drawn(self.scene_list))
        self.labels = np.tile(np.concatenate([labels_of(s, len(CLASSES)) for s in tiny]), recipe.tiny_views)
        self.emoji_words = emoji_names(f"{data}/emoji")
        self.emoji_shown = np.flatnonzero(~held_out_emoji(emoji))
        self.stories = [c for s in ("train", "extra") for c in flickr_captions(f"{data}/flickr8k-mini", s)]
        self.class_names = class_names(data / "tiny-imagenet")

    def keep(self, front: Front, progress: bool) -> None:
        for kept in (self.emoji, self.flickr, self.scenes, self.tiny):
            kept.keep(front, progress)


class Joint:
    """The losses of joint training; of its last steps, when names part for photographs."""

    def __init__(self, model: CLIP, reader: Reader, shown: Pictures, seed: int, *, last: bool = False):
        self.model, self.reader, self.shown, self.seed, self.last = model, reader, shown, seed, last
        self.shares, self.near = (LAST_SHARES, LAST_NEAR) if last else (SHARES, NEAR)
        self.rear = Rear(model)
        encoded: Callable[[str], list[int]] = reader.tokenizer.encode
        self.class_ids = [[encoded(name) for name in names] for names in shown.class_names]
        self.emoji_ids = [[encoded(name) for name in names] for names in shown.emoji_words]
        self.story_ids = [[encoded(story) for story in five] for five in shown.stories]
        self.scene_ids = [[encoded(text) for text in captions(s)] for s in shown.scene_list]

    def __call__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 5, step, self.last])
        terms = {
            "tiny": self._tiny(rng),
            "emoji": 0.5 * self._emoji(rng),
            "flickr": 0.5 * self._flickr(rng),
            "scenes": self._scenes(rng),
        }
        return terms | teach(self.model, self.reader, rng, self.shares.names, self.shares.sentences)

    def _look(self, kept: KeptTokens, index: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """Unit features of kept pictures; with ``rng``, some patches are dropped, the same of all."""
        x = kept.read(index)
        if rng is not None:
            patches = 1 + rng.permutation(x.shape[1] - 1)[: round((1 - DROPPED) * (x.shape[1] - 1))]
            x = x[:, np.concatenate([[0], np.sort(patches)])]
        return F.normalize(self.rear(x), dim=1)

    def _tiny(self, rng: np.random.Generator) -> Tensor:
        """Which of the 200 names; until the last steps, the names stay where the text tower has them."""
        index = rng.integers(len(self.shown.labels), size=self.shares.tiny)
        picked = [n[0] if rng.random() < 0.6 else n[rng.integers(len(n))] for n in self.class_ids]
        with torch.set_grad_enabled(self.last):
            texts = encode(self.model, [self.reader.in_template(ids, rng) for ids in picked])
        found = self._look(self.shown.tiny, index, rng)
        labels = torch.from_numpy(self.shown.labels[index])
        near = (found * texts[labels].detach()).sum(1).mean()
        return F.cross_entropy(SCALE * found @ texts.T, labels, label_smoothing=0.1) + self.near * (1 - near)

    def _emoji(self, rng: np.random.Generator) -> Tensor:
        shown = rng.choice(self.shown.emoji_shown, self.shares.emoji, replace=False)
        words = [self.emoji_ids[i] for i in shown]
        picked = [w[0] if rng.random() < 0.6 else w[rng.integers(len(w))] for w in words]
        with torch.no_grad():
            texts = encode(self.model, [self.reader.in_template(ids, rng) for ids in picked])
        view = rng.integers(len(self.shown.emoji.chunks), size=len(shown))
        found = self._look(self.shown.emoji, shown + view * len(self.emoji_ids))
        same = texts @ texts.T > 0.9
        target = same.float() / same.sum(1, keepdim=True)
        near = (found * texts).sum(1).mean()
        return F.cross_entropy(SCALE * found @ texts.T, target) + self.near * (1 - near)

    def _flickr(self, rng: np.random.Generator) -> Tensor:
        shown = rng.choice(len(self.story_ids), self.shares.flickr, replace=False)
        texts = encode(self.model, [self.story_ids[i][rng.integers(5)] for i in shown])
        view = rng.integers(len(self.shown.flickr) // len(self.story_ids), size=len(shown))
        found = self._look(self.shown.flickr, shown + view * len(self.story_ids), rng)
        return pair_up(found, texts)

    def _scenes(self, rng: np.random.Generator) -> Tensor:
        pairs = 2 * rng.choice(len(self.scene_ids) // 2, self.shares.scenes // 2, replace=False)
        index = np.stack([pairs, pairs + 1], 1).ravel()
        texts = encode(self.model, [self.scene_ids[i][rng.integers(8)] for i in index])
        return pair_up(self._look(self.shown.scenes, index), texts)


@torch.no_grad()
def start_projection(model: CLIP, shown: Pictures, reader: Reader, pictures: int = 6000) -> None:
    """Start the image projection as the ridge regression from class tokens to where the names are."""
    rng = np.random.default_rng([0, 6])
    index = np.sort(rng.choice(len(shown.labels), min(pictures, len(shown.labels)), replace=False))
    trunk = Rear(model)
    trunk.visual = nn.Module()
    trunk.visual.trunk, trunk.visual.head = model.visual.trunk, nn.Identity()
    parts = np.array_split(index, max(1, len(index) // 250))
    x = torch.cat([trunk(shown.tiny.read(part)) for part in parts]).double()
    names = encode(
        model, [reader.tokenizer.encode(f"a photo of a {names[0]}.") for names in shown.class_names]
    )
    y = names[torch.from_numpy(shown.labels[index])].double()
    gram = x.T @ x
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
    model.visual.head.proj.weight.copy_(torch.linalg.solve(gram, x.T @ y).T)


def train(data: Path, out: Path, recipe: Recipe, *, stage: str = "all", progress: bool = True) -> Path | None:
    """Train clip-mini on the sets in ``data``, or go on with what ``out`` holds.

    stage: "text" and "pictures" do one half of what joint training needs, so that two processes can share the
    work; "all" does what is left. Returns ``out/clip-mini.safetensors``, float16 (after "all").
    """
    _same_run(out, recipe)
    torch.manual_seed(recipe.seed)
    model, tokenizer = start(), clip_mini_tokenizer()
    shown = Pictures(data, out, recipe) if stage != "text" else None
    if shown is not None:
        shown.keep(Front(model).to(memory_format=torch.channels_last), progress)
        if stage == "pictures":
            return None
    reader = _learn_to_read(model, tokenizer, data, out, recipe, progress)
    if shown is None:
        return None
    if not (out / "joint.pt").exists():
        start_projection(model, shown, reader)

    def rate(name: str) -> float:
        if name.startswith("visual.head."):
            return recipe.projection_lr
        return recipe.block_lr if name.startswith("visual.") else recipe.joint_text_lr

    joint = Training(model, rate, recipe.steps, out / "joint.pt")
    average = joint.run(Joint(model, reader, shown, recipe.seed), progress)
    model.load_state_dict(average.state_dict())
    last = Training(model, lambda name: LAST_RATE * rate(name), recipe.last_steps, out / "last.pt")
    average = last.run(Joint(model, reader, shown, recipe.seed, last=True), progress)
    return export(average, out / "clip-mini.safetensors", recipe)


def _learn_to_read(
    model: CLIP, tokenizer: SimpleTokenizer, data: Path, out: Path, recipe: Recipe, progress: bool
) -> Reader:
    """The first stage: leaves the averaged text tower in ``model``."""
    teacher = MiniLM()
    corpus = collect(data, teacher.words())
    entries = [tokenizer.decoder[i].replace("</w>", "") or "." for i in range(tokenizer.vocab_size)]
    keep_vectors(corpus, entries, out / "text", teacher)
    reader = Reader(corpus, places(corpus, out / "text"), tokenizer)
    start_words(model, torch.from_numpy(np.load(out / "text" / "entries.npy")).float(), reader.names)
    told = [[tokenizer.encode(c) for c in captions(s)] for s in paired_scenes(recipe.scenes, recipe.seed)]
    image = {n: p for n, p in model.named_parameters() if p.requires_grad and n.startswith("visual.")}
    for p in image.values():
        p.requires_grad_(False)

    def losses(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([recipe.seed, 4, step])
        read = teach(model, reader, rng, TEXT_SHARES.names, TEXT_SHARES.sentences)
        return read | {"scenes": 0.3 * tell_apart(model, told, rng, TEXT_SHARES.scenes)}

    training = Training(model, lambda _: recipe.text_lr, recipe.text_steps, out / "text.pt")
    model.load_state_dict(training.run(losses, progress).state_dict())
    for p in image.values():
        p.requires_grad_(True)
    return reader


def _same_run(out: Path, recipe: Recipe) -> None:
    """Raises ValueError if ``out`` holds a run of another recipe."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "run.json"
    held = json.loads(file.read_text()) if file.exists() else recipe._asdict()
    for key, value in recipe._asdict().items():
        if held.get(key) != value:
            raise ValueError(
                f"{out} holds a run with {key} = {held.get(key)!r}, this one has {value!r}. Give another "
                "--out, or remove that folder."
            )
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(held, indent=1))
    os.replace(part, file)


def export(model: nn.Module, file: Path, recipe: Recipe) -> Path:
    """What vit-mini's file does not hold, as float16."""
    halves = {n: t.half().contiguous() for n, t in model.state_dict().items() if owns(n)}
    part = file.with_suffix(".part")
    save_file(halves, part, {"clip-mini": json.dumps({"size": 96, **recipe._asdict()})})
    os.replace(part, file)
    return file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Train clip-mini, or measure it.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of tiny-imagenet, emoji, flickr8k-mini, caltech101"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the run; the same command goes on where it stopped"
    )
    parser.add_argument("--stage", choices=("all", "text", "pictures"), default="all", help="see train()")
    for name, value in Recipe()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--evaluate", action="store_true", help="measure, train nothing")
    parser.add_argument("--weights", type=Path, help="with --evaluate: a file in place of the package's")
    a = parser.parse_args(arguments)
    if a.evaluate:
        for line in evaluate(a.data, a.weights):
            print(line, flush=True)
    elif a.out is None:
        parser.error("--out is missing: give a folder for the run, or --evaluate.")
    else:
        recipe = Recipe(**{name: getattr(a, name) for name in Recipe._fields})
        print(train(a.data, a.out, recipe, stage=a.stage))


if __name__ == "__main__":
    main()
