"""Strings to sentences: open_clip's own ids, and placeholders where their words stand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from vpt.encode import advance
from vpt.tower import Reading, Tower
from vpt.towers.backbone import Backbone
from vpt.towers.clip import open_text
from vpt.towers.tokens import Tokens, of_open_clip, readable

SIMPLE = open_clip.get_tokenizer("ViT-B-32")
START, END = SIMPLE.sot_token_id, SIMPLE.eot_token_id


@pytest.fixture(scope="module")
def tokens(tiny_clip: Backbone) -> Tokens:
    return tiny_clip.tokens


def theirs(text: str) -> list[int]:
    """open_clip's ids from the start to the end token."""
    row = SIMPLE([text])[0].tolist()
    return row[: row.index(END) + 1]


# template, and the same with words in place of rows
LAYOUTS = [
    ("<ctx*4> {}.", "X X X X {}."),
    ("a photo of a <ctx*2> {}.", "a photo of a X X {}."),
    ("{} <ctx*3>.", "{} X X X."),
    ("<ctx*2> {} <ctx*2>.", "X X {} X X."),
    ("it is <a> and <b*2>, {}", "it is X and X X, {}"),
    ("(<ctx>) {} {}", "(X) {} {}"),
    ("a {} without rows", "a {} without rows"),
]
names = st.text(
    st.sampled_from("abcXYZ 0123456789_-'.,!?&;:/()[]#*éßñ中文😀\t") | st.characters(codec="utf-8"),
    max_size=24,
).filter(lambda name: "{}" not in name)


@settings(max_examples=150, deadline=None)
@given(name=names, layout=st.sampled_from(LAYOUTS))
def test_ids_are_open_clips_own_and_rows_stand_where_their_words_do(
    tokens: Tokens, name: str, layout: tuple[str, str]
) -> None:
    template, plain = layout
    text = plain.replace("{}", name)
    want = [START, *SIMPLE.encode(text), END]
    if len(want) > 77:
        with pytest.raises(ValueError, match=rf"takes {len(want)} tokens with start and end.*77 positions"):
            tokens.sentence(template, name)
        return
    sentence = tokens.sentence(template, name)
    assert list(sentence.ids) == want
    other = [START, *SIMPLE.encode(plain.replace("X", "the").replace("{}", name)), END]
    differ = [i for i, (a, b) in enumerate(zip(want, other, strict=True)) if a != b]
    places = [p for slot in sentence.slots.values() for p in slot]
    assert sorted(places) == differ
    assert len(places) == plain.count("X")
    assert {sentence.ids[p] for p in places} <= {SIMPLE.encode("X")[0]}


@pytest.mark.parametrize(
    ("template", "slots"),
    [
        ("<ctx*4> {}.", {"<ctx>": (1, 2, 3, 4)}),
        ("a photo of a <ctx*2> {}.", {"<ctx>": (5, 6)}),
        ("{} <ctx*3>.", {"<ctx>": (3, 4, 5)}),
        ("<ctx*2> {} <ctx>.", {"<ctx>": (1, 2, 5)}),
        ("<a> {} <b-1> <a>", {"<a>": (1, 5), "<b-1>": (4,)}),
        ("a {}.", {}),
    ],
)
def test_places_by_hand(tokens: Tokens, template: str, slots: dict[str, tuple[int, ...]]) -> None:
    sentence = tokens.sentence(template, "golden retriever", 3)
    assert dict(sentence.slots) == slots
    assert sentence.group == 3
    if template == "a {}.":
        assert list(sentence.ids) == theirs("a golden retriever.")


def test_a_name_is_words_even_where_it_looks_like_a_placeholder(tokens: Tokens) -> None:
    sentence = tokens.sentence("<ctx> {}.", "a <b> tag")
    assert dict(sentence.slots) == {"<ctx>": (1,)}
    assert list(sentence.ids) == theirs("X a <b> tag.")


def test_placeholders_glued_to_a_word_are_refused(tokens: Tokens) -> None:
    with pytest.raises(
        ValueError, match=r"the 2 placeholders of '<ctx\*2>nd {}' take .*'dog'. Put a blank between"
    ):
        tokens.sentence("<ctx*2>nd {}", "dog")


def test_what_is_too_long_is_refused_with_its_length(tokens: Tokens) -> None:
    name = "very " * 80 + "long"
    with pytest.raises(
        ValueError, match=r"'very very .*long' takes 88 tokens .*77 positions. Shorten the name"
    ):
        tokens.sentence("<ctx*4> {}.", name)
    with pytest.raises(ValueError, match=r"'<ctx\*90>' takes 92 tokens"):
        tokens.sentence("<ctx*90>")
    with pytest.raises(ValueError, match=r"takes 83 tokens"):
        tokens(["a cat", name])
    assert tokens(["a cat", "a dog"]).shape == (2, 77)
    assert torch.equal(tokens("a cat"), SIMPLE(["a cat"]))


def test_words_and_their_embeddings(tokens: Tokens, tiny_clip: Backbone) -> None:
    assert tokens.words("a photo of a") == SIMPLE.encode("a photo of a")
    assert tokens.words("") == []
    found = tokens.embed("a photo of a")
    assert torch.equal(found, tiny_clip.text.model.token_embedding.weight[SIMPLE.encode("a photo of a")])
    assert not found.requires_grad
    assert torch.equal(found, advance(tiny_clip.text, SIMPLE(["a photo of a"]), {}, "embedded").x[0, 1:5])


def test_names_are_read_with_blanks() -> None:
    assert readable("golden_retriever") == "golden retriever"
    assert readable("  great  white_shark_") == "great white shark"


def words_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with special tokens as BERT has them, or as SigLIP does (an end token alone)."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "red", "panda", ".", "the", "X"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    single = "<s> $A </s>" if kind == "bert" else "$A </s>"
    ids = [("<s>", 2), ("</s>", 3)]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    made.decoder = decoders.WordPiece()
    if kind == "siglip":
        made.normalizer = normalizers.Replace(".", "")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """hub(kind): open_clip's wrapper around a tokenizer as the hub would give it."""

    def make(kind: str, **options: Any) -> Any:
        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: words_of(kind))
        return open_clip.tokenizer.HFTokenizer("local", **options)

    return make


def reads(context: int, *, cuts: bool, base: Tower) -> Tower:
    return replace(base, reading=Reading(context, 0, causal=False, cuts=cuts))


def test_a_hugging_face_tokenizer_is_cut_where_padding_is_not_seen(hub: Any, tiny_clip: Backbone) -> None:
    tokens = of_open_clip(hub("bert", context_length=12), reads(40, cuts=True, base=tiny_clip.text))
    assert tokens.context == 12  # what the tokenizer cuts at, though the tower is longer
    sentence = tokens.sentence("a photo of <ctx*2> {}.", "red  panda")
    assert sentence.ids == (2, 4, 5, 6, 11, 11, 7, 8, 9, 3)
    assert dict(sentence.slots) == {"<ctx>": (4, 5)}
    assert tokens.words("red panda") == [7, 8]
    assert tokens("a red panda")[0].tolist() == [2, 4, 7, 8, 3, *[0] * 7]
    with pytest.raises(ValueError, match=r"takes 13 tokens with start and end.*12 positions"):
        tokens.sentence("a photo of <ctx*5> {}.", "red panda")


def test_a_siglip_like_tokenizer_keeps_its_length(hub: Any, tiny_clip: Backbone) -> None:
    wrapped = hub("siglip", context_length=9, clean="canonicalize")
    tokens = of_open_clip(wrapped, reads(9, cuts=False, base=tiny_clip.text))
    sentence = tokens.sentence("<ctx*2> {}.", "Red-Panda")  # canonical: no case, no punctuation
    assert sentence.ids[:2] == (1, 1)  # "x" is unknown to these words
    assert len(sentence.ids) == 9


def test_words_that_hold_places_must_be_one_token_each(hub: Any, tiny_clip: Backbone) -> None:
    class Letters:
        context_length = 20

        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.zeros(len(texts), 20, dtype=torch.long)

    tokens = of_open_clip(Letters(), tiny_clip.text)
    with pytest.raises(ValueError, match="too few words of one token"):
        tokens.sentence("<ctx> {}", "dog")
    wrapped = hub("bert", context_length=12, tokenizer_mode="clips")
    assert of_open_clip(wrapped, reads(12, cuts=False, base=tiny_clip.text)).length("a red panda") == 6


def test_a_text_encoder_of_the_hub_reads_its_own_sentences(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=12, max_position_embeddings=30, **sizes)
    monkeypatch.setattr("open_clip.hf_model.AutoConfig.from_pretrained", lambda _: config)
    tower = open_text(
        open_clip.hf_model.HFTextEncoder("local", 32, pooler_type="mean_pooler", pretrained=False)
    )
    tokens = of_open_clip(hub("bert", context_length=12), tower)
    sentence = tokens.sentence("a <ctx> {}.", "panda")
    assert sentence.ids == (2, 4, 11, 8, 9, 3)
    assert torch.equal(
        tokens.embed("red panda"), tower.model.transformer.embeddings.word_embeddings.weight[[7, 8]]
    )


def test_fitted_keeps_the_most_words_that_the_context_takes(tiny_clip):
    tokens = tiny_clip.tokens
    for template in ("{}", "<ctx*4> {}."):
        short, cut = tokens.fitted(template, "a red circle")
        assert (short, cut) == ("a red circle", False)
        long = " ".join(["circle"] * 200)
        kept, cut = tokens.fitted(template, long)
        assert cut
        tokens.sentence(template, kept)  # fits
        with pytest.raises(ValueError, match="Shorten"):
            tokens.sentence(template, f"{kept} circle")
    with pytest.raises(ValueError, match="leaves"):
        tokens.fitted(f"<ctx*{tokens.context - 2}> {{}}", "circle")
