"""open_clip's Hugging Face text encoders, built from local configs: equal to the bit, rows where words would be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from torch import Tensor
from transformers import BertConfig, M2M100Config, MT5Config, RobertaConfig, XLMRobertaConfig

from vpt.encode import advance, encode
from vpt.prompt import Site
from vpt.promptset import fingerprint
from vpt.text import Sentence, encode_text, lay
from vpt.towers.clip import open_clip_model, open_text

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
}
ENCODER: dict[str, Any] = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
DECODER: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SMALL),
    "roberta": lambda: RobertaConfig(**SMALL),
    "xlm-roberta": lambda: XLMRobertaConfig(**SMALL),
    "mt5": lambda: MT5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
    "m2m_100": lambda: M2M100Config(
        vocab_size=50, d_model=32, max_position_embeddings=20, **ENCODER, **DECODER
    ),
}
CONTEXT = {"bert": 20, "roberta": 18, "xlm-roberta": 18, "mt5": 512, "m2m_100": 20}
POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch, shaken: Any) -> Callable[..., Any]:
    """encoder(kind, pooler): as open_clip builds it, the hub's config replaced by a small one."""

    def make(kind: str, pooler: str = "mean_pooler", **more: Any) -> Any:
        monkeypatch.setattr("open_clip.hf_model.AutoConfig.from_pretrained", lambda _: CONFIGS[kind]())
        options = {"proj_type": "linear", "pretrained": False, **more}
        return shaken(HFTextEncoder("local", 24, pooler_type=pooler, **options), 0.3).eval()

    return make


def ids_of(pad: int) -> Tensor:
    """Three sentences, the last without padding."""
    ids = torch.randint(4, 50, (3, 11), generator=torch.Generator().manual_seed(3))
    ids[0, 8:] = pad
    ids[1, 4:] = pad
    return ids


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_features_equal_the_librarys_to_the_bit(encoder: Any, kind: str, pooler: str) -> None:
    t = encoder(kind, pooler, proj_type="mlp" if pooler == "cls_pooler" else "linear")
    tower, ids = open_text(t), ids_of(t.config.pad_token_id)
    with torch.no_grad():
        assert torch.equal(encode(tower, ids), t(ids))
        assert torch.equal(encode(tower, ids[2:]), t(ids[2:]))  # no padding, no mask
        torch.testing.assert_close(encode(tower, ids[1:2, :4]), t(ids[1:2]), rtol=1e-5, atol=1e-5)
    assert tower.out == 24
    assert tower.reading == (CONTEXT[kind], t.config.pad_token_id, False, True)
    s = advance(tower, ids, {}, "0")
    assert s.mask is not None
    assert s.mask.shape[::2] == (3, 11)
    assert s.mask.ndim == 4
    assert s.mask.is_floating_point()


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_take_the_place_of_words(encoder: Any, kind: str) -> None:
    """The library's own forward, its table of words holding the rows, is the truth."""
    t = encoder(kind)
    tower, pad, rows = open_text(t), t.config.pad_token_id, torch.randn(2, 32)
    sentences = [
        Sentence((4, 5, 6, 9, 2), {"<ctx>": (1, 2)}),
        Sentence((4, 8, 5, 6, 7, 8, 2), {"<ctx>": (2, 3)}),
    ]
    words = next(m for n, m in t.named_modules() if n.endswith(("word_embeddings", "embed_tokens")))
    scale = getattr(words, "embed_scale", 1.0)
    ids = torch.tensor([[4, 40, 41, 9, 2, pad, pad], [4, 8, 40, 41, 7, 8, 2]])
    found = {}
    for packed in (True, False):
        streams = lay(tower, sentences, packed=packed)
        assert [s.x.shape[0] for s in streams] == [2]  # not causal: never in one row
        assert streams[0].x.shape[1] == (7 if packed else CONTEXT[kind])
        found[packed] = encode_text(tower, streams, {Site("text", "embedded", "<ctx>"): rows})
    with torch.no_grad():
        words.weight[[40, 41]] = rows / scale
        want = t(ids)
    torch.testing.assert_close(found[True], want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[False], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_sets_of_rows_and_deep_rows_pass(encoder: Any, kind: str) -> None:
    tower = open_text(encoder(kind, "cls_pooler"))
    sentences = [
        Sentence((4, 5, 6, 9, 2), {"<ctx>": (1, 2)}),
        Sentence((4, 5, 6, 7, 8, 9, 2), {"<ctx>": (1, 2)}),
    ]
    streams = lay(tower, sentences)
    sites = [Site("text", stage, "<ctx>") for stage in ("embedded", "1")]
    rows = {site: torch.randn(3, 2, 32, requires_grad=True) for site in sites}
    grid = encode_text(tower, streams, rows, sets=3)
    assert grid.shape == (3, 2, 24)
    for i in range(3):
        one = encode_text(tower, streams, {site: r[i] for site, r in rows.items()})
        torch.testing.assert_close(grid[i], one, rtol=1e-5, atol=1e-5)
    (grid * grid.detach().roll(1, -1)).sum().backward()
    assert all(r.grad is not None and r.grad.abs().amax((1, 2)).min() > 0 for r in rows.values())


def test_a_fixed_length_lets_no_slot_be_opened(encoder: Any) -> None:
    tower = open_text(encoder("bert"))
    with pytest.raises(ValueError, match="no slot can be opened at text/0"):
        encode(tower, ids_of(0), {Site("text", "0", "prefix"): torch.zeros(2, 32)})


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_fingerprint_sees_what_the_features_see(encoder: Any, kind: str) -> None:
    t = encoder(kind, "cls_pooler")
    tower = open_text(t)
    before = fingerprint(tower)
    twin = tower.learning(lambda name: name.startswith("proj"), "pooled")
    assert fingerprint(twin) == before
    assert fingerprint(open_text(encoder(kind, "mean_pooler"))) != before
    seen = [p for n, p in t.named_parameters() if p.ndim > 1 and "token_type" not in n]
    for p in (seen[0], seen[len(seen) // 2], seen[-1]):
        with torch.no_grad():
            p[1, 1] += 0.5
        assert fingerprint(tower) != before
        before = fingerprint(tower)


def test_coca_with_a_hugging_face_text_tower_equals_the_library(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, shaken: Any
) -> None:
    monkeypatch.setattr("open_clip.hf_model.AutoConfig.from_pretrained", lambda _: CONFIGS["roberta"]())
    decoder = {"context_length": 12, "vocab_size": 50, "width": 24, "heads": 2, "layers": 1}
    text = {"hf_model_name": "roberta-base", "hf_proj_type": "linear", "output_tokens": True, "width": 32}
    vision = {
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "image_size": 32,
        "output_tokens": True,
    }
    m = shaken(CoCa(24, decoder, {**text, "hf_model_pretrained": False}, vision), 0.3)
    towers, ids = open_clip_model(m), ids_of(1)
    with torch.no_grad():
        assert torch.equal(encode(towers["text"], ids), m.encode_text(ids, normalize=False))
        assert torch.equal(encode(towers["image"], images), m.encode_image(images, normalize=False))


def test_other_encoders_and_poolings_are_refused(encoder: Any) -> None:
    with pytest.raises(
        ValueError, match=r"'bert' with MaxPooler cannot be opened.*bert, roberta, xlm-roberta, mt5"
    ):
        open_text(encoder("bert", "max_pooler"))
    t = encoder("bert")
    t.config.model_type = "electra"
    with pytest.raises(ValueError, match=r"'electra' with MeanPooler cannot be opened"):
        open_text(t)
