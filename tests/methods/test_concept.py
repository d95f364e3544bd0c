"""Rows at a placeholder: where they start, what they are held near, and that other sentences stay as they are."""

from __future__ import annotations

import pytest
import torch

from vpt.methods.concept import Concept
from vpt.methods.method import Say, Seen
from vpt.promptset import PromptSet
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.pairs import plainly
from vpt.tasks.tuned import Tuned
from vpt.towers.backbone import Backbone

CAPTIONS = ("a dog on grass", "a photo of <my-mug>", "a red circle", "<my-mug> on grass")


@pytest.mark.parametrize("length", [1, 3])
def test_untrained_rows_say_the_word_that_they_start_from(tiny_clip: Backbone, length: int) -> None:
    method = build_method("concept", tiny_clip, {"name": "my-mug", "word": "mug", "length": length})
    learner = Learner(method, tiny_clip, CAPTIONS, captions=True)
    want = plainly(tiny_clip).encode_text(
        [c.replace("<my-mug>", " ".join(["mug"] * length)) for c in CAPTIONS]
    )
    with torch.no_grad():
        torch.testing.assert_close(learner.read(CAPTIONS), want, atol=1e-5, rtol=1e-4)


def test_sentences_without_the_word_are_read_once_and_carry_no_gradient(tiny_clip: Backbone) -> None:
    method = build_method("concept", tiny_clip, {"name": "my-mug", "word": "mug"})
    learner = Learner(method, tiny_clip, CAPTIONS, captions=True).train()
    seen = learner.see(torch.randn(2, 3, 32, 32), chosen=torch.tensor([0, 1, 3]))
    assert seen.text is not None
    plain = plainly(tiny_clip).encode_text(list(CAPTIONS[:1]))
    torch.testing.assert_close(seen.text[:1], plain, atol=1e-5, rtol=1e-4)
    slopes = [
        torch.autograd.grad(
            seen.text[i].sum(), list(method.parameters()), retain_graph=True, allow_unused=True
        )[0]
        for i in range(3)
    ]
    assert [slope is not None and bool(slope.any()) for slope in slopes] == [False, True, True]


def test_near_compares_with_the_word_in_the_same_sentence(tiny_clip: Backbone) -> None:
    method = build_method("concept", tiny_clip, {"name": "my-mug", "word": "mug", "near": 2.0})
    learner = Learner(method, tiny_clip, CAPTIONS, captions=True).train()
    seen = learner.see(torch.randn(2, 3, 32, 32), chosen=torch.arange(4))
    assert method.losses(seen, lambda logits: logits.sum() * 0)["near"].abs() < 1e-4, "it starts as the word"
    with torch.no_grad():
        method.text_prompt.table.rows.add_(1.0)
    learner.eval().train()
    seen = learner.see(torch.randn(2, 3, 32, 32), chosen=torch.arange(4))
    word = plainly(tiny_clip).encode_text(["a photo of mug", "mug on grass"])
    assert seen.text is not None
    want = 2 * (1 - torch.cosine_similarity(seen.text[[1, 3]], word, dim=-1).mean())
    torch.testing.assert_close(method.losses(seen, lambda x: x.sum())["near"], want, atol=1e-4, rtol=1e-3)


def test_a_file_with_the_word_leaves_other_sentences_and_all_pictures_as_they_are(
    tiny_clip, tmp_path
) -> None:
    method = build_method("concept", tiny_clip, {"name": "my-mug", "word": "mug", "length": 2, "layers": 2})
    with torch.no_grad():
        method.text_prompt.table.rows.normal_()
    learner = Learner(method, tiny_clip, CAPTIONS, captions=True)
    about = {"task": "retrieve", "backbone": tiny_clip.label()}
    file = learner.export(about).save(tmp_path / "mug.safetensors")
    prompts = PromptSet.load(file)
    assert prompts.written("image") == ""
    assert file.stat().st_size < 20_000
    tuned, plain = Tuned(tiny_clip, prompts), plainly(tiny_clip)
    others = ["a dog on grass", "a <b> word in brackets"]
    torch.testing.assert_close(tuned.encode_text(others), plain.encode_text(others), atol=1e-5, rtol=1e-4)
    assert (tuned.encode_text(["a <my-mug>"]) - plain.encode_text(["a mug"])).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["my mug", "ctx", "a*2", ""])
def test_names_that_are_no_placeholders_are_refused(tiny_clip: Backbone, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        Concept(tiny_clip.text, tiny_clip.tokens, name=name)
    with pytest.raises(ValueError, match="word is empty"):
        Concept(tiny_clip.text, tiny_clip.tokens, word=" ")


def test_teach_says_nothing_of_captions_without_the_word(tiny_clip: Backbone) -> None:
    method = Concept(tiny_clip.text, tiny_clip.tokens, name="my-mug", word="mug", near=1.0)
    assert method.teach(Say(("a dog",), lambda _: torch.zeros(1, 4))) == {}
    assert set(method.losses(Seen(torch.zeros(1, 4), logits=torch.zeros(1, 1)), lambda x: x.sum())) == {
        "task"
    }
