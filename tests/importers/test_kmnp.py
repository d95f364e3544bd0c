"""Checkpoints of the original VPT code, made here in its format, against the rows that they should give."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vpt.encode import encode
from vpt.importers import import_prompts, read_vpt_checkpoint
from vpt.methods.vpt import VPT
from vpt.prompt import Context, Site
from vpt.promptset import PromptSet
from vpt.tower import Tower
from vpt.towers.vit import open_timm, tiny

FIRST, DEEP = torch.randn(1, 4, 32), torch.randn(2, 4, 32)


@dataclass
class Backbone:
    image: Tower
    preprocessing: Mapping[str, Any]

    def label(self) -> dict[str, Any]:
        return {"name": "timm/tiny", "fingerprints": {}}


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(tiny(), {"input_size": [3, 32, 32]})


def state(stem: str = "enc.transformer.", head: bool = True, **more: Tensor) -> dict[str, Tensor]:
    """A state dict as the authors' model has it, frozen weights included."""
    found = {f"{stem}encoder.layer.0.ffn.fc1.weight": torch.ones(2, 2), f"{stem}prompt_embeddings": FIRST}
    found[f"{stem}deep_prompt_embeddings"] = DEEP
    if head:
        found |= {"head.last_layer.weight": torch.randn(5, 32), "head.last_layer.bias": torch.randn(5)}
    return found | more


def rows_of(found: dict[Site, Tensor]) -> Tensor:
    assert list(found) == [Site("image", str(i), "prefix") for i in range(len(found))]
    return torch.stack(list(found.values()))


def test_prompt_files_of_numpy_arrays(tmp_path: Path) -> None:
    path = tmp_path / "prompt_ep10.pth"
    torch.save({"shallow_prompt": FIRST.numpy(), "deep_prompt": DEEP.numpy()}, path)
    rows, head = read_vpt_checkpoint(path)
    assert torch.equal(rows_of(rows), torch.cat([FIRST, DEEP]))
    assert head == {}
    torch.save({"shallow_prompt": FIRST.numpy()}, path)
    assert torch.equal(rows_of(read_vpt_checkpoint(path)[0]), FIRST)


@pytest.mark.parametrize("stem", ["enc.transformer.", "enc."])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("parallel", [False, True])
def test_whole_state_dicts(tmp_path: Path, stem: str, wrap: str | None, parallel: bool) -> None:
    wanted = state(stem)
    saved: Any = {f"module.{k}": v for k, v in wanted.items()} if parallel else wanted
    torch.save({wrap: saved, "iteration": np.int64(3)} if wrap else saved, tmp_path / "a.pth")
    rows, head = read_vpt_checkpoint(tmp_path / "a.pth")
    assert torch.equal(rows_of(rows), torch.cat([FIRST, DEEP]))
    assert torch.equal(head["weight"], wanted["head.last_layer.weight"])
    assert torch.equal(head["bias"], wanted["head.last_layer.bias"])


def test_a_projection_is_folded(tmp_path: Path) -> None:
    layer = nn.Linear(32, 48)
    own = layer.state_dict()
    saved = state(**{f"enc.transformer.prompt_proj.{k}": v for k, v in own.items()})
    torch.save(saved, tmp_path / "a.pth")
    rows, _ = read_vpt_checkpoint(tmp_path / "a.pth")
    torch.testing.assert_close(rows_of(rows), layer(torch.cat([FIRST, DEEP])).detach())
    assert not any(r.requires_grad for r in rows.values())


def test_a_recorded_case_of_the_authors_code_gives_its_logits(tmp_path: Path) -> None:
    """The projected case of the golden folder, saved as the authors' model would, imported, and run."""
    golden = Path(__file__).parents[1] / "golden"
    case, inputs = (
        load_file(golden / "vpt-deep-project.safetensors"),
        load_file(golden / "vit-small-inputs.safetensors"),
    )
    image = tiny(embed_dim=64, depth=4, num_heads=4, num_classes=0)
    image.model.load_state_dict(load_file(golden / "vit-small.safetensors"))
    saved = {
        "enc.transformer.prompt_embeddings": case["init.prompts"][:1],
        "enc.transformer.deep_prompt_embeddings": case["init.prompts"][1:],
        "enc.transformer.prompt_proj.weight": case["init.prompt_proj.weight"],
        "enc.transformer.prompt_proj.bias": case["init.prompt_proj.bias"],
        "head.last_layer.weight": case["init.head.weight"],
        "head.last_layer.bias": case["init.head.bias"],
    }
    torch.save(saved, tmp_path / "a.pth")
    got = import_prompts(tmp_path / "a.pth", "vpt-deep", Backbone(image, {}))
    logits = encode(image, inputs["images"], got.rows) @ got.head["weight"].mT + got.head["bias"]
    torch.testing.assert_close(logits, case["out.logits"], rtol=0, atol=5e-5)


def test_the_prompt_set_is_saved_loaded_and_rebuilt(tmp_path: Path, backbone: Backbone) -> None:
    torch.save(state(), tmp_path / "a.pth")
    made = import_prompts(tmp_path / "a.pth", "vpt-deep", backbone, classes=list("abcde"))
    loaded = PromptSet.load(made.save(tmp_path / "a.safetensors"))
    assert loaded.classes == tuple("abcde")
    assert loaded.about["train"] == {"imported": "a.pth", "code": "KMnP/vpt"}
    assert torch.equal(rows_of(loaded.rows), torch.cat([FIRST, DEEP]))
    again = VPT(backbone.image, **loaded.about["method"]["options"])(Context())
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in loaded.rows.items()}
    torch.save({"shallow_prompt": FIRST.numpy()}, tmp_path / "b.pth")
    shallow = import_prompts(tmp_path / "b.pth", "vpt-shallow", backbone)
    assert shallow.head == {}
    assert PromptSet.load(shallow.save(tmp_path / "b.safetensors")).classes == ()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"weights": torch.ones(1)}, "holds no VPT prompts; its keys begin with weights"),
        ([1, 2], "holds no VPT prompts; its keys begin with nothing"),
        (state("enc.", **{"enc.deep_prompt_embeddings_0": DEEP}), "prompts for Swin"),
        (
            state(**{"head.projection.0.weight": torch.ones(1)}),
            r"head of several layers \(head.last_layer.bias",
        ),
        ({"shallow_prompt": "x"}, "the first layer's rows should be a tensor of 3 dimensions, found str"),
        ({"shallow_prompt": np.ones((4, 32))}, r"of 3 dimensions, found \(4, 32\)"),
        ({"shallow_prompt": np.ones((2, 4, 32))}, r"rows of shapes \[\(2, 4, 32\)\]"),
        ({"shallow_prompt": np.ones((1, 4, 32)), "deep_prompt": np.ones((2, 5, 32))}, "rows of shapes"),
        ({"shallow_prompt": np.full((1, 4, 32), np.nan)}, "NaN or infinity"),
        ({"shallow_prompt": torch.ones(1).expand(1, 10**6, 10**6)}, "claim more numbers than the file holds"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, saved: Any, message: str) -> None:
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        read_vpt_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("saved", "method", "options", "message"),
    [
        (state(), "vpt-shallow", {}, "rows of 3 layers, which is vpt-deep, not vpt-shallow"),
        ({"shallow_prompt": np.ones((1, 4, 24))}, "vpt-shallow", {}, "are 24 wide, this backbone takes 32"),
        (
            {"shallow_prompt": np.ones((1, 4, 32)), "deep_prompt": np.ones((11, 4, 32))},
            "vpt-deep",
            {},
            "rows of 12 layers; this backbone has 3 blocks",
        ),
        (
            state(**{"head.last_layer.weight": torch.ones(5, 64)}),
            "vpt-deep",
            {},
            "reads 64 channels.* gives 32",
        ),
        (state(), "vpt-deep", {"classes": ["a"]}, "1 class names for a head of 5 classes"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(
    tmp_path: Path, backbone: Backbone, saved: Any, method: str, options: Any, message: str
) -> None:
    torch.save(saved, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        import_prompts(tmp_path / "a.pth", method, backbone, **options)


def test_a_closed_tower_is_refused_with_the_reason(tmp_path: Path) -> None:
    closed = open_timm(timm.create_model("test_resnet", pretrained=False))
    torch.save(state(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="closed tower"):
        import_prompts(tmp_path / "a.pth", "vpt-deep", Backbone(closed, {}))
