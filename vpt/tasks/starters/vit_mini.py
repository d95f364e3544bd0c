"""Pretrains vit-mini on tiny-imagenet, and measures the committed weights.

    python -m vpt.tasks.starters.vit_mini --data DIR --out DIR --epochs 10 --views 2
    python -m vpt.tasks.starters.vit_mini --evaluate --data DIR

The stem is frozen, so a few views of every picture pass it once and are kept on disk; the blocks learn from
kept views, which are mixed (mixup of maps, arXiv 1710.09412) once every view has been seen. The loss is
cross-entropy on the names plus the KL divergence to EfficientNet-lite0's 1,000 classes: that teacher is weak
on enlarged 64 px pictures, but it spreads the features beyond the 200 names. Killed at any moment, the same
command goes on and ends in the same weights (on one machine, with the same number of threads).
"""

import argparse
import hashlib
import json
import math
import os
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics.functional.classification import multiclass_accuracy

from vpt.tasks.starters.kept import WHOLE, Kept
from vpt.tasks.starters.lite0 import load_lite0
from vpt.tasks.starters.muon import Muon
from vpt.tasks.starters.shards import find_shards, labels_of, pictures
from vpt.towers.starter.vit_mini import CLASSES, load_vit_mini, vit_mini

__all__ = ["Recipe", "evaluate", "main", "pretrain"]

STEM = "patch_embed.backbone."
PATCH_DROP, SMOOTHING, MIXUP = 0.2, 0.1, 0.3
DISTILL, TEMPERATURE = 0.5, 2.0  # weight of the teacher's term
WARM_UP = 200  # steps; then the learning rate follows a cosine to 0
AVERAGE = 0.998  # decay of the average of the weights, from a faster start


class Recipe(NamedTuple):
    """What the committed weights were made with."""

    epochs: int = 10
    views: int = 2
    batch: int = 256
    lr: float = 2e-3  # of Muon and AdamW alike
    seed: int = 0


class Batch(NamedTuple):
    step: int  # since the start of training: seeds what is random in the step
    mixed: bool
    maps: Tensor  # [B, 112, 6, 6]
    logits: Tensor  # [B, 1000], the teacher's
    labels: Tensor  # [B]


class Epoch:
    """The batches of one epoch, in an order of its own."""

    def __init__(self, kept: Kept, recipe: Recipe, epoch: int):
        self.kept, self.recipe, self.epoch = kept, recipe, epoch
        self.order = np.random.default_rng([recipe.seed, 0, epoch]).permutation(len(kept))

    def __len__(self) -> int:
        return len(self.kept) // self.recipe.batch

    def __getitem__(self, i: int) -> Batch:
        if i >= len(self):
            raise IndexError(i)
        index = self.order[i * self.recipe.batch : (i + 1) * self.recipe.batch]
        maps, logits, labels = self.kept.read(self.epoch % self.recipe.views, index)
        return Batch(self.epoch * len(self) + i, self.epoch >= self.recipe.views, maps, logits, labels)


class WholePictures:
    """A split in order, 500 pictures at a time: maps, the teacher's logits, labels."""

    def __init__(self, kept: Kept):
        self.kept = kept
        self.index = np.array_split(np.arange(len(kept)), math.ceil(len(kept) / 500))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.kept.read(WHOLE, self.index[i])


class KeptViews(L.LightningDataModule):
    """Trains on kept views, one an epoch in turn; a view is computed when its first epoch begins."""

    def __init__(self, train: Kept, val: Kept, teacher: EfficientNet, recipe: Recipe, progress: bool):
        super().__init__()
        self.train, self.val, self.teacher, self.recipe, self.progress = train, val, teacher, recipe, progress

    def train_dataloader(self) -> Epoch:
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        self.train.keep(epoch % self.recipe.views, self.teacher, self.progress)
        return Epoch(self.train, self.recipe, epoch)

    def val_dataloader(self) -> WholePictures:
        return WholePictures(self.val)


class Pretraining(L.LightningModule):
    """The transformer above the stem, its average, and a second head for the teacher's classes.

    sample: [N, 112, 6, 6], maps from which the projection starts. Writes ``checkpoint`` after every epoch.
    """

    def __init__(self, recipe: Recipe, steps: int, sample: Tensor, checkpoint: Path):
        super().__init__()
        self.automatic_optimization = False  # two optimisers take every step together
        self.recipe, self.steps, self.checkpoint = recipe, steps, checkpoint
        self.model = vit_mini(patch_drop_rate=PATCH_DROP)
        self.model.patch_embed.backbone = nn.Identity()  # batches are what the stem made of pictures
        projection = self.model.patch_embed.proj
        assert isinstance(projection, nn.Conv2d)
        _standardise(projection, sample)
        self.teacher_head = nn.Linear(self.model.embed_dim, 1000)
        self.average = AveragedModel(self.model, avg_fn=_average)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        matrices: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, p in [*self.model.named_parameters(), *self.teacher_head.named_parameters()]:
            if p.ndim == 2 and name.startswith("blocks."):
                matrices.append(p)
            else:  # the class token and the positions are [1, n, D]: no decay
                (decayed if p.ndim >= 2 and len(p) > 1 else free).append(p)
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
        lr = self.recipe.lr
        return [Muon(matrices, lr=lr), torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]

    def loss(self, batch: Batch) -> Tensor:
        rng = np.random.default_rng([self.recipe.seed, 1, batch.step])
        torch.manual_seed(int(rng.integers(2**63)))  # of patch dropout: a resumed run drops the same patches
        maps, targets = batch.maps, F.one_hot(batch.labels, len(CLASSES)).float()
        soft = F.softmax(batch.logits / TEMPERATURE, 1)
        if batch.mixed:
            share, other = float(rng.beta(MIXUP, MIXUP)), torch.from_numpy(rng.permutation(len(maps)))
            maps, targets, soft = (share * t + (1 - share) * t[other] for t in (maps, targets, soft))
        pooled = self.model.forward_head(self.model.forward_features(maps), pre_logits=True)
        named = F.cross_entropy(self.model.head(pooled), targets, label_smoothing=SMOOTHING)
        ours = F.log_softmax(self.teacher_head(pooled) / TEMPERATURE, 1)
        return named + DISTILL * TEMPERATURE**2 * F.kl_div(ours, soft, reduction="batchmean")

    def training_step(self, batch: Batch) -> None:
        loss = self.loss(batch)
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {batch.step}. {self.checkpoint} holds the epoch before: "
                f"start again in another folder with --lr below {self.recipe.lr}."
            )
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr * _rate(batch.step, self.steps)
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.maps))

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        maps, _, labels = batch
        self.log_dict(_accuracy(self.average(maps), labels), prog_bar=True, batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        top1, top5 = (float(self.trainer.callback_metrics[name]) for name in ("top1", "top5"))
        self.print(f"epoch {self.current_epoch}: top-1 {top1:.2%}, top-5 {top5:.2%}")

    def on_train_epoch_end(self) -> None:
        self.trainer.save_checkpoint(self.checkpoint)


def _standardise(projection: nn.Conv2d, maps: Tensor) -> None:
    """Start the projection [D, 112, 1, 1] as if the stem's channels had mean 0 and variance 1."""
    channels = maps.transpose(0, 1).flatten(1)
    mean, std = channels.mean(1), channels.std(1) + 1e-3
    width = projection.weight.shape[0]
    weight = torch.randn(width, len(channels)) * 0.5 * len(channels) ** -0.5 / std
    with torch.no_grad():
        projection.weight.copy_(weight[..., None, None])
        projection.bias.copy_(-weight @ mean)  # type: ignore[union-attr]


def _average(average: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
    return average.lerp(new, 1 - min(AVERAGE, (int(steps) + 1) / (int(steps) + 10)))


def _rate(step: int, steps: int) -> float:
    return min(1, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _accuracy(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {
        f"top{k}": multiclass_accuracy(logits, labels, len(CLASSES), top_k=k, average="micro") for k in (1, 5)
    }


def pretrain(
    data: str,
    out: Path,
    recipe: Recipe | None = None,
    *,
    teacher: EfficientNet | None = None,
    progress: bool = True,
) -> Path:
    """Train vit-mini on the shards of ``data`` (``find_shards``), or go on with what ``out`` holds.

    teacher: timm's tf_efficientnet_lite0; by default with its package's weights (``load_lite0``).
    Returns ``out/vit-mini.safetensors``, float16. Raises ValueError if ``out`` holds another run, and what
    ``find_shards``, ``Kept`` and ``load_lite0`` raise, all before any long work.
    """
    recipe = recipe or Recipe()
    if min(recipe.epochs, recipe.views, recipe.batch) < 1 or recipe.lr <= 0:
        raise ValueError(f"{recipe} has a number below 1, or no learning rate: give positive numbers.")
    train, val = find_shards(data, "train"), find_shards(data, "val")
    teacher = load_lite0() if teacher is None else teacher.eval()
    run = {
        **recipe._asdict(),
        **{f"shard {shard.name}": hashlib.sha256(shard.read_bytes()).hexdigest() for shard in train + val},
        "teacher": _digest(teacher),
    }
    _same_run(out / "run.json", run)
    kept = Kept(out / "kept" / "train", train, classes=len(CLASSES), views=recipe.views, seed=recipe.seed)
    kept_val = Kept(out / "kept" / "val", val, classes=len(CLASSES), views=1, seed=recipe.seed)
    if len(kept) < recipe.batch:
        raise ValueError(
            f"{data} has {len(kept)} training pictures, a batch takes {recipe.batch}: lower --batch."
        )
    _replace(out / "run.json", lambda part: part.write_text(json.dumps(run, indent=1)))

    teacher.to("cuda" if torch.cuda.is_available() else "cpu").to(memory_format=torch.channels_last)
    kept_val.keep(WHOLE, teacher, progress)
    kept.keep(0, teacher, progress)
    checkpoint = out / "last.ckpt"
    torch.manual_seed(recipe.seed)
    sample = kept.read(0, np.arange(min(2000, len(kept))))[0]
    module = Pretraining(recipe, recipe.epochs * (len(kept) // recipe.batch), sample, checkpoint)
    trainer = L.Trainer(
        max_epochs=recipe.epochs,
        devices=1,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
    )
    views = KeptViews(kept, kept_val, teacher, recipe, progress)
    trainer.fit(module, datamodule=views, ckpt_path=checkpoint if checkpoint.exists() else None)
    return _export(module.average.module, teacher, out / "vit-mini.safetensors", recipe)


def _digest(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _same_run(file: Path, run: dict[str, object]) -> None:
    if not file.exists():
        return
    held = json.loads(file.read_text())
    for key in held | run:
        if held.get(key) != run.get(key):
            raise ValueError(
                f"{file.parent} holds a run with {key} = {held.get(key)!r}, this one has {run.get(key)!r}. "
                "Give another --out, or remove that folder."
            )


def _export(model: nn.Module, teacher: EfficientNet, file: Path, recipe: Recipe) -> Path:
    """The average and the stem under it as float16; without BatchNorm's counters, which inference ignores."""
    stem = vit_mini().patch_embed.backbone.state_dict()
    whole = model.state_dict() | {STEM + key: teacher.state_dict()[key] for key in stem}
    halves = {key: t.half().contiguous().cpu() for key, t in whole.items() if t.is_floating_point()}
    metadata = {"vit-mini": json.dumps({"size": 96, **recipe._asdict()})}
    _replace(file, lambda part: save_file(halves, part, metadata))
    return file


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    part = file.with_name(file.name + ".part")
    write(part)
    os.replace(part, file)


@torch.inference_mode()
def evaluate(data: str, weights: Path | None = None, *, progress: bool = True) -> tuple[float, float]:
    """Top-1 and top-5 of vit-mini on the val shards of ``data``, pictures prepared as its configuration says.

    weights: a file that ``pretrain`` wrote; by default those of the package.
    """
    shards = find_shards(data, "val")
    labels = torch.from_numpy(np.concatenate([labels_of(shard, len(CLASSES)) for shard in shards]))
    if weights is None:
        model = load_vit_mini()
    else:
        model = vit_mini(pretrained=True, pretrained_cfg_overlay={"file": str(weights)}).eval()
    prepare = create_transform(**resolve_data_config(model.pretrained_cfg))
    stream = iter(track(chain.from_iterable(map(pictures, shards)), total=len(labels), disable=not progress))
    logits = []
    while chunk := [prepare(picture) for picture in islice(stream, 200)]:
        logits.append(model(torch.stack(chunk)))
    accuracy = _accuracy(torch.cat(logits), labels)
    return accuracy["top1"].item(), accuracy["top5"].item()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Pretrain vit-mini, or measure it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    recipe = Recipe()
    parser.add_argument(
        "--data", required=True, help="folder of train-*.tar and val-*.tar, or a pattern with {split}"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the run; the same command goes on where it stopped"
    )
    parser.add_argument("--epochs", type=int, default=recipe.epochs)
    parser.add_argument("--views", type=int, default=recipe.views, help="kept views of every picture")
    parser.add_argument("--batch", type=int, default=recipe.batch)
    parser.add_argument("--lr", type=float, default=recipe.lr)
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--evaluate", action="store_true", help="measure on the val shards, train nothing")
    parser.add_argument(
        "--weights", type=Path, help="with --evaluate: a trained file in place of the package's"
    )
    a = parser.parse_args(arguments)
    if a.evaluate:
        top1, top5 = evaluate(a.data, a.weights)
        print(f"top-1 {top1:.2%}, top-5 {top5:.2%}")
    elif a.out is None:
        parser.error("--out is missing: give a folder for the run, or --evaluate.")
    else:
        print(pretrain(a.data, a.out, Recipe(a.epochs, a.views, a.batch, a.lr, a.seed)))


if __name__ == "__main__":
    main()
