"""TPT and ZERO: the authors' numbers, pictures side by side, votes, views, and runs that are killed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_case import CASES, FINAL, FINAL_LOGITS, LOSSES, OUT, STEP1, Golden, close
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_golden_clip import backbone as golden_backbone
from torch import Tensor
from torchvision import transforms

from vpt import text as text_module
from vpt.data.module import ImageData
from vpt.data.pictures import seeded
from vpt.encode import encode
from vpt.methods.ivlp import ClipVPT
from vpt.methods.method import Fixed
from vpt.prompt import Context
from vpt.tasks.adapt import adapt, from_words
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.test_time import Adaptation, Adapter, Views, spread, surest, vote
from vpt.tasks.tuned import Tuned
from vpt.text import encode_text, lay
from vpt.towers.backbone import Backbone

TPT = [name for name, case in CASES.items() if case["method"] == "TPT"]
NAMES = ("red square", "green circle", "blue star 3")


def replayed(case: dict[str, Any]) -> Adapter:
    """Our adapter for a recorded case."""
    words = case["prompt"]["ctx_init"].replace("_", " ").replace("[CLS]", "{}")
    picked, rate = case["selection"], case["optimizer"]
    rule = Adaptation(
        "tpt", picked["views"], picked["fraction"], rate["steps"], rate["lr"], rate["weight_decay"]
    )
    return Adapter(from_words(golden_backbone(), case["classes"]["names_used"], words), rule)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("name", TPT)
def test_the_authors_numbers(name: str, side: int) -> None:
    """side: how many pictures adapt beside each other; the recorded one is the last."""
    golden, adapter = Golden(CASES[name]), replayed(CASES[name])
    (start,) = adapter.start.values()
    close(start, golden["init.ctx"], 1e-6, "start from words")
    images = golden["input.images"][None]
    others = torch.randn(side - 1, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    features = adapter.features(torch.cat([others, images]))
    close(features[-1], golden["out.image_features"], OUT, "image features")
    close(adapter.first, golden["out.text_features"], OUT, "text features")
    before = adapter.compare(features, adapter.first.detach())
    close(before[-1], golden["out.logits"], OUT, "logits")
    close(before[-1, :1], golden["out.logits_before"], OUT, "logits of the picture")
    chosen = surest(before, adapter.rule.kept)
    assert torch.equal(chosen[-1], golden["out.selected"])
    rows = {site: r.detach().expand(side, -1, -1).clone() for site, r in adapter.start.items()}
    loss = adapter._start_gradients(features.take_along_dim(chosen[..., None], 1), rows)
    close(loss[-1], golden["out.loss"], OUT, "loss")
    (grad,) = [r.grad[-1] for r in rows.values()]
    close(grad, golden["grad.ctx"], OUT * golden["grad.ctx"].abs().max().item(), "gradient")
    done = adapter.tune(features)
    (ctx,) = done.rows.values()
    close(done.losses[:, -1], golden["train.losses"], LOSSES, "losses")
    close(ctx[-1], golden["final.ctx"], FINAL, "adapted rows")
    if len(done.losses) == 1:
        close(ctx[-1], golden["step1.ctx"], STEP1, "rows after a step")
    assert done.logits is not None
    close(done.logits[-1:], golden["final.logits_after"], FINAL_LOGITS, "logits afterwards")
    towers = golden_backbone().towers.values()
    assert all(p.grad is None for tower in towers for p in tower.model.parameters())


def plainly(learner: Learner, rule: Adaptation, images: Tensor) -> tuple[Tensor, Tensor]:
    """TPT of one picture the plain way: unpacked sentences, the library's optimiser, everything once a step."""
    b = learner.speech._backbone
    method = learner.method
    rows = {s: r.detach().clone().requires_grad_() for s, r in method(Context()).items() if s.tower == "text"}
    streams = lay(b.text, b.sentences(method.sentence, NAMES, grouped=method.class_specific), packed=False)
    image = F.normalize(encode(b.image, images).detach(), dim=-1)
    optimizer = torch.optim.AdamW(rows.values(), lr=rule.lr, weight_decay=rule.weight_decay)

    def logits() -> Tensor:
        return b.scale * image @ F.normalize(encode_text(b.text, streams, rows), dim=-1).T

    chosen: Any = None
    for _ in range(rule.steps):
        p = logits().softmax(-1)
        if chosen is None:
            chosen = (-(p * p.log()).sum(-1)).argsort()[: rule.kept]
        mean = p[chosen].mean(0)
        loss = -(mean * mean.log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits()[0].detach(), torch.cat([r.detach().flatten() for r in rows.values()])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("coop", {"length": 3, "place": "middle"}),
        ("coop", {"length": 2, "class_specific": True}),
        ("ivlp", {"image_length": 0, "layers": 2}),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_side_by_side_is_one_by_one(
    name: str, options: dict[str, Any], steps: int, tiny_clip: Backbone
) -> None:
    torch.manual_seed(3)
    learner = Learner(build_method(name, tiny_clip, options, classes=3), tiny_clip, NAMES)
    rule = Adaptation("tpt", 6, 0.5, steps=steps, lr=0.02)
    images = torch.randn(4, 6, 3, 32, 32)
    together = Adapter(learner, rule)(images)
    alone = Adapter(learner, rule)(images[2:3])
    assert together.logits is not None
    assert alone.logits is not None
    torch.testing.assert_close(together.logits[2:3], alone.logits, rtol=0, atol=1e-5)
    assert (together.logits[1] - together.logits[2]).abs().max() > 1e-3, "pictures go their own ways"
    for i in range(4):
        wanted, rows = plainly(learner, rule, images[i])
        torch.testing.assert_close(together.logits[i], wanted, rtol=0, atol=1e-4)
        found = torch.cat([r[i].flatten() for r in together.rows.values()])
        torch.testing.assert_close(found, rows, rtol=0, atol=1e-5)


def test_the_first_pass_over_the_names_is_made_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Adapter(from_words(tiny_clip, NAMES), Adaptation("tpt", 4, 0.5))
    passes: list[int | None] = []
    inner = adapter._texts

    def counted(rows: Any, sets: int | None = None) -> Tensor:
        passes.append(sets)
        return inner(rows, sets)

    monkeypatch.setattr(adapter, "_texts", counted)
    for _ in range(3):
        adapter(torch.randn(2, 4, 3, 32, 32))
    assert passes == [None, 2, 2, 2]


def test_recomputed_graphs_serve_every_picture(tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    images, rule = torch.randn(3, 4, 3, 32, 32), Adaptation("tpt", 4, 0.5, steps=2, lr=0.05)
    wanted = Adapter(from_words(tiny_clip, NAMES), rule)(images)
    monkeypatch.setattr(text_module, "GRAPH", 0)
    learner = from_words(tiny_clip, NAMES)
    b = tiny_clip
    learner._kept["streams"] = lay(b.text, b.sentences(learner.method.sentence, NAMES), group=8)
    assert len(learner.streams()) > 1
    found = Adapter(learner, rule)(images)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-5)


def test_image_rows_stay_and_words_stand_around_the_name(tiny_clip: Backbone) -> None:
    method = build_method("maple", tiny_clip, {"length": 2})
    images = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        rows = {s: r for s, r in method(Context()).items() if s.tower == "image"}
    adapter = Adapter(Learner(method, tiny_clip, NAMES), Adaptation("tpt", 4, 0.5))
    torch.testing.assert_close(adapter.features(images)[1], encode(tiny_clip.image, images[1], rows))
    assert all(site.tower == "text" for site in adapter(images).rows)
    for words, sentence in (
        ("a photo of a", "<ctx*4> {}."),
        ("a blurry {} in the wild", "<ctx*2> {} <ctx*3>."),
        ("{} texture", "{} <ctx*1>."),
        ("my {}", "<ctx*1> {}."),
    ):
        learner = from_words(tiny_clip, NAMES, words)
        assert learner.method.sentence == sentence
        said = (words if "{}" in words else words + " {}") + "."
        streams = lay(tiny_clip.text, tiny_clip.sentences(said, NAMES))
        torch.testing.assert_close(learner.texts(), encode_text(tiny_clip.text, streams, {}))
    with pytest.raises(ValueError, match="are none"):
        from_words(tiny_clip, NAMES, " {} ")


def counted(logits: Tensor, kept: int) -> int:
    """ZERO by counting, in plain Python."""
    p = logits.double().softmax(-1)
    order = sorted(range(len(p)), key=lambda i: -sum(float(x) * float(x.log()) for x in p[i]))
    says = [int(logits[i].argmax()) for i in order]
    votes = Counter(says[:kept])
    most = [c for c in sorted(votes) if votes[c] == max(votes.values())]
    for named in says[kept:]:
        if len(most) > 1 and named in most:
            return named
    first = logits[order[min(kept, len(order) - 1)]]
    return max(most, key=lambda c: (float(first[c]), -c))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 5), st.data())
def test_votes_are_those_of_counting(seed: int, views: int, classes: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, views))
    logits = torch.randn(views, classes, generator=torch.Generator().manual_seed(seed)) * 3
    shares = vote(logits, kept)
    assert int(shares.argmax()) == counted(logits, kept)
    assert abs(float(shares.sum()) - 1) < 1e-5
    assert torch.equal(vote(logits[None], kept)[0], shares)


def test_ties_are_broken_by_the_views_that_were_left_out() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 8.0, 0], [0, 0, 7.0], [0, 5.0, 0], [6.0, 0, 0]])
    assert vote(logits, 2).argmax() == 0  # the third names neither, the fifth is surer than the fourth
    assert vote(logits, 3).argmax() == 0
    assert vote(logits[:4], 2).argmax() == 1
    assert vote(logits[:3], 2).tolist()[:2] == [pytest.approx(0.5), 0.5]


def test_spread_is_the_entropy_of_the_mean() -> None:
    logits = torch.randn(2, 5, 4)
    mean = logits.softmax(-1).mean(1)
    torch.testing.assert_close(spread(logits), -(mean * mean.log()).sum(-1))


def test_views_are_the_picture_and_crops_that_follow_from_the_seed(tiny_clip: Backbone) -> None:
    noise = torch.randint(0, 256, (40, 52, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    make = Views(tiny_clip.preprocessing, 3)
    with seeded("view", 1, 0, "a"):
        got = make(picture)
    with seeded("view", 1, 0, "a"):
        again = make(picture)
    with seeded("view", 1, 0, "b"):
        other = make(picture)
    assert torch.equal(got, again)
    assert torch.equal(got[0], tiny_clip.preprocess(picture))
    assert torch.equal(got[0], other[0])
    assert not torch.equal(got[1:], other[1:])
    mean, std = tiny_clip.preprocessing["mean"], tiny_clip.preprocessing["std"]
    with seeded("view", 1, 0, "a"):
        crop = transforms.RandomHorizontalFlip()(transforms.RandomResizedCrop(32)(picture))
    plain = transforms.Normalize(mean, std)(transforms.ToTensor()(crop))
    assert torch.equal(got[1], plain)


def test_zero_votes_with_any_learner_and_tpt_says_what_it_cannot_adapt(tiny_clip: Backbone) -> None:
    cocoop = Learner(build_method("cocoop", tiny_clip, {"words": "", "length": 2}), tiny_clip, NAMES)
    images = torch.randn(2, 5, 3, 32, 32)
    done = Adapter(cocoop, Adaptation("zero", 5, 0.6))(images)
    with torch.no_grad():
        logits = cocoop.eval()(images[1])
    assert int(done.scores[1].argmax()) == counted(logits, 3)
    torch.testing.assert_close(done.before[1], logits)
    with pytest.raises(ValueError, match="CoCoOp makes or reads its own"):
        Adapter(cocoop, Adaptation("tpt"))
    image = ClipVPT(tiny_clip.image, tiny_clip.text, tiny_clip.tokens, length=1, layers=1)
    with pytest.raises(ValueError, match="no rows in the text tower"):
        Adapter(Learner(image, tiny_clip, NAMES), Adaptation("tpt"))
    with pytest.raises(ValueError, match="head in place of class names"):
        Adapter(Learner(Fixed({}), tiny_clip, NAMES), Adaptation("zero"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "tent"}, "no test-time method 'tent'.*tpt, zero"),
        ({"views": 8}, "8 views of which 0.1 are kept leave 0"),
        ({"views": 8, "fraction": 1.5}, "1.5 are kept"),
        ({"steps": 0}, "steps 0"),
        ({"lr": 0.0}, "lr 0.0"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Adaptation(**options)
    assert (Adaptation().kept, Adaptation("zero").kept) == (6, 19)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, paint: Callable[..., Path]) -> Callable[..., ImageData]:
    root = paint(tmp_path_factory.mktemp("adapt"), {"train": 1, "test": 3}, noise=60)
    return lambda **options: ImageData(str(root), val=0, **options)


RULE = Adaptation("tpt", 4, 0.5, lr=0.05)


def test_a_run_measures_and_goes_on_where_it_was_killed(
    tiny_clip: Backbone, data: Callable[..., ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "r.jsonl"
    whole = adapt(tiny_clip, data(), RULE, out=out, side=2, progress=False, device="cpu")
    text = out.read_bytes()
    assert len(text.splitlines()) == 1 + 9
    assert whole.metrics[0].keys() == {"name", "value", "split", "count", "seed"}
    right = [r["classes"][0] == r["label"] for r in whole.pictures]
    assert {m["name"]: m["value"] for m in whole.metrics}["top1"] == pytest.approx(sum(right) / 9)
    said = whole.protocol
    assert (said["task"], said["views"], said["fraction"], said["seed"]) == ("test-time", 4, 0.5, 1)
    assert said["start"] == {"words": "a photo of a"}
    out.write_bytes(b"\n".join(text.splitlines()[:4]) + b'\n{"key": "te')  # killed in the middle of a line
    seen: list[int] = []
    call = Adapter.__call__
    monkeypatch.setattr(
        Adapter, "__call__", lambda self, images: (seen.append(len(images)), call(self, images))[1]
    )
    again = adapt(tiny_clip, data(), RULE, out=out, side=2, progress=False, device="cpu")
    assert seen == [2, 2, 2, 1], "of five pairs one was there whole"
    assert again.metrics == whole.metrics
    assert sorted(out.read_bytes().splitlines()) == sorted(text.splitlines())
    alone = adapt(tiny_clip, data(), RULE, side=1, progress=False, device="cpu")
    for a, b in zip(alone.pictures, whole.pictures, strict=True):
        assert a["classes"] == b["classes"]
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_a_file_of_other_settings_is_refused(
    tiny_clip: Backbone, data: Callable[..., ImageData], tmp_path: Path
) -> None:
    out = tmp_path / "r.jsonl"
    adapt(tiny_clip, data(), RULE, out=out, progress=False, device="cpu")
    before = out.read_bytes()
    with pytest.raises(ValueError, match="another protocol"):
        adapt(tiny_clip, data(seed=2), RULE, out=out, progress=False, device="cpu")
    with pytest.raises(ValueError, match="another protocol, rows"):
        adapt(tiny_clip, data(), RULE, start="the", out=out, progress=False, device="cpu")
    assert out.read_bytes() == before
    out.write_text("no json\n")
    with pytest.raises(ValueError, match="no file of such results"):
        adapt(tiny_clip, data(), RULE, out=out, progress=False, device="cpu")


def test_a_prompt_is_a_start_and_names_the_classes_of_the_data(
    tiny_clip: Backbone, data: Callable[..., ImageData]
) -> None:
    learner = Learner(build_method("coop", tiny_clip, {"length": 2}), tiny_clip, NAMES)
    label = {
        "kind": "prompt set",
        "method": {"name": "coop", "options": {"length": 2}},
        "classes": list(NAMES),
    }
    start = Tuned(tiny_clip, learner.export({**label, "backbone": tiny_clip.label()}))
    for method in ("tpt", "zero"):
        rule = Adaptation(method, 4, 0.5)  # type: ignore[arg-type]
        done = adapt(tiny_clip, data(), rule, start=start, progress=False, device="cpu")
        assert done.protocol["start"]["classes"] == "others"
        assert done.protocol["start"]["method"]["name"] == "coop"
        assert {len(r["classes"]) for r in done.pictures} == {3}
