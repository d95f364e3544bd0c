"""What clip-mini knows, in numbers: names it saw, names it did not, captions, scenes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from vpt.data.scenes import captions, draw, kinds, scene
from vpt.tasks.starters.reading import ENSEMBLE
from vpt.tasks.starters.sentences import flickr_captions
from vpt.tasks.starters.shards import find_shards, labels_of, pictures
from vpt.towers.starter.clip_mini import PREPROCESSING, load_clip_mini

__all__ = ["class_features", "evaluate", "image_features", "recall", "text_features"]

BATCH = 128
SCENES, SCENE_SEED = 100, 1_000_003  # of held-out scenes; training draws from seed 0


@torch.inference_mode()
def image_features(model: CLIP, stream: Iterable[Image.Image]) -> Tensor:
    """Unit features [n, 384] of pictures, prepared as the model's configuration says."""
    prepare = create_transform(**PREPROCESSING, is_training=False)
    prepared = map(prepare, stream)
    found = []
    while batch := list(islice(prepared, BATCH)):
        found.append(model.encode_image(torch.stack(batch), normalize=True))
    return torch.cat(found)


@torch.inference_mode()
def text_features(model: CLIP, tokenizer: SimpleTokenizer, texts: Sequence[str]) -> Tensor:
    """Unit features [n, 384] of sentences."""
    parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    return torch.cat([model.encode_text(tokenizer(list(part)), normalize=True) for part in parts])


def class_features(
    model: CLIP, tokenizer: SimpleTokenizer, names: Sequence[str], templates: Sequence[str] = ENSEMBLE
) -> Tensor:
    """One unit vector a name [n, 384]: the mean over templates."""
    texts = [template.format(name) for template in templates for name in names]
    features = text_features(model, tokenizer, texts).view(len(templates), len(names), -1)
    return F.normalize(features.mean(0), dim=1)


def recall(similarity: Tensor, right: Tensor, k: int = 1) -> float:
    """Share of the rows [n, m] that have one of their ``right`` columns (bool [n, m]) among the best k."""
    return right.gather(1, similarity.topk(k, 1).indices).any(1).float().mean().item()


def _shown(folder: Path, split: str) -> Iterator[Image.Image]:
    for shard in find_shards(str(folder), split):
        yield from pictures(shard)


def _named(folder: Path, split: str) -> tuple[list[dict], Tensor]:
    classes = json.loads((folder / "classes.json").read_text("utf-8"))
    labels = [torch.from_numpy(labels_of(s, len(classes))) for s in find_shards(str(folder), split)]
    return classes, torch.cat(labels)


def evaluate(data: Path, weights: Path | None = None) -> Iterator[str]:
    """Measure clip-mini, or ``weights``, on the sets in ``data``; yields lines of text."""
    model, tokenizer, _ = load_clip_mini(weights)
    yield from _scenes(model, tokenizer)
    yield from _emoji(model, tokenizer)
    yield from _flickr(model, tokenizer, data / "flickr8k-mini")
    yield from _caltech(model, tokenizer, data / "caltech101", data / "tiny-imagenet")
    yield from _tiny(model, tokenizer, data / "tiny-imagenet")


def _tiny(model: CLIP, tokenizer: SimpleTokenizer, folder: Path) -> Iterator[str]:
    classes, labels = _named(folder, "val")
    found = image_features(model, _shown(folder, "val"))
    names = [c["name"] for c in classes]
    for what, templates in (("7 templates", ENSEMBLE), ("a photo of a {}.", ("a photo of a {}.",))):
        similarity = found @ class_features(model, tokenizer, names, templates).T
        right = F.one_hot(labels, len(names)).bool()
        top1, top5 = recall(similarity, right), recall(similarity, right, 5)
        yield f"tiny-imagenet val, 200 names seen in training, {what}: top-1 {top1:.2%}, top-5 {top5:.2%}"


def _caltech(model: CLIP, tokenizer: SimpleTokenizer, folder: Path, tiny: Path) -> Iterator[str]:
    classes, labels = _named(folder, "test")
    seen_names = {n.lower() for c in _named(tiny, "val")[0] for n in (c["name"], *c["names"])}
    seen = torch.tensor([any(n.lower() in seen_names for n in (c["name"], *c["names"])) for c in classes])
    found = image_features(model, _shown(folder, "test"))
    similarity = found @ class_features(model, tokenizer, [c["name"] for c in classes]).T
    right = F.one_hot(labels, len(classes)).bool()
    yield f"caltech101 test, all {len(classes)} names: top-1 {recall(similarity, right):.2%}"
    for what, mine in (("seen", seen), ("unseen", ~seen)):
        rows = mine[labels]
        among_all = recall(similarity[rows], right[rows])
        among_own = recall(similarity[rows][:, mine], right[rows][:, mine])
        yield (
            f"caltech101 test, pictures of the {int(mine.sum())} names that tiny-imagenet "
            f"{'has' if what == 'seen' else 'lacks'} ({int(rows.sum())}): top-1 among those names {among_own:.2%}, "
            f"among all {among_all:.2%}"
        )


def _scenes(model: CLIP, tokenizer: SimpleTokenizer) -> Iterator[str]:
    chosen = kinds(held_out=True)[:SCENES]
    shown = [scene(SCENE_SEED, i, kind=kind) for i, kind in enumerate(chosen)]
    found = image_features(model, (draw(s) for s in shown))
    told = text_features(model, tokenizer, [text for s in shown for text in captions(s)])
    similarity = found @ told.T
    right = torch.eye(SCENES).repeat_interleave(8, 1).bool()
    to_text, to_image = recall(similarity, right), recall(similarity.T, right.T)
    yield f"scenes, {SCENES} held out: recall@1 of their 8 captions {to_text:.2%}, of the picture {to_image:.2%}"
    turned = [k.turned() for k in chosen]
    pair = text_features(model, tokenizer, [str(k) for k in (*chosen, *turned)]).view(2, SCENES, -1)
    better = ((found * pair[0]).sum(1) > (found * pair[1]).sum(1)).float().mean()
    yield f"scenes, right caption before the same one with the relation turned round: {better:.2%}"


def _emoji(model: CLIP, tokenizer: SimpleTokenizer) -> Iterator[str]:
    folder = files("vpt.data") / "emoji" / "test"
    found = sorted(
        (f for kind in folder.iterdir() if kind.is_dir() for f in kind.iterdir()), key=lambda f: f.name
    )
    shown = [f for f in found if f.name.endswith(".webp")]
    names = [f.name.removesuffix(".webp").replace("-", " ") for f in shown]
    seen = image_features(model, (Image.open(f.open("rb")).convert("RGB") for f in shown))
    similarity = seen @ class_features(model, tokenizer, names, ("an emoji of {}.", "{}")).T
    right = torch.eye(len(names)).bool()
    top1, top5 = recall(similarity, right), recall(similarity, right, 5)
    yield f"emoji, {len(names)} held-out pictures and their names: top-1 {top1:.2%}, top-5 {top5:.2%}"


def _flickr(model: CLIP, tokenizer: SimpleTokenizer, folder: Path) -> Iterator[str]:
    told = flickr_captions(str(folder), "test")
    found = image_features(model, _shown(folder, "test"))
    similarity = found @ text_features(model, tokenizer, [c for five in told for c in five]).T
    right = torch.eye(len(told)).repeat_interleave(5, 1).bool()
    for what, s, r in (("to captions", similarity, right), ("to pictures", similarity.T, right.T)):
        at = ", ".join(f"recall@{k} {recall(s, r, k):.2%}" for k in (1, 5, 10))
        yield f"flickr8k-mini test, {len(told)} pictures, {what}: {at}"
