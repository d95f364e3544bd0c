"""transformers' own models: equal to the bit without rows, live as plain with them, one fingerprint with open_clip."""

import copy
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from vpt.encode import advance, encode
from vpt.prompt import Site
from vpt.promptset import fingerprint
from vpt.text import encode_text, lay
from vpt.tower import Block, Tower
from vpt.towers.clip import open_clip_model
from vpt.towers.hf import OPENED, open_hf
from vpt.towers.load import load
from vpt.towers.load_clip import preprocessing_of_clip
from vpt.towers.load_hf import preprocessing_of_hf

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SMALL, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 8}
DINO = {**SMALL, **PICTURE, "mlp_ratio": 2, "num_labels": 5}
WORDS = 60
TEXT = {**WIDE, "vocab_size": WORDS, "max_position_embeddings": 16, "bos_token_id": 58, "eos_token_id": 59}


def clip(**text: Any) -> CLIPModel:
    config = CLIPConfig(text_config={**TEXT, **text}, vision_config={**WIDE, **PICTURE}, projection_dim=24)
    return CLIPModel(config)


def siglip(**vision: Any) -> SiglipModel:
    text = {**TEXT, "projection_size": 24, "eos_token_id": 1}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**WIDE, **PICTURE, **vision}))


BUILD: dict[str, Callable[[], Any]] = {
    "ViTModel": lambda: ViTModel(ViTConfig(**WIDE, **PICTURE)),
    "ViTForImageClassification": lambda: ViTForImageClassification(
        ViTConfig(**WIDE, **PICTURE, qkv_bias=False, num_labels=5)
    ),
    "Dinov2Model": lambda: Dinov2Model(Dinov2Config(**DINO, use_swiglu_ffn=True)),
    "Dinov2ForImageClassification": lambda: Dinov2ForImageClassification(
        Dinov2Config(**DINO, drop_path_rate=0.5)
    ),
    "Dinov2WithRegistersForImageClassification": lambda: Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)
    ),
    "CLIPModel": clip,
    "SiglipModel": siglip,
}


@pytest.fixture(scope="module")
def opened(shaken: Callable[..., nn.Module]) -> Callable[[str], tuple[Any, dict[str, Tower]]]:
    """opened(kind): the library's model and its towers."""
    found: dict[str, tuple[Any, dict[str, Tower]]] = {}

    def make(kind: str) -> tuple[Any, dict[str, Tower]]:
        if kind not in found:
            torch.manual_seed(0)
            model = shaken(BUILD[kind](), 0.5)
            found[kind] = model, open_hf(model)
        return found[kind]

    return make


def features_of(m: Any, pictures: Tensor, **more: Any) -> Tensor:
    """What the library gives a picture: projected or pooled features, or the class token."""
    if hasattr(m, "get_image_features"):
        return m.get_image_features(pictures, **more).pooler_output
    base = getattr(m, m.base_model_prefix, m)
    return base(pictures, **more).last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", BUILD)
def test_an_image_tower_equals_the_library_to_the_bit(opened: Any, kind: str) -> None:
    m, towers = opened(kind)
    tower = towers["image"]
    assert not any(module.training for module in m.modules())
    assert not any(p.requires_grad for p in m.parameters())
    for size in (32, 48):
        pictures = torch.randn(2, 3, size, size)
        more = {"interpolate_pos_encoding": True} if size != 32 and "Dino" not in kind else {}
        got = encode(tower, pictures)
        with torch.no_grad():
            assert torch.equal(got, features_of(m, pictures, **more))
            assert got.shape == (2, tower.out)
            assert tower.patch == (8, 8)
            if "Classification" not in kind:
                assert tower.logits is None
                continue
            assert tower.logits is not None
            assert torch.equal(
                tower.logits(advance(tower, pictures, {}, "normed")), m(pictures, **more).logits
            )


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("stages", [("0",), ("placed", "1"), ("0", "1")], ids="+".join)
def test_leaving_out_what_nobody_reads_changes_nothing(
    opened: Any, kind: str, stages: tuple[str, ...]
) -> None:
    tower, pictures = opened(kind)[1]["image"], torch.randn(2, 3, 32, 32)
    slots = ("prefix", "suffix") if stages[0] != "placed" else ("suffix",)
    rows = {
        Site("image", stage, slot): torch.randn(3, 32, requires_grad=True)
        for stage in stages
        for slot in slots
    }
    assert all(isinstance(step, Block) for step in tower.steps[2:4])
    live, plain = (encode(tower, pictures, rows, live=live) for live in (True, False))
    torch.testing.assert_close(live, plain, rtol=1e-5, atol=1e-5)
    weight = torch.randn(live.shape)
    pair = [torch.autograd.grad((f * weight).sum(), list(rows.values())) for f in (live, plain)]
    for ours, theirs in zip(*pair, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (live - encode(tower, pictures)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", BUILD)
def test_keys_and_values_are_those_that_rows_would_have(opened: Any, kind: str) -> None:
    tower, pictures, rows = opened(kind)[1]["image"], torch.randn(2, 3, 32, 32), torch.randn(3, 32)
    block: Any = tower.steps[3]
    parts = block.parts
    h = parts.norm1(rows)
    kv = torch.cat([parts.attn.k_proj(h), parts.attn.v_proj(h)], -1)
    got = encode(tower, pictures, {Site("image", "1", "kv"): kv})
    want = encode(tower, pictures, {Site("image", "1", "prefix"): rows}, live=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_rows_in_front_of_clips_pre_norm_are_tokens_of_the_library(opened: Any) -> None:
    m, towers = opened("CLIPModel")
    v, pictures, rows = m.vision_model, torch.randn(2, 3, 32, 32), torch.randn(4, 32)
    x = torch.cat([v.embeddings(pictures), rows.expand(2, -1, -1)], 1)
    x = v.pre_layrnorm(x)
    for layer in v.encoder.layers:
        x = layer(x, None)
    want = m.visual_projection(v.post_layernorm(x[:, 0]))
    got = encode(towers["image"], pictures, {Site("image", "placed", "suffix"): rows}, live=False)
    assert torch.equal(got, want)


IDS = torch.tensor([[58, 3, 4, 5, 59, *[1] * 11], [58, 6, 7, 59, *[1] * 12], [58, *range(8, 22), 59]])


@pytest.mark.parametrize(
    "build",
    [clip, lambda: clip(eos_token_id=2), lambda: clip(vocab_size=70), siglip],
    ids=["eos", "2", "low", "siglip"],
)
def test_a_text_tower_equals_the_library_to_the_bit(build: Any, shaken: Any) -> None:
    m = shaken(build(), 0.5)
    tower = open_hf(m)["text"]
    assert tower.reading is not None
    lengths = (16, 7) if tower.reading.cuts else (16,)
    ids = IDS.clone()
    if m.config.text_config.vocab_size == 70:
        ids[1, 5:] = 65  # an added token behind the end, which the highest id would be
    for length in lengths:
        with torch.no_grad():
            want = m.get_text_features(ids[:, :length][: 2 if length < 16 else 3]).pooler_output
        got = encode(tower, ids[:, :length][: 2 if length < 16 else 3])
        assert torch.equal(got, want)
    assert tower.traits["causal"] == tower.reading.causal == hasattr(m, "text_projection")


def test_packed_clip_text_is_the_text_one_by_one(opened: Any) -> None:
    from vpt.text import Sentence

    m, towers = opened("CLIPModel")
    tower = towers["text"]
    named = [(7,), (8, 9), (10, 11, 12), (13,), (7, 9)]
    sentences = [Sentence((58, 3, 3, *n, 5, 59), {"<ctx>": (1, 2)}) for n in named]
    rows = {
        Site("text", stage, "<ctx>"): torch.randn(2, 32, requires_grad=True) for stage in ("embedded", "1")
    }
    packed, plain = lay(tower, sentences), lay(tower, sentences, packed=False)
    assert len(packed) == 1
    assert packed[0].x.shape[1] > 16  # more tokens than the library has positions
    found = [encode_text(tower, streams, rows) for streams in (packed, plain)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad((f * f.detach().roll(1)).sum(), list(rows.values())) for f in found]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ids = torch.tensor([[*s.ids, *[1] * (16 - len(s.ids))] for s in sentences])
    with torch.no_grad():
        want = m.get_text_features(ids).pooler_output
    torch.testing.assert_close(encode_text(tower, packed, {}), want, rtol=1e-5, atol=1e-5)


def test_rows_behind_the_start_token_lengthen_packed_and_plain_text_alike(opened: Any) -> None:
    from vpt.text import Sentence

    tower = opened("CLIPModel")[1]["text"]
    sentences = [Sentence((58, 3, *n, 5, 59)) for n in ((7,), (8, 9), (7, 9))]
    rows = {Site("text", str(i), "prefix"): torch.randn(3, 32) for i in (0, 1)}
    packed, plain = (encode_text(tower, lay(tower, sentences, packed=p), rows) for p in (True, False))
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)
    assert (packed - encode_text(tower, lay(tower, sentences), {})).abs().max() > 1e-2


@pytest.mark.parametrize("kind", BUILD)
def test_a_copy_learns_and_the_frozen_tower_stays(opened: Any, kind: str) -> None:
    _, towers = opened(kind)
    for name, tower in towers.items():
        before = fingerprint(tower)
        twin = tower.learning(lambda p: "mlp" in p, "0")
        inputs = torch.randn(1, 3, 32, 32) if name == "image" else IDS[:1]
        encode(twin, inputs).sum().backward()
        learned = [p for p in twin.model.parameters() if p.requires_grad]
        assert learned
        assert not any(p.requires_grad for p in tower.model.parameters())
        assert fingerprint(twin) == before
        with torch.no_grad():
            learned[0].add_(0.1)
        assert fingerprint(twin) != before
        assert fingerprint(tower) == before


def moved(o: open_clip.CLIP, m: CLIPModel) -> None:
    """The weights of open_clip's model, written into transformers'."""

    def fill(p: nn.Parameter, value: Tensor) -> None:
        p.data.copy_(value)

    def blocks(ours: Any, theirs: Any) -> None:
        for a, b in zip(ours, theirs, strict=True):
            for kind in ("weight", "bias"):
                three = getattr(a.attn, f"in_proj_{kind}").chunk(3)
                for name, part in zip("qkv", three, strict=True):
                    fill(getattr(getattr(b.self_attn, f"{name}_proj"), kind), part)
                pairs = {
                    b.self_attn.out_proj: a.attn.out_proj,
                    b.layer_norm1: a.ln_1,
                    b.layer_norm2: a.ln_2,
                    b.mlp.fc1: a.mlp.c_fc,
                    b.mlp.fc2: a.mlp.c_proj,
                }
                for to, of in pairs.items():
                    fill(getattr(to, kind), getattr(of, kind))

    v, t = m.vision_model, m.text_model
    fill(v.embeddings.patch_embedding.weight, o.visual.conv1.weight)
    fill(v.embeddings.class_embedding, o.visual.class_embedding)
    fill(v.embeddings.position_embedding.weight, o.visual.positional_embedding)
    v.pre_layrnorm.load_state_dict(o.visual.ln_pre.state_dict())
    v.post_layernorm.load_state_dict(o.visual.ln_post.state_dict())
    fill(m.visual_projection.weight, o.visual.proj.T)
    fill(t.embeddings.token_embedding.weight, o.token_embedding.weight)
    fill(t.embeddings.position_embedding.weight, o.positional_embedding)
    t.final_layer_norm.load_state_dict(o.ln_final.state_dict())
    fill(m.text_projection.weight, o.text_projection.T)
    blocks(o.visual.transformer.resblocks, v.encoder.layers)
    blocks(o.transformer.resblocks, t.encoder.layers)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_one_clip_has_one_fingerprint_in_two_libraries(act: str, shaken: Any) -> None:
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
    text = {"context_length": 16, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2.0}
    ours = shaken(open_clip.CLIP(24, vision, text, quick_gelu=act == "quick_gelu"), 0.5)
    act_text, act_vision = {**TEXT, "hidden_act": act}, {**WIDE, **PICTURE, "hidden_act": act}
    config = CLIPConfig(text_config=act_text, vision_config=act_vision, projection_dim=24)
    theirs = CLIPModel(config)
    moved(ours, theirs)
    a, b = open_clip_model(ours), open_hf(theirs)
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        encode(a["image"], pictures), encode(b["image"], pictures), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(encode(a["text"], IDS), encode(b["text"], IDS), rtol=1e-4, atol=1e-5)
    for name in ("image", "text"):
        assert fingerprint(a[name]) == fingerprint(b[name])
    open_clip.model.set_model_preprocess_cfg(ours, asdict(open_clip.transform.PreprocessCfg(size=32)))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    assert preprocessing_of_clip(ours) == preprocessing_of_hf(processor, config.vision_config)
    theirs.vision_model.encoder.layers[1].self_attn.v_proj.bias.data[3] += 0.1
    theirs.text_model.embeddings.position_embedding.weight.data[3] += 0.1
    for name in ("image", "text"):
        assert fingerprint(a[name]) != fingerprint(b[name])


def test_what_cannot_be_opened_is_refused_with_what_can() -> None:
    with pytest.raises(
        ValueError, match=r"BertModel of transformers cannot be opened.*ViTModel.*SiglipModel"
    ):
        open_hf(BertModel(BertConfig(**WIDE, vocab_size=9)))
    eager = ViTModel._from_config(ViTConfig(**WIDE, **PICTURE), attn_implementation="eager")
    with pytest.raises(
        ValueError, match=r"ViTModel was built with 'eager' attention.*attn_implementation='sdpa'"
    ):
        open_hf(eager)
    with pytest.raises(ValueError, match="no pooling head"):
        open_hf(siglip(vision_use_head=False))
    strange = BUILD["ViTModel"]()
    strange.layers[0].attention = nn.Identity()
    with pytest.raises(ValueError, match="whose attention is Identity is none that vpt knows"):
        open_hf(strange)


def test_every_class_that_opens_is_built_here_or_is_a_sibling() -> None:
    assert set(OPENED) - set(BUILD) == {"Dinov2WithRegistersModel"}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's own words."""
    simple = open_clip.get_tokenizer("ViT-B-32")
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {named.get(token, token): i for token, i in simple.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer, shaken: Any) -> Path:
    """Folders as the hub has them: a ViT classifier and a CLIP with its tokenizer."""
    root = tmp_path_factory.mktemp("hf")
    shaken(BUILD["ViTForImageClassification"](), 0.5).save_pretrained(root / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    text = {"vocab_size": 49408, "max_position_embeddings": 20, "bos_token_id": 49406, "eos_token_id": 49407}
    shaken(clip(**text), 0.2).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    return root


def test_a_folder_is_loaded_with_its_preprocessing(folders: Path) -> None:
    backbone = load(f"hf/{folders / 'vit'}")
    model = ViTForImageClassification.from_pretrained(folders / "vit").eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(
            backbone.logits(advance(backbone.image, pictures, {}, "normed")), model(pictures).logits
        )
    assert backbone.preprocessing["crop_mode"] == "squash"
    assert backbone.preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert backbone.label()["libraries"].keys() == {"torch", "transformers"}
    larger = load(f"hf/{folders / 'vit'}", size=48)
    assert larger.preprocess(Image.new("RGB", (50, 40))).shape == (3, 48, 48)
    assert larger.options == {"size": 48}
    assert encode(larger.image, torch.randn(1, 3, 48, 48)).shape == (1, 32)
    with pytest.raises(ValueError, match=r"size=50 is no multiple of the patches.*\(8, 8\)"):
        load(f"hf/{folders / 'vit'}", size=50)
    with pytest.raises(ValueError, match="has no text tower"):
        _ = backbone.text


def test_a_clip_folder_reads_sentences_as_open_clip_does(folders: Path) -> None:
    backbone = load(f"hf/{folders / 'clip'}")
    scale = CLIPModel.from_pretrained(folders / "clip").logit_scale.exp().item()
    assert backbone.scale == pytest.approx(scale)
    assert backbone.bias == 0
    theirs = open_clip.get_tokenizer("ViT-B-32", context_length=20)
    strings = ["a photo of a red-footed booby.", "B-52 (1955)"]
    for ours, want in zip(backbone.tokens(strings), theirs(strings), strict=True):
        end = int(want.argmax()) + 1
        assert ours[:end].tolist() == want[:end].tolist()
    [one, two] = backbone.sentences("<ctx*4> {}.", ["cat", "red_panda"])
    assert one.slots == two.slots == {"<ctx>": (1, 2, 3, 4)}
    assert one.ids[-1] == two.ids[-1] == 49407
    assert backbone.tokens.words("red panda") == theirs.encode("red panda")
    with pytest.raises(ValueError, match=r"'long (.+)' takes 24 tokens with start and end.*20 positions"):
        backbone.tokens.sentence("a {}.", "long " * 20)
    assert fingerprint(backbone.text) == backbone.label()["fingerprints"]["text"]


def test_a_siglip_folder_reads_at_its_full_length(tmp_path: Path, shaken: Any) -> None:
    words = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(["?", "</s>", "a", "red", "cat", "the", "X"])}, unk_token="?"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="</s>", unk_token="?").save_pretrained(tmp_path)
    model = shaken(siglip(), 0.3)
    model.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    backbone = load(f"hf/{tmp_path}")
    assert backbone.bias == pytest.approx(model.logit_bias.item())
    ids = backbone.tokens(["a red cat", "the cat"])
    assert ids[0].tolist() == [2, 3, 4, *[1] * 13]
    with torch.no_grad():
        assert torch.equal(encode(backbone.text, ids), model.eval().get_text_features(ids).pooler_output)
    [sentence] = backbone.sentences("a <ctx*2> {}", ["red cat"])
    assert sentence.ids == (2, 6, 6, 3, 4, *[1] * 11)
    assert sentence.slots == {"<ctx>": (1, 2)}
    with pytest.raises(ValueError, match=r"takes 19 tokens with start and end.*16 positions"):
        backbone.tokens("cat " * 18)


def test_weights_come_from_a_file_or_are_random(folders: Path, tmp_path: Path) -> None:
    name = f"hf/{folders / 'vit'}"
    want = fingerprint(load(name).image)
    state = ViTForImageClassification.from_pretrained(folders / "vit").state_dict()
    random = load(name, pretrained=False)
    assert random.options == {"pretrained": False}
    assert fingerprint(random.image) != want
    save_file(state, tmp_path / "v.safetensors")
    torch.save(state, tmp_path / "v.pth")
    for file in ("v.safetensors", "v.pth"):
        given = load(name, weights=str(tmp_path / file), pretrained=False)
        assert fingerprint(given.image) == want
    kept = {k: v for k, v in state.items() if "mlp.fc1" not in k}
    torch.save(kept, tmp_path / "part.pth")
    with pytest.raises(
        ValueError, match=r"part.pth does not hold the weights of ViTForImage.*4 are missing.*fc1"
    ):
        load(name, weights=str(tmp_path / "part.pth"))
    wrong = {**state, "vit.embeddings.cls_token": torch.zeros(1, 1, 5)}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"wrong.pth does not hold the weights"):
        load(name, weights=str(tmp_path / "wrong.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text.pth is no state dict that can be read safely"):
        load(name, weights=str(tmp_path / "text.pth"))
    with pytest.raises(FileNotFoundError, match=r"there is no weights file 'nowhere.pth'"):
        load(name, weights="nowhere.pth")


def test_a_repository_out_of_reach_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config.json of hf/nobody/nothing is not on this machine.*hf/PATH"):
        load("hf/nobody/nothing")
    with pytest.raises(ValueError, match=r"has no config.json that transformers reads"):
        load(f"hf/{tmp_path}")
    BertConfig(**WIDE, vocab_size=9).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is a 'bert' model.*does not open. Those that open: vit, dinov2.*siglip"
    ):
        load(f"hf/{tmp_path}")
    ViTConfig(**WIDE, **PICTURE).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"the weights of hf/.* are not on this machine.*pretrained=False"):
        load(f"hf/{tmp_path}")
    backbone = load(f"hf/{tmp_path}", pretrained=False)  # no processor: the family's own
    assert backbone.preprocessing["mean"] == [0.5] * 3
    assert backbone.preprocessing["input_size"] == [3, 32, 32]


@pytest.mark.parametrize(
    ("processor", "config"),
    [
        (CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), CLIPConfig()),
        (ViTImageProcessor(size={"height": 32, "width": 32}), ViTConfig()),
        (SiglipImageProcessor(size={"height": 32, "width": 32}), SiglipConfig()),
        (
            BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}),
            Dinov2Config(),
        ),
        (ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False), ViTConfig()),
    ],
    ids=["clip", "vit", "siglip", "dino", "plain"],
)
def test_preprocessing_is_the_processors(processor: Any, config: Any) -> None:
    from timm.data import create_transform

    data = preprocessing_of_hf(processor, getattr(config, "vision_config", config))
    ramp = torch.arange(48 * 60 * 3).view(48, 60, 3).remainder(251).byte().numpy()
    picture = Image.fromarray(ramp).resize((120, 96), Image.Resampling.BICUBIC)
    want = processor(picture, return_tensors="pt").pixel_values[0]
    got = create_transform(**data, is_training=False)(picture)
    assert got.shape == want.shape
    assert (got - want).abs().max() < 0.04  # the processor resizes tensors, which rounds otherwise


def test_preprocessing_that_no_data_config_says_is_refused() -> None:
    config = ViTConfig()
    with pytest.raises(ValueError, match=r"ViTImageProcessor.* does not resize pictures"):
        preprocessing_of_hf(ViTImageProcessor(do_resize=False), config)
    cut = CLIPImageProcessor(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match=re.escape("no crop that timm's data config has")):
        preprocessing_of_hf(cut, config)


def test_usual_preprocessing_is_that_of_the_families_processors() -> None:
    pairs = [
        (ViTImageProcessor(), ViTConfig()),
        (CLIPImageProcessor(), CLIPConfig().vision_config),
        (SiglipImageProcessor(), SiglipConfig().vision_config),
    ]
    for processor, config in pairs:
        usual, said = preprocessing_of_hf(None, config), preprocessing_of_hf(processor, config)
        assert usual == copy.deepcopy(said)
