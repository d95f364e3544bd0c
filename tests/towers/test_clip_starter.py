"""The clip-mini that ships with the package: its file, its tokenizer, and that it knows what it sees."""

import gzip
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, get_model_preprocess_cfg
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

from vpt.data.scenes import draw, kinds, scene
from vpt.towers.starter import CLIP_STARTERS
from vpt.towers.starter import clip_mini as starter
from vpt.towers.starter.vit_mini import load_vit_mini


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they do on a net this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded():
    return CLIP_STARTERS["clip-mini"]()


def see(loaded, pictures):
    model, _, facts = loaded
    prepare = create_transform(**facts)
    with torch.no_grad():
        return model.encode_image(torch.stack([prepare(p) for p in pictures]), normalize=True)


def read(loaded, texts):
    model, tokenizer, _ = loaded
    with torch.no_grad():
        return model.encode_text(tokenizer(texts), normalize=True)


def test_it_is_an_open_clip_model_whose_frozen_part_is_vit_mini(loaded):
    model, _, facts = loaded
    assert type(model) is CLIP
    assert not model.training
    ours, theirs = model.visual.trunk.state_dict(), load_vit_mini().state_dict()
    shared = [n for n in ours if not starter.owns(f"visual.trunk.{n}")]
    assert all(torch.equal(ours[n], theirs[n]) for n in shared)
    assert sum(n.startswith(f"blocks.{starter.FROZEN_BLOCKS - 1}.") for n in shared) > 5
    assert get_model_preprocess_cfg(model)["size"] in (96, (96, 96))
    assert facts["mean"] == list(get_model_preprocess_cfg(model)["mean"]) == [0.5] * 3


def test_every_tensor_of_the_file_has_its_place(loaded):
    model, _, _ = loaded
    file = load_file(starter.WEIGHTS)
    state = {n: t for n, t in model.state_dict().items() if starter.owns(n)}
    assert file.keys() == state.keys()
    assert all(t.dtype == torch.float16 and torch.equal(state[n], t.float()) for n, t in file.items())
    assert starter.WEIGHTS.stat().st_size <= 12_000_000
    assert 1 < model.logit_scale.exp() <= 100


def test_missing_files_are_named(monkeypatch):
    monkeypatch.setattr(starter, "WEIGHTS", Path("nowhere/clip-mini.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/clip-mini\.safetensors.*install it again"):
        starter.load_clip_mini()


def test_the_tokenizer_is_clips_own_cut_short(loaded):
    _, ours, _ = loaded
    full = open_clip.SimpleTokenizer()
    merges = gzip.decompress(starter.MERGES.read_bytes()).decode().split("\n")
    whole = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    assert merges == whole[: len(merges)]
    assert ours.vocab_size == 8000 == 512 + len(merges) - 1 + 2
    for text in ("a photo of a dog.", "a red circle left of a blue square", "there is a large green star"):
        assert [ours.decoder[i] for i in ours.encode(text)] == [full.decoder[i] for i in full.encode(text)]
        assert ours.encode(text) == full.encode(text)  # entries before the cut keep their numbers
    rare = "a photo of a platypus, 日本 café!"
    assert ours.decode(ours.encode(rare)).split() == full.decode(full.encode(rare)).split()
    assert len(ours.encode(rare)) > len(full.encode(rare))


def test_the_end_token_has_the_highest_id(loaded):
    model, tokenizer, _ = loaded
    ids = tokenizer(["a photo of a cat.", "x " * 100, ""])
    assert ids.shape == (3, model.context_length) == (3, 77)
    assert (ids[torch.arange(3), ids.argmax(1)] == tokenizer.eot_token_id).all()
    assert tokenizer.eot_token_id == model.vocab_size - 1
    assert ids.argmax(1).tolist() == [len(tokenizer.encode("a photo of a cat.")) + 1, 76, 1]
    with torch.no_grad():
        padded = ids.clone()
        padded[0, ids[0].argmax() + 1 :] = 5  # nothing behind the end token is read
        assert torch.equal(model.encode_text(ids)[0], model.encode_text(padded)[0])


def test_it_names_emoji_that_it_never_saw(loaded):
    """Pictures and names of the bundled test emoji were held out of training; by chance, 1 in 67 is right."""
    folder = files("vpt.data") / "emoji" / "test"
    shown = [
        f
        for kind in ("mammal", "fruit or vegetable", "ground vehicle", "building")
        for f in (folder / kind).iterdir()
    ]
    shown = sorted(f for f in shown if f.name.endswith(".webp"))
    names = [f.name.removesuffix(".webp").replace("-", " ") for f in shown]
    similarity = see(loaded, [Image.open(f.open("rb")).convert("RGB") for f in shown]) @ read(loaded, names).T
    hits = similarity.topk(5, 1).indices == torch.arange(len(shown))[:, None]
    assert hits.any(1).float().mean() > 3 * 5 / len(shown)


def test_words_of_like_meaning_lie_together(loaded):
    dog, puppy, car, truck = read(loaded, ["a photo of a dog.", "puppy", "a photo of a car.", "a truck"])
    assert dog @ puppy > dog @ car + 0.2
    assert car @ truck > car @ dog + 0.2


def test_it_tells_scenes_apart_whose_arrangements_it_never_saw(loaded):
    chosen = kinds(held_out=True)[:24]
    pictures = see(loaded, [draw(scene(5, i, kind=kind)) for i, kind in enumerate(chosen)])
    told = read(loaded, [str(kind) for kind in chosen])
    assert ((pictures @ told.T).argmax(1) == torch.arange(24)).float().mean() > 0.6
    turned = read(loaded, [str(kind.turned()) for kind in chosen])
    assert ((pictures * told).sum(1) > (pictures * turned).sum(1)).float().mean() > 0.6
