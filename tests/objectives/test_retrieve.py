"""The contrastive losses against their plain definitions, and against the classes of an ordinary batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.objectives.captions import Captions
from vpt.objectives.retrieve import Retrieve, info_nce, sigmoid


def by_hand(logits: Tensor, true: Tensor) -> float:
    """Every true pair against the wrong entries of its query, in words."""
    queries = []
    for row, yes in zip(logits.tolist(), true.tolist(), strict=True):
        wrong = sum(math.exp(x) for x, y in zip(row, yes, strict=True) if not y)
        terms = [-math.log(math.exp(x) / (math.exp(x) + wrong)) for x, y in zip(row, yes, strict=True) if y]
        queries.append(sum(terms) / len(terms))
    return sum(queries) / len(queries)


def test_one_caption_a_picture_is_cross_entropy():
    logits = torch.randn(7, 7) * 3
    want = F.cross_entropy(logits, torch.arange(7))
    torch.testing.assert_close(info_nce(logits, torch.eye(7, dtype=torch.bool)), want)


def test_captions_of_one_picture_are_no_negatives_of_each_other():
    captions = Captions.gather([["a", "b"], ["c"], ["a", "d", "e"]])
    true = captions.true(None, None)
    logits = torch.randn(3, 5, requires_grad=True)
    loss = info_nce(logits, true)
    assert math.isclose(loss.item(), by_hand(logits, true), rel_tol=1e-5)
    # with its other captions as far as can be, a picture's loss is the same
    far = logits.detach().clone()
    far[0, 1] = 50.0
    one = torch.tensor([[True, False, False, False, False]])
    mine, theirs = info_nce(far[:1, [0, 2, 3, 4]], one[:, [0, 2, 3, 4]]), info_nce(far[:1], true[:1])
    assert theirs < mine, "the caption that fits well lowers the loss of its picture and raises no other's"


def test_a_query_that_everything_is_true_of_counts_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    true = torch.tensor([[True, True, True], [True, False, False]])
    loss = info_nce(logits, true)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[0].any()
    torch.testing.assert_close(loss, F.cross_entropy(logits[1:], torch.tensor([0])) / 2)


def test_sigmoid_is_a_binary_question_a_pair():
    logits, true = torch.randn(4, 6), torch.rand(4, 6) < 0.4
    want = F.binary_cross_entropy_with_logits(logits, true.float(), reduction="none").sum(1).mean()
    torch.testing.assert_close(sigmoid(logits, true), want)


class Plain:
    """A model whose features are given: pictures by number, captions by number."""

    def __init__(self, pictures: Tensor, texts: Tensor, *, stored: bool) -> None:
        self.pictures, self.texts, self.stored, self.classes = pictures, texts, stored, ()

    def see(self, inputs: Tensor, frozen: Tensor | None = None, chosen: Tensor | None = None):
        from vpt.methods.method import Seen

        assert chosen is not None
        seen = Seen(self.pictures[inputs], self.texts[chosen], scale=4.0)
        return Seen(**{**vars(seen), "logits": self.rate(seen)})

    def rate(self, seen, *, image: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        return seen.compare(seen.image if image is None else image, seen.text if text is None else text)

    def stored_texts(self) -> Tensor | None:
        return self.texts if self.stored else None


def test_stored_features_of_the_whole_set_are_negatives():
    torch.manual_seed(0)
    captions = Captions.gather([[f"{i}", f"{i % 3} again", f"{i} more"] for i in range(10)])
    pictures, texts = torch.randn(10, 5), torch.randn(len(captions.texts), 5)
    batch = {"index": torch.tensor([2, 5, 7])}
    logits = 4 * F.normalize(pictures, dim=1) @ F.normalize(texts, dim=1).T
    true = captions.true(None, None)
    chosen = captions.drawn([2, 5, 7], 1, 1, seed=1)
    for bank in (None, pictures[None].expand(2, -1, -1)):
        for stored in (False, True):
            objective = Retrieve(captions, captions, bank=bank)
            seen, loss = objective.step(Plain(pictures, texts, stored=stored), batch["index"], batch, 1)
            wide = slice(None) if stored else chosen
            to_captions = by_hand(logits[batch["index"]][:, wide], true[batch["index"]][:, wide])
            rows = batch["index"] if bank is None else slice(None)
            to_pictures = by_hand(logits[rows][:, chosen].T, true[rows][:, chosen].T)
            assert math.isclose(loss(seen.logits).item(), (to_captions + to_pictures) / 2, rel_tol=1e-5)


def test_consistency_is_distance_from_frozen_features():
    from vpt.methods.method import Seen

    image, text, frozen, plain = (torch.randn(3, 4) for _ in range(4))
    objective = Retrieve(Captions.gather([["a"]]), Captions.gather([]), consistency=2.0)
    seen = Seen(image, text, frozen=frozen, plain=plain)
    want = sum(1 - F.cosine_similarity(a, b).mean() for a, b in ((image, frozen), (text, plain)))
    torch.testing.assert_close(objective.more(seen)["consistency"], 2 * want)
    same = Seen(image, text, frozen=image, plain=text)
    assert objective.more(same)["consistency"].abs() < 1e-6
