"""Rows in the text encoders of pipelines against the encoders themselves, and what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines import clip, clip_tokenizer, shared, t5, t5_tokenizer

from vpt.prompt import Site
from vpt.towers.diffusion import open_pipeline
from vpt.towers.encoders import Reader, Vocabulary, open_encoder

MUG = "<my-mug>"


def vectors(model: Any, tokenizer: Any, word: str) -> torch.Tensor:
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return model.get_input_embeddings().weight[ids].detach().clone()


def reader(model: Any, tokenizer: Any, rows: torch.Tensor, deep: torch.Tensor | None = None) -> Reader:
    tower = open_encoder(model, "text")
    written = {Site("text", "embedded", MUG): rows}
    if deep is not None:
        written[Site("text", "1", MUG)] = deep
    return Reader(model, tower, Vocabulary.of(tokenizer, {MUG: rows.shape[-2]}), written)


def asked(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    found = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    return {"input_ids": found.input_ids, "attention_mask": found.attention_mask}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_the_embedding_of_a_word_is_the_word(projected, masked):
    """States of every layer and the pooled one, to the bit; sentences with and without the word in one batch."""
    model, tokenizer = clip(projected=projected), clip_tokenizer()
    own = reader(model, tokenizer, vectors(model, tokenizer, "dog"))
    said = ["a photo of a <my-mug> in rain", "a cat", "<my-mug> and <my-mug>"]
    ids = asked(own.vocabulary.tokenizer, [own.vocabulary.say(text, {}) for text in said])
    plain = asked(tokenizer, [text.replace(MUG, "dog") for text in said])
    if not masked:
        ids.pop("attention_mask"), plain.pop("attention_mask")
    with torch.no_grad():
        found = own(**ids, output_hidden_states=True)
        # a run a kind of sentence: in the same parts, so that the library multiplies matrices of the same size
        for i in range(3):
            want = model(**{k: v[i : i + 1] for k, v in plain.items()}, output_hidden_states=True)
            assert torch.equal(found.last_hidden_state[i], want.last_hidden_state[0])
            name = "text_embeds" if projected else "pooler_output"
            assert torch.equal(found[name][i], want[name][0])
            assert len(found.hidden_states) == len(want.hidden_states) == 4
            for a, b in zip(found.hidden_states, want.hidden_states, strict=True):
                assert torch.equal(a[i], b[0])
    assert type(found) is type(want)
    assert own.seen[MUG] == 3


def test_t5_reads_rows_at_its_embedding():
    model, tokenizer = t5(), t5_tokenizer()
    own = reader(model, tokenizer, vectors(model, tokenizer, "dog"))
    ids = asked(own.vocabulary.tokenizer, [own.vocabulary.say("a photo of a <my-mug>", {})])
    plain = asked(tokenizer, ["a photo of a dog"])
    assert own.tower.depth == 0
    with torch.no_grad():
        assert torch.equal(own(**ids)[0], model(**plain)[0])


def test_several_rows_and_deep_ones_against_hooks():
    model, tokenizer = clip(), clip_tokenizer()
    rows, deep = torch.randn(2, 32), torch.randn(2, 32)
    own = reader(model, tokenizer, rows, deep)
    ids = asked(own.vocabulary.tokenizer, [own.vocabulary.say("a <my-mug> in rain", {})])["input_ids"]
    plain = asked(tokenizer, ["a dog dog in rain"])["input_ids"]

    def put(new: torch.Tensor) -> Any:
        def hook(module: Any, given: Any, found: Any) -> Any:
            x = found[0] if isinstance(found, tuple) else found
            x = torch.cat([x[:, :2], new[None], x[:, 4:]], 1)
            return (x, *found[1:]) if isinstance(found, tuple) else x

        return hook

    layers = model.encoder.layers
    hooks = [
        model.get_input_embeddings().register_forward_hook(put(rows)),
        layers[0].register_forward_hook(put(deep)),
    ]
    with torch.no_grad():
        want = model(plain)
        for hook in hooks:
            hook.remove()
        found = own(ids)
    assert torch.allclose(found.last_hidden_state, want.last_hidden_state, atol=1e-6)
    assert torch.allclose(found.pooler_output, want.pooler_output, atol=1e-6)


def test_sets_are_read_one_behind_the_other():
    """Rows [L, n, width]: the sentences L times over, each time with a set of its own."""
    model, tokenizer = clip(), clip_tokenizer()
    sets = torch.randn(3, 1, 32)
    own = reader(model, tokenizer, sets)
    texts = [own.vocabulary.say(text, {}) for text in ("a <my-mug>", "the cat", "a blue <my-mug>")]
    with torch.no_grad():
        found = own(asked(own.vocabulary.tokenizer, texts * 3)["input_ids"])[0]
        for k in range(3):
            one = reader(model, tokenizer, sets[k])(asked(own.vocabulary.tokenizer, texts)["input_ids"])[0]
            assert torch.allclose(found[3 * k : 3 * k + 3], one, atol=1e-6)


def test_the_gradient_reaches_the_rows_alone():
    model, tokenizer = clip(), clip_tokenizer()
    rows = torch.randn(1, 32, requires_grad=True)
    own = reader(model, tokenizer, rows)
    ids = asked(own.vocabulary.tokenizer, [own.vocabulary.say("a <my-mug>", {}), "a cat"])["input_ids"]
    own(ids)[0].square().sum().backward()
    assert rows.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_sentences_without_rows_are_read_once():
    model, tokenizer = clip(), clip_tokenizer()
    own = reader(model, tokenizer, torch.randn(1, 32))
    plain = asked(tokenizer, ["a cat"])["input_ids"]
    first = own(plain)
    assert own(plain) is first
    assert torch.equal(first[0], model(plain)[0])
    assert own(plain, output_hidden_states=True) is not first


def test_tokenizer_and_embedding_matrix_stay_as_they_were():
    pipe = shared("sdxl")
    before = [e.get_input_embeddings().weight.clone() for e in (pipe.text_encoder, pipe.text_encoder_2)]
    sizes = len(pipe.tokenizer), len(pipe.tokenizer_2)
    parts = dict(pipe.components)
    backbone = open_pipeline(pipe, "diffusers/tiny")
    rows = {Site(name, "embedded", MUG): torch.randn(2, 32) for name in ("text", "text_2")}
    backbone.embeds(["a <my-mug>"], rows)
    assert (len(pipe.tokenizer), len(pipe.tokenizer_2)) == sizes
    assert MUG not in pipe.tokenizer.get_vocab()
    for encoder, weight in zip((pipe.text_encoder, pipe.text_encoder_2), before, strict=True):
        assert torch.equal(encoder.get_input_embeddings().weight, weight)
    assert all(pipe.components[name] is part for name, part in parts.items())


def test_a_sentence_cut_within_a_placeholder_is_refused_and_a_lost_one_told():
    backbone = open_pipeline(shared("sd"), "diffusers/tiny")
    rows = {Site("text", "embedded", MUG): torch.randn(4, 32)}
    long = "a dog " * 36
    with pytest.raises(
        ValueError, match=r"77 tokens that 'text' reads and was cut within <my-mug>, which takes 4"
    ):
        backbone.embeds(f"{long} <my-mug>", rows)
    with pytest.warns(UserWarning, match=r"longer than .*'text' encoder reads, and lost <my-mug>"):
        backbone.embeds(f"{long}{long}<my-mug>", rows)
    with pytest.raises(ValueError, match="lost <my-mug>"):
        backbone.embeds(f"{long}{long}<my-mug>", rows, strict=True)


def test_words_of_placeholders_are_known_or_refused():
    backbone = open_pipeline(shared("sd"), "diffusers/tiny")
    with pytest.raises(ValueError, match=r"says <my-cat>, for which there are no rows; there are: <my-mug>"):
        backbone.embeds("a <my-cat>", {Site("text", "embedded", MUG): torch.randn(1, 32)})
    said = backbone.embeds("a <my-mug>", {}, words={MUG: "dog"})["prompt_embeds"]
    assert torch.equal(said, backbone.embeds("a dog")["prompt_embeds"])


def test_what_is_kept_serves_training_and_its_own_model_alone():
    """A sentence without rows is read once, by each model, and is no tensor of inference mode."""
    tokenizer, kept = clip_tokenizer(), {}
    model, other = clip(), clip()
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1.0)
    ids = asked(tokenizer, ["a cat"])["input_ids"]
    found = []
    for one in (model, other, model):
        own = Reader(one, open_encoder(one, "text"), Vocabulary.of(tokenizer, {}), {}, kept)
        with torch.inference_mode():
            found.append(own(ids)[0])
        assert not found[-1].is_inference()
        with torch.no_grad():
            assert torch.equal(found[-1], one(ids)[0])
    assert found[0] is found[2]
    assert own(ids, output_hidden_states=True).hidden_states is not None
