"""The registry, and what every method says of itself."""

import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from pipelines import shared

from vpt.methods import METHODS, method_class, methods
from vpt.methods.method import Method, linear_head
from vpt.prompt import Context
from vpt.tasks.learner import build_method
from vpt.towers.backbone import Backbone
from vpt.towers.diffusion import open_pipeline
from vpt.towers.vit import tiny


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_from_its_entry(
    name: str, tiny_clip: Backbone, needed: Callable[[str], dict[str, object]]
) -> None:
    entry = METHODS[name]
    takes = inspect.signature(method_class(name)).parameters
    two = bool({"text", "tokens"} & takes.keys()) or method_class(name).named
    if "pipeline" in takes:
        backbone = open_pipeline(shared("sd"), "diffusers/tiny")
    else:
        backbone = tiny_clip if two else Backbone("tiny", {"image": tiny()}, {}, "timm")
    made = build_method(name, backbone, needed(name))
    assert isinstance(made, Method)
    sites = [str(site) for site in made(Context(2, {"image": torch.zeros(2, backbone.image.out)}))]
    for site in [] if entry.sites == "none" else entry.sites.split():
        tower, stages, slot = site.split("/")
        mine = [s.split("/")[1] for s in sites if s.startswith(f"{tower}/")]
        first = stages.removesuffix("..")
        deep = [first, *map(str, range(1, len(mine)))] if stages.endswith("..") else [stages]
        depth = backbone.towers[tower].depth
        upper = [str(i) for i in range(depth - len(mine), depth)]
        assert mine == (upper if stages == "upper" else deep)
        assert all(s.endswith(f"/{slot}") for s in sites if s.startswith(f"{tower}/"))
    assert bool(sites) == (entry.sites != "none")
    learns = made.learn(backbone.image).learns_from is not None
    assert entry.baseline or not learns
    module = sys.modules[type(made).__module__].__doc__ or ""
    assert entry.paper in module, "the paper's id stands on top of the file"
    options = inspect.signature(type(made).__init__).parameters.values()
    parts = {"self", "image", "text", "tokens", "classes", "scale", "pipeline"}
    assert all(p.kind is p.KEYWORD_ONLY for p in options if p.name not in parts)


def test_unknown_methods_are_refused_with_the_names() -> None:
    with pytest.raises(ValueError, match=r"no method 'vpt'.*vpt-deep.*linear-exact"):
        method_class("vpt")
    assert methods().keys() == METHODS.keys()


def test_the_registry_imports_no_torch() -> None:
    code = "import sys; from vpt.methods import methods; methods(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_head_starts_as_published() -> None:
    torch.manual_seed(0)
    head = linear_head(400, 300)
    assert abs(head.weight.std() - (2 / 300) ** 0.5) < 1e-3  # kaiming normal over fan out
    assert torch.all(head.bias == -torch.tensor(99.0).log())
