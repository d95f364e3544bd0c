"""How clip-mini's text tower learns to read: it reproduces the teacher's space, whatever stands around a name."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor

from vpt.tasks.starters.sentences import Corpus

__all__ = [
    "ENSEMBLE",
    "SCALE",
    "TEMPLATES",
    "Reader",
    "encode",
    "pair_up",
    "places",
    "start_words",
    "teach",
    "tell_apart",
]

ENSEMBLE = tuple(
    template("{}") for template in SIMPLE_IMAGENET_TEMPLATES
)  # the seven that CLIP's authors chose
TEMPLATES = (
    *(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
    *("{}", "{}.", "a {}.", "the {}.", "an emoji of {}.", "an icon of a {}.", "a picture of a {}."),
    *("a photo of a {}, a type of animal.", "a photo of a {}, a type of object.", "{} texture."),
    *("a photo of the {}, seen from the side.", "a centered satellite photo of {}.", "an image of one {}."),
)
BARE = 0.3  # of the names stand alone
FILLED = 0.15  # of the names stand behind, before or between words that say nothing, as learned rows do
FILL = 16  # of such words at most
COMMON = 4000  # ids below this are common words
LONGEST = 48  # tokens that are read in training
TOGETHER = 128  # sentences of like length in one pass
SCALE = 20.0  # of cosines, before every softmax; the model keeps it as its logit scale
MEANING = 0.5  # weight of what a name means beside the name itself


class Reader:
    """Names in templates, and sentences, as ids with the vectors that they should have."""

    def __init__(self, corpus: Corpus, places: tuple[Tensor, Tensor], tokenizer: SimpleTokenizer):
        self.names, self.sentences = places  # [n, 384] and [m, 384], rows of length 1
        self.tokenizer = tokenizer
        self.name_ids = [tokenizer.encode(name) for name in corpus.names]
        self.sentence_ids = [tokenizer.encode(sentence) for sentence in corpus.sentences]
        self.share = corpus.weights / corpus.weights.sum()
        self.templates = [self._halves(template) for template in TEMPLATES]
        self.bare = self._halves("{}"), self._halves("{}.")
        words = [i for word, i in tokenizer.encoder.items() if word.endswith("</w>") and word[:-4].isalpha()]
        self.fillers = np.array([i for i in words if i < COMMON])

    def _halves(self, template: str) -> tuple[list[int], list[int]]:
        before, _, after = template.partition("{}")
        return self.tokenizer.encode(before), self.tokenizer.encode(after)

    def in_template(self, name: list[int], rng: np.random.Generator) -> list[int]:
        """The ids of a name within a template or among words that say nothing."""
        if rng.random() < FILLED:
            before, after = ([], [])
            fill = [int(i) for i in rng.choice(self.fillers, rng.integers(1, FILL + 1))]
            cut = int(rng.choice([len(fill), len(fill) // 2, 0], p=[0.7, 0.15, 0.15]))
            before, after = fill[:cut], [*fill[cut:], *self.bare[1][1]]
        elif rng.random() < BARE:
            before, after = self.bare[rng.integers(2)]
        else:
            before, after = self.templates[rng.integers(len(self.templates))]
        return [*before, *name, *after]

    def batch(self, rng: np.random.Generator, names: int, sentences: int) -> tuple[list[list[int]], Tensor]:
        """Ids without start and end, and the vectors they should have."""
        which = rng.choice(len(self.share), names, p=self.share)
        others = rng.integers(len(self.sentence_ids), size=sentences)
        ids = [self.in_template(self.name_ids[i], rng) for i in which]
        return ids + [self.sentence_ids[i] for i in others], torch.cat(
            [self.names[which], self.sentences[others]]
        )


def encode(model: CLIP, ids: Sequence[list[int]]) -> Tensor:
    """Unit features [n, 384] of sentences without start and end; those of like length pass together, cut short."""
    start, end = model.vocab_size - 2, model.vocab_size - 1
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    features = []
    for at in range(0, len(order), TOGETHER):
        rows = [[start, *ids[i][: LONGEST - 2], end] for i in order[at : at + TOGETHER]]
        longest = max(map(len, rows))
        x = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        x = x.to(model.positional_embedding.device)
        h = model.token_embedding(x) + model.positional_embedding[:longest]
        h = model.transformer(h, attn_mask=model.attn_mask[:longest, :longest])
        h = model.ln_final(h[torch.arange(len(rows)), x.argmax(1)]) @ model.text_projection
        features.append(F.normalize(h, dim=1))
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(features)[back]


def places(corpus: Corpus, folder: Path) -> tuple[Tensor, Tensor]:
    """Where names and sentences should lie: [n, 384] and [m, 384], rows of length 1.

    What all names, all definitions or all captions have in common is taken away, so a template moves nothing. A
    name lies between the teacher's vectors of the name, of the name in a template, and (less) of what it means.
    """
    vectors = {what: _rows(folder / f"{what}.npy") for what in ("names", "photos", "sentences")}
    weights = torch.from_numpy(corpus.weights).float()[:, None]
    meant = _centred(vectors["sentences"][: corpus.definitions])
    told = _centred(vectors["sentences"][corpus.definitions :])
    names = _centred(vectors["names"], weights) + _centred(vectors["photos"], weights)
    for i, group in enumerate(corpus.groups):
        if group:
            names[i] += MEANING * F.normalize(meant[group].mean(0), dim=0)
    return F.normalize(names, dim=1), torch.cat([meant, told])


def _rows(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file)).float()


def _centred(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    mean = rows.mean(0) if weights is None else (weights * rows).sum(0) / weights.sum()
    return F.normalize(rows - mean, dim=1)


@torch.no_grad()
def start_words(model: CLIP, words: Tensor, places: Tensor) -> None:
    """Start the tower as a bag of words: what the teacher makes of every word alone, averaged.

    words: [8000, 384], the teacher's vectors of the entries. places: of names, whose main directions the tower
    is as wide as. The first block's attention passes the mean of the words on, and the projection is the way back.
    """
    width = model.token_embedding.embedding_dim
    basis = torch.linalg.eigh(places.T @ places / len(places)).eigenvectors[:, -width:]  # [384, width]
    model.token_embedding.weight.copy_(_centred(words) @ basis)
    model.token_embedding.weight[-2:] = 0  # start and end say nothing
    model.text_projection.copy_(basis.T / math.sqrt(width))
    attention = model.transformer.resblocks[0].attn
    attention.in_proj_weight[:width] = 0  # no query prefers a word
    attention.in_proj_weight[2 * width :].copy_(torch.eye(width))
    attention.out_proj.weight.copy_(torch.eye(width))


def teach(
    model: CLIP, reader: Reader, rng: np.random.Generator, names: int, sentences: int
) -> dict[str, Tensor]:
    """The losses of one batch: distance to the teacher's vectors, and which of the batch's vectors it is."""
    ids, wanted = reader.batch(rng, names, sentences)
    found = encode(model, ids)
    same = (wanted @ wanted.T > 0.98).float().fill_diagonal_(1)  # synonyms, or a name drawn twice
    soft = same / same.sum(1, keepdim=True)
    which = F.cross_entropy(SCALE * found @ wanted.T, soft)
    return {"far": 1 - (found * wanted).sum(1).mean(), "which": 0.25 * which}


def pair_up(one: Tensor, other: Tensor) -> Tensor:
    """Cross-entropy, both ways, of which rows of two [n, 384] belong together."""
    logits, right = SCALE * one @ other.T, torch.arange(len(one))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def tell_apart(model: CLIP, told: list[list[list[int]]], rng: np.random.Generator, count: int) -> Tensor:
    """Two captions of each of ``count`` scenes find each other; scenes come in pairs (see ``paired_scenes``)."""
    pairs = 2 * rng.choice(len(told) // 2, count // 2, replace=False)
    index = np.stack([pairs, pairs + 1], 1).ravel()
    two = [rng.choice(len(told[i]), 2, replace=False) for i in index]
    features = encode(model, [told[i][which[k]] for k in (0, 1) for i, which in zip(index, two, strict=True)])
    return pair_up(*features.chunk(2))
