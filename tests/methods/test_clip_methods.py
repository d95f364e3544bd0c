"""What the CLIP methods share: they train on stored features, are saved, read back, and take other names."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vpt.methods.prograd import ProGrad
from vpt.methods.promptsrc import gaussian
from vpt.promptset import PromptSet
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.tuned import Tuned, load_prompts
from vpt.towers.backbone import Backbone

NAMES = ("red_square", "green circle", "blue star 3")
LEARNED = (
    "coop",
    "cocoop",
    "kgcoop",
    "prograd",
    "clip-vpt",
    "ivlp",
    "ivlp-low-rank",
    "maple",
    "promptsrc",
    "mmrl",
)
WHOLE = ("cocoop", "mmrl")


def learner(name: str, backbone: Backbone, **options: object) -> Learner:
    return Learner(build_method(name, backbone, options, classes=len(NAMES)), backbone, NAMES)


def about(name: str, backbone: Backbone, **options: object) -> dict[str, object]:
    return {
        "kind": "prompt set",
        "method": {"name": name, "options": options},
        "classes": list(NAMES),
        "backbone": backbone.label(),
    }


@pytest.mark.parametrize("name", [*LEARNED, "clip-pixel"])
def test_a_saved_prompt_says_what_its_learner_said(name: str, tiny_clip: Backbone, tmp_path: Path) -> None:
    made = learner(name, tiny_clip).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    made.eval()
    want = made(images).detach()
    prompts = made.export(about(name, tiny_clip))
    prompts.save(tmp_path / "p.safetensors")
    back = load_prompts(tmp_path / "p.safetensors", tiny_clip)
    assert torch.allclose(back.logits(images), want, atol=1e-5)
    assert bool(back.prompts.method) == (name in WHOLE), "plain rows are kept as rows"


def test_other_names_get_other_features_from_the_same_rows(tiny_clip: Backbone) -> None:
    made = learner("maple", tiny_clip)
    tuned = Tuned(tiny_clip, made.export(about("maple", tiny_clip)))
    images = torch.randn(4, 3, 32, 32)
    other = tuned.with_classes(["dog", "red_square"])
    assert other.classes == ("dog", "red_square")
    assert torch.allclose(other.logits(images)[:, 1], tuned.logits(images)[:, 0], atol=1e-4)
    text = tuned.encode_text(["dog", "red square"], normalize=True)
    v = tuned.encode_image(images, normalize=True)
    assert torch.allclose(tiny_clip.scale * v @ text.mT, other.logits(images), atol=1e-4)
    with pytest.raises(ValueError, match="names must differ"):
        tuned.with_classes(["dog", "dog"])


def test_class_specific_rows_and_heads_keep_their_classes(tiny_clip: Backbone) -> None:
    made = learner("coop", tiny_clip, class_specific=True, length=2)
    label = about("coop", tiny_clip, class_specific=True, length=2)
    tuned = Tuned(tiny_clip, made.export(label))
    assert next(iter(tuned.rows.values())).shape == (3, 2, 24)
    with pytest.raises(ValueError, match="class-specific rows for its 3 classes"):
        tuned.with_classes(["dog"])
    with pytest.raises(ValueError, match="belong to a picture or to one class"):
        tuned.encode_text("dog")


def test_a_method_that_reads_names_needs_a_text_tower(tower: object) -> None:
    with pytest.raises(ValueError, match="no text tower"):
        build_method("coop", Backbone("plain", {"image": tower}, {}, "timm"))  # type: ignore[dict-item]


def test_prograd_projects_where_gradients_conflict(tiny_clip: Backbone) -> None:
    made = learner("prograd", tiny_clip, length=4, strength=0.7).train()
    method, target = made.method, torch.tensor([0, 1, 2, 1])
    assert isinstance(method, ProGrad)
    seen = made.see(torch.randn(4, 3, 32, 32))
    parts = method.losses(seen, lambda logits: F.cross_entropy(logits, target))
    rows = method.text_prompt.table.rows
    for sign in (1, -1):  # the second time the divergence pulls the other way: one of the two conflicts
        losses = {"task": parts["task"], "stray": sign * parts["stray"]}
        (g,), (k,) = (torch.autograd.grad(losses[n], rows, retain_graph=True) for n in ("task", "stray"))
        total = method.total(losses)
        (got,) = torch.autograd.grad(total, rows, retain_graph=True)
        inner = (g * k).sum()
        want = g if inner >= 0 else g - 0.7 * inner / (k * k).sum() * k
        assert torch.allclose(got, want, atol=1e-6 * float(g.abs().max()) + 1e-8)
        assert torch.isclose(total, losses["task"])


def test_prograds_words_fill_the_last_rows(tiny_clip: Backbone) -> None:
    method = build_method("prograd", tiny_clip, {"length": 6, "words": "a photo of"})
    rows = method.text_prompt.table.rows[0]  # type: ignore[union-attr,operator]
    assert torch.equal(rows[3:], tiny_clip.tokens.embed("a photo of"))
    assert not rows[:3].any()


def test_the_log_says_how_names_are_read(tiny_clip: Backbone) -> None:
    """Packed: the start token and 16 rows once, then each name with what stands behind it."""
    ends = [len(tiny_clip.tokens.sentence(f"{name.replace('_', ' ')}.").ids) - 1 for name in NAMES]
    told = learner("coop", tiny_clip).layout()
    assert told == f"3 names in '<ctx*16> {{}}.', packed into 1 row: {1 + 16 + sum(ends)} tokens of {3 * 77}"
    plain = Learner(build_method("coop", tiny_clip, {}, classes=3), tiny_clip, NAMES, packed=False)
    assert plain.layout() == "3 names in '<ctx*16> {}.', read whole: 231 tokens of 231"
    assert learner("clip-vpt", tiny_clip).layout()
    assert not Learner(build_method("linear", tiny_clip, {}, classes=3), tiny_clip, NAMES).layout()


@pytest.mark.parametrize(("name", "usual"), [("coop", 16), ("kgcoop", 4), ("cocoop", 4)])
def test_words_and_length_agree_or_are_refused(tiny_clip: Backbone, name: str, usual: int) -> None:
    for options, rows in (
        ({"words": ""}, usual),
        ({"words": "", "length": 5}, 5),
        ({"words": "a photo of"}, 3),
        ({"words": "a photo of", "length": 3}, 3),
    ):
        assert build_method(name, tiny_clip, options).text_prompt.table.rows.shape[1] == rows, options  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"length is 8, and the words 'a photo of' .* are 3 tokens"):
        build_method(name, tiny_clip, {"words": "a photo of", "length": 8})


def test_the_average_of_promptsrc_resumes(tiny_clip: Backbone) -> None:
    def trained(stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        made = learner("promptsrc", tiny_clip, layers=1, image_layers=1, mean=2, std=1)
        for epoch in (1, 2, 3):
            with torch.no_grad():
                made.method.text_prompt.table.rows.fill_(float(epoch))  # type: ignore[union-attr]
            made.method.after_epoch(epoch, 3, made.tower, tuple, None)
            if epoch == stop:
                state = made.learned()
                made = learner("promptsrc", tiny_clip, layers=1, image_layers=1, mean=2, std=1)
                made.load_state_dict(state, strict=False)
        return made.method.text_prompt.table.rows.detach()  # type: ignore[union-attr]

    weights = gaussian(3, 2, 1)
    want = sum(w * e for w, e in zip(weights, (1, 2, 3), strict=True))
    assert torch.allclose(trained(None), torch.full((1,), want))
    assert torch.equal(trained(2), trained(None))


def test_prompt_sets_of_two_towers_are_averaged(tiny_clip: Backbone) -> None:
    from vpt.promptset import average

    sets = [learner("ivlp", tiny_clip).export(about("ivlp", tiny_clip)) for _ in range(2)]
    mean: PromptSet = average(sets)
    site = next(iter(mean.rows))
    assert torch.allclose(mean.rows[site], (sets[0].rows[site] + sets[1].rows[site]) / 2)
