"""Class names in sentences, against open_clip's classifier and plain loops."""

import json
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpt.encode import encode
from vpt.methods.baselines.zero_shot import Descriptions, Waffle
from vpt.methods.templates import ensemble
from vpt.tasks.learner import Learner, build_method
from vpt.tasks.tuned import Tuned, load_prompts
from vpt.towers.backbone import Backbone

NAMES = ("red_square", "green circle", "star")
TOLD = {
    "Red Square": ["a square that is red.", "it has four corners."],
    "green_circle": ["round and green."],
    "star": ["it shines.", "five points {}.", "a <ctx*2> thing."],
    "moon": ["it shines, too."],
}


def learner(name: str, backbone: Backbone, **options: object) -> Learner:
    made = Learner(build_method(name, backbone, options, classes=len(NAMES)), backbone, NAMES)
    return made.requires_grad_(False).eval()


def plainly(backbone: Backbone, sentences: list[str]) -> Tensor:
    """Normalised features, one sentence at a time at its full length."""
    return F.normalize(torch.cat([encode(backbone.text, backbone.tokens(s)) for s in sentences]), dim=-1)


def logits(backbone: Backbone, images: Tensor, texts: Tensor) -> Tensor:
    return backbone.scale * F.normalize(encode(backbone.image, images), dim=-1) @ texts.mT


def test_an_ensemble_is_open_clips_classifier(tiny_clip: Backbone, images: Tensor) -> None:
    model = SimpleNamespace(
        encode_text=lambda ids, normalize: F.normalize(encode(tiny_clip.text, ids), dim=-1, p=2)
    )
    names = [name.replace("_", " ") for name in NAMES]
    templates = open_clip.SIMPLE_IMAGENET_TEMPLATES
    with torch.no_grad():
        want = open_clip.build_zero_shot_classifier(model, tiny_clip.tokens, names, templates).T
    made = learner("zero-shot-ensemble", tiny_clip, templates="imagenet-7")
    assert torch.allclose(made.texts(), want, atol=1e-5)
    assert torch.allclose(made(images), logits(tiny_clip, images, want), atol=1e-4)
    assert len(learner("zero-shot-ensemble", tiny_clip).method.templates) == 80  # type: ignore[arg-type]


def test_one_template_is_said_as_it_stands(tiny_clip: Backbone, images: Tensor) -> None:
    want = plainly(tiny_clip, [f"{name} here." for name in ("red square", "green circle", "star")])
    made = learner("zero-shot", tiny_clip, template="{} here.")
    assert torch.allclose(made(images), logits(tiny_clip, images, want), atol=1e-4)
    assert not made.learned()
    with pytest.raises(ValueError, match=r"'a photo' has no \{\} where"):
        build_method("zero-shot", tiny_clip, {"template": "a photo"})
    with pytest.raises(ValueError, match=r"no templates 'many'.*imagenet-80"):
        build_method("zero-shot", tiny_clip, {"templates": "many"})


@pytest.mark.parametrize("templates", ["", "imagenet-7"])
def test_descriptions_are_averaged_alone_or_with_templates(
    templates: str, tiny_clip: Backbone, images: Tensor
) -> None:
    rows = []
    for name, told in zip(("red square", "green circle", "star"), TOLD.values(), strict=False):
        more = [t.replace("{}", name) for t in ensemble(templates)] if templates else []
        rows.append(F.normalize(plainly(tiny_clip, [*told, *more]).mean(0), dim=-1))
    made = learner("zero-shot-descriptions", tiny_clip, descriptions=TOLD, templates=templates)
    assert torch.allclose(made(images), logits(tiny_clip, images, torch.stack(rows)), atol=1e-4)


def test_the_file_holds_the_sentences(tiny_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    told.write_text(json.dumps(TOLD))
    made = learner("zero-shot-descriptions", tiny_clip, descriptions=str(told))
    label = {
        "kind": "baseline",
        "method": {"name": "zero-shot-descriptions", "options": dict(made.method.kept)},
        "classes": list(NAMES),
        "backbone": tiny_clip.label(),
    }
    made.export(label).save(tmp_path / "b.safetensors")
    told.unlink()
    back = load_prompts(tmp_path / "b.safetensors", tiny_clip, device="cpu")
    assert torch.allclose(back.logits(images), made(images), atol=1e-5)
    text = back.encode_text(["moon", "star"], normalize=True)
    assert torch.allclose(text[1], made.texts()[2], atol=1e-5)
    assert torch.allclose(text[:1], plainly(tiny_clip, TOLD["moon"]), atol=1e-5)
    assert torch.allclose(
        back.with_classes(["moon"]).logits(images), logits(tiny_clip, images, text[:1]), atol=1e-4
    )


def test_descriptions_that_cannot_be_used_are_refused(tiny_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"descriptions are missing\. Give a JSON file"):
        Descriptions()
    with pytest.raises(ValueError, match=r"none.json cannot be read \(No such file"):
        Descriptions(descriptions=str(tmp_path / "none.json"))
    for content, match in (
        ("{", "is no JSON"),
        ("[]", "are a list, wanted class names"),
        ("{}", "wanted class names"),
        ('{"star": "a star"}', "say 'a star' of 'star', wanted a list"),
        ('{"star": []}', "wanted a list of sentences"),
        ('{"star": [3]}', "wanted a list of sentences"),
    ):
        (tmp_path / "told.json").write_text(content)
        with pytest.raises(ValueError, match=match):
            Descriptions(descriptions=str(tmp_path / "told.json"))
    made = learner("zero-shot-descriptions", tiny_clip, descriptions={"star": ["it shines."]})
    with pytest.raises(ValueError, match=r"lack 2 of 3 classes: red_square, green circle\. Give"):
        made.texts()


def test_waffle_is_the_mean_of_cosines(tiny_clip: Backbone, images: Tensor) -> None:
    made = learner("waffle", tiny_clip, words=3, letters=2, seed=5)
    method = made.method
    assert isinstance(method, Waffle)
    templates = method.sentences(NAMES)
    v = F.normalize(encode(tiny_clip.image, images), dim=-1)
    names = [name.replace("_", " ") for name in NAMES]
    each = [v @ plainly(tiny_clip, [t.replace("{}", n) for n in names]).mT for t in templates]
    mean = torch.stack(each).mean(0)
    assert torch.allclose(made(images), tiny_clip.scale * mean, atol=1e-4)
    assert made.texts().norm(dim=-1).max() < 0.9999, "the mean is not brought to length 1"


def test_waffles_words_are_as_long_as_names() -> None:
    made = Waffle(words=20, letters=10, seed=1)
    sentences = made.sentences(("red_square", "blue moon"))  # two words of 4.5 letters on average
    assert len(set(sentences)) == 30
    assert all(s.startswith("A photo of a {}, which ") and s.endswith(".") for s in sentences)
    for s in sentences[:20]:
        said = s[:-1].split(", which ")[1].removeprefix("has ").removeprefix("is ").split(" ")
        assert len(said) == 2
        assert all(3 <= len(word) <= 4 for word in said)
    for s in sentences[20:]:  # longest words 6 and 4 letters, rounded up 5, over two groups
        said = s[:-1].split(", which ")[1].removeprefix("has ").removeprefix("is ").split(", ")
        assert [len(part) for part in said] == [3, 3]
    assert sentences == Waffle(words=20, letters=10, seed=1).sentences(("red_square", "blue moon"))
    assert sentences != Waffle(words=20, letters=10, seed=2).sentences(("red_square", "blue moon"))
    with pytest.raises(ValueError, match="not both 0"):
        Waffle(words=0, letters=0)


def test_a_saved_waffle_says_the_same(tiny_clip: Backbone, images: Tensor) -> None:
    made = learner("waffle", tiny_clip, words=2, letters=2, seed=3)
    label = {
        "kind": "baseline",
        "method": {"name": "waffle", "options": {"words": 2, "letters": 2, "seed": 3}},
        "classes": list(NAMES),
    }
    assert torch.allclose(Tuned(tiny_clip, made.export(label)).logits(images), made(images), atol=1e-5)
