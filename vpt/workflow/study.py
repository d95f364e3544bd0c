"""One comparison made ready for a page: pictures of its results, and its prompt file tried in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpt.data.images import decode
from vpt.data.module import ImageData
from vpt.data.sources import open_source
from vpt.header import read_header
from vpt.tasks.tuned import Evaluation, Tuned, load_prompts
from vpt.towers.backbone import Backbone
from vpt.workflow import plots
from vpt.workflow.attention_map import attention, upsample
from vpt.workflow.compare import Result
from vpt.workflow.report import Chapter, Fresh, Picture

__all__ = ["Study"]

SHOWN = 12  # test pictures in the grid, drawn at random
LOOKED = 4  # the first of them, with attention maps
NAMED = 6  # the first of them, named by a fresh process
SAME = 1e-5  # probabilities of two processes on one machine differ by less


@dataclass(frozen=True)
class Study:
    """Results on one data set.

    data: options of ImageData without the seed.  base: the line that others are measured against.  method: whose
    prompt file, of the first seed, is looked at.
    """

    title: str
    backbone: Backbone
    data: Mapping[str, Any]
    results: Sequence[Result]
    out: Path
    base: str
    method: str = "vpt-deep"
    device: str = "auto"
    credits: str = ""

    @cached_property
    def run(self) -> Result:
        """The run whose file is looked at."""
        return next(r for r in self.results if r.method == self.method)

    @cached_property
    def tuned(self) -> Tuned:
        """Its file, read back from disk."""
        return load_prompts(self.run.file, self.backbone, device=self.device)

    @cached_property
    def module(self) -> ImageData:
        """The pictures of that run, in its splits."""
        module = ImageData(**{**self.data, "seed": self.run.seed})
        module.bind(self.backbone.preprocessing)
        module.setup()
        return module

    @cached_property
    def found(self) -> Evaluation:
        """What the file says of the test split. Raises RuntimeError where it is not what training measured."""
        found = self.tuned.evaluate(self.module.test_dataloader())
        if abs(found.metrics["top1"] - self.run.metrics["top1"]) > 1e-9:
            raise RuntimeError(
                f"{self.run.file} was measured at {self.run.metrics['top1']:.4f} after training and gives "
                f"{found.metrics['top1']:.4f} when it is read back. Delete {self.out} and run again."
            )
        return found

    @cached_property
    def sample(self) -> list[int]:
        """Places in the test split, drawn at random."""
        order = torch.randperm(len(self.found.labels), generator=torch.Generator().manual_seed(self.run.seed))
        return order[:SHOWN].tolist()

    @cached_property
    def shown(self) -> list[plots.Shown]:
        """These pictures with what was said of them."""
        source, items = open_source(self.data["path"]), self.module.pictures("test").items
        shown = []
        for i in self.sample:
            best = int(self.found.scores[i].argmax())
            truth, said = self.tuned.classes[int(self.found.labels[i])], self.tuned.classes[best]
            picture = decode(source.read(items[i]), items[i].key)
            shown.append(plots.Shown(picture, truth, said, float(self.found.scores[i, best])))
        return shown

    def ask(self) -> tuple[list[str], subprocess.Popen[str]]:
        """Save some test pictures as files and start a process that names them; it knows the prompt file alone."""
        folder = self.out / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for i, s in enumerate(self.shown[:NAMED], 1):
            files.append(str(folder / f"{i}.png"))
            s.picture.save(files[-1])
        command = ["-m", "vpt", "predict", self.run.file, *files, "--json", "--device", self.device]
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, *command], stdout=pipe, stderr=pipe, text=True)
        return files, process

    def answer(self, files: Sequence[str], process: subprocess.Popen[str]) -> tuple[list[Fresh], float]:
        """What the process said, and the largest difference of a probability to this process.

        Raises RuntimeError where it failed or where it names a picture otherwise.
        """
        said, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the fresh process failed on {self.run.file}: {error.strip()[-2000:]}")
        theirs, ours = json.loads(said), self.tuned.predict(files, top=1)
        gap = max(abs(a["probability"] - b.probability) for a, b in zip(theirs, ours, strict=True))
        if gap > SAME or any(a["label"] != b.label for a, b in zip(theirs, ours, strict=True)):
            raise RuntimeError(
                f"a fresh process reads {self.run.file} otherwise than this one: {[a['label'] for a in theirs]} "
                f"there, {[b.label for b in ours]} here, probabilities differ by up to {gap:.1e}."
            )
        fresh = [
            Fresh(Path(f).read_bytes(), s.truth, a["label"], a["probability"])
            for f, s, a in zip(files, self.shown, theirs, strict=False)
        ]
        return fresh, gap

    def chapter(self, pictures: Sequence[Picture], fresh: Sequence[Fresh], gap: float) -> Chapter:
        """All of it, for the page."""
        return Chapter(
            self.title,
            self.protocol,
            self.results,
            self.base,
            pictures,
            fresh,
            f"python -m vpt predict {self.run.file} {self.out / 'pictures'}/*.png --json",
            gap,
            self.credits,
        )

    @property
    def protocol(self) -> str:
        """How the numbers came about, in a sentence."""
        p, counts = self.run.protocol, self.run.protocol["counts"]
        seeds = sorted({r.seed for r in self.results})
        splits = {r.seed: r.protocol["split"] for r in self.results}
        return (
            f"{p['data']}, {p['classes']} classes: {p['shots']} pictures a class train ({counts['train']} in all), "
            f"{counts['val']} are for validation, {counts['test']} for the test ({p['origin']['test']}); within a seed "
            "they are the same for all methods. "
            f"Seeds {', '.join(map(str, seeds))} (splits {', '.join(splits[s] for s in seeds)}). "
            f"Views: {'as for evaluation' if p['augment'] == 'none' else p['augment']}. "
            f"What counts is the {p['selection']}; nothing was chosen on the test split."
        )

    def draw(self) -> list[Picture]:
        """The pictures of the page."""
        name = self.run.name
        named = f"{name}, seed {self.run.seed}"
        means = {r.name: 0.0 for r in self.results}
        accuracy = {n: [100 * r.metrics["top1"] for r in self.results if r.name == n] for n in means}
        told = ", ".join(f"{n} {np.mean(v):.1f} %" for n, v in accuracy.items())
        counts = self.found.confusion
        assert counts is not None
        right = sum(s.predicted == s.truth for s in self.shown)
        history = self._histories()
        ends = ", ".join(f"{n} {np.mean([run[-1] for run in runs]):.1f} %" for n, runs in history.items())
        drawings = [
            ("accuracy", partial(plots.accuracies, accuracy, self.base), f"Test accuracy: {told}.",
             "Each ring is a seed, the bar their mean."),
            ("curves", partial(plots.curves, history), f"Validation accuracy by epoch; at the end {ends}.",
             f"Learning curves, mean over seeds, on {self.run.protocol['counts']['val']} validation pictures."),
            ("confusion", partial(plots.confusion, counts.numpy(), self.tuned.classes),
             f"Confusion matrix: {int(counts.trace())} of {int(counts.sum())} test pictures lie on the diagonal.",
             f"Which classes are mixed up, {named}; numbers are test pictures."),
            ("predictions", partial(plots.predictions, self.shown),
             "; ".join(f"a {s.truth} called {s.predicted}" for s in self.shown) + ".",
             f"{len(self.shown)} test pictures drawn at random, {right} of them named rightly, {named}."),
            self._attention(named),
        ]  # fmt: skip
        return [Picture(n, alt, caption, *plots.render(draw)) for n, draw, alt, caption in drawings]

    def _histories(self) -> dict[str, list[list[float]]]:
        """Val accuracy after each epoch, by method, one list a seed; of what was trained by epochs."""
        found: dict[str, list[list[float]]] = {}
        for r in self.results:
            history = (read_header(r.file).about.get("train") or {}).get("history") or []
            if history:
                found.setdefault(r.name, []).append([100 * row["val/top1"] for row in history])
        return found

    def _attention(self, named: str) -> tuple[str, Any, str, str]:
        """What the class token and the rows look at in the last two blocks."""
        tower, rows = self.tuned.tower, self.tuned.rows
        preprocess = self.backbone.preprocess
        x = torch.stack([preprocess(s.picture) for s in self.shown[:LOOKED]]).to(tower.device)
        blocks = [attention(tower, x, rows, stage) for stage in range(max(tower.depth - 2, 0), tower.depth)]
        size = (x.shape[-2], x.shape[-1])
        maps = []
        for i, block in enumerate(blocks, tower.depth - len(blocks) + 1):
            maps.append((f"block {i}\nclass token", upsample(block.of_class(), size).cpu().numpy()))
            maps.append((f"block {i}\nrows", upsample(block.of_rows(), size).cpu().numpy()))
        share = float(blocks[-1].to_rows().mean())
        even = len(blocks[-1].rows) / blocks[-1].weights.shape[-1]
        notes = [f"to rows: {100 * v:.0f} %" for v in blocks[-1].to_rows().tolist()]
        return (
            "attention",
            partial(plots.glances, list(self._pixels(x)), maps, notes, len(maps) - 1),
            f"Attention maps of {len(x)} test pictures in the last {len(blocks)} blocks.",
            f"What is looked at, {named}: bright patches get most of the attention of the class token, which the "
            "head reads, or of the rows (mean over heads and rows). In the last block the class token gives "
            f"{100 * share:.0f} % of its attention to the {len(blocks[-1].rows)} rows; spread evenly it would be "
            f"{100 * even:.0f} %." + _fleeting(rows),
        )

    def _pixels(self, x: Tensor) -> np.ndarray:
        """Network inputs [batch, 3, height, width] as pictures [batch, height, width, 3] in 0..1."""
        mean, std = (torch.tensor(self.backbone.preprocessing[k])[:, None, None] for k in ("mean", "std"))
        return (x.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _fleeting(rows: Mapping[Any, Tensor]) -> str:
    """What the maps of rows mean where the next block overwrites them."""
    if len(rows) < 2:
        return ""
    return (
        " VPT-deep replaces the rows before every block, so what a row gathers is never read; its map shows which "
        "patches its query resembles, and it acts through being looked at."
    )
