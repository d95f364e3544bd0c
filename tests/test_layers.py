"""Holds the floors of the house: who may import whom, and what an import may cost."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vpt

ROOT = Path(vpt.__file__).parent
CORE = ("prompt", "tower", "encode", "text", "attention", "pixels", "promptset", "start", "importers")
FLOORS = {
    "header": -1,  # below even the core, which is torch's: the standard library alone
    **dict.fromkeys(CORE, 0),
    "towers": 1,
    **dict.fromkeys(("methods", "objectives", "data"), 2),
    "tasks": 3,
    "search": 4,
    **dict.fromkeys(("workflow", "bench", "hub", "serve"), 5),
    "cli": 6,
    **dict.fromkeys(("__main__", "__init__"), 7),
}
KNOWN = {room: {"torch", "safetensors"} for room in CORE}
KNOWN["start"] = {"torch", "sklearn"}  # its mini-batch k-means
LIGHTNING = {"lightning", "pytorch_lightning"}
NETWORKS = {"timm", "open_clip", "diffusers", "transformers", "peft"}
INTERFACES = {"jsonargparse", "rich", "matplotlib", "jinja2", "yaml"}
BANNED = {
    "towers": LIGHTNING | INTERFACES | {"torchmetrics", "torchdata", "webdataset"},
    "methods": LIGHTNING | INTERFACES | {"torchmetrics", "torchdata", "webdataset"},
    "objectives": LIGHTNING | NETWORKS | INTERFACES,
    "data": NETWORKS - {"timm"},  # timm: augmentation
}
LIGHT = {"jsonargparse", "rich", "yaml"}  # what a command may import before it runs


def room_of(module: str) -> str:
    """The room of a module below vpt: "vpt.towers.vit" -> "towers"; the public face itself is "__init__"."""
    return [*module.split("."), "__init__"][1]


def imports_of(source: str, module: str, package: bool, *, top: bool = False) -> Iterator[str]:
    """Absolute names that a module imports anywhere (top: before any function runs)."""
    nodes = ast.walk(ast.parse(source)) if not top else _at_import(ast.parse(source))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")[: None if package else -1]
            base = here[: len(here) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{a.name}" for a in node.names) if name == "vpt" else (name,)


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not only_types:
            yield node
            yield from _at_import(node)


def complaints(source: str, module: str, package: bool = False) -> list[str]:
    """What the module imports and may not."""
    room, found = room_of(module), []
    if room not in FLOORS:
        return [f"{module}: no floor is named for the room {room!r}"]
    for name in imports_of(source, module, package):
        first = name.split(".")[0]
        if first == "vpt":
            other = room_of(name) if room_of(name) in FLOORS else "__init__"
            own = other == room or (room in CORE and other in CORE)
            if not own and FLOORS[other] >= FLOORS[room]:
                found.append(f"{module} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]})")
        elif first not in sys.stdlib_module_names:
            strange = FLOORS[room] <= 0 and first not in KNOWN.get(room, ())
            if strange or first in BANNED.get(room, ()):
                found.append(f"{module} may not know {name}")
    if room == "cli":
        for name in imports_of(source, module, package, top=True):
            first = name.split(".")[0]
            allowed = room_of(name) in ("cli", "header", "methods") and name.count(".") < 3
            if not (allowed if first == "vpt" else first in sys.stdlib_module_names | LIGHT):
                found.append(f"{module} imports {name} before a command runs")
    return found


def _modules() -> list[tuple[Path, str]]:
    files = sorted(ROOT.rglob("*.py"))
    names = [".".join(p.relative_to(ROOT.parent).with_suffix("").parts) for p in files]
    return [(p, n.removesuffix(".__init__")) for p, n in zip(files, names, strict=True)]


@pytest.mark.parametrize(("path", "module"), _modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_file_imports_from_lower_floors_and_its_own_room(path: Path, module: str) -> None:
    if module == "vpt":
        return  # the public face names every room, and loads none: see below
    assert not complaints(path.read_text("utf-8"), module, path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vpt.encode", "from vpt.towers.vit import tiny"),
        ("vpt.encode", "import timm"),
        ("vpt.encode", "from .towers import vit"),
        ("vpt.prompt", "def f():\n    from vpt import tasks"),
        ("vpt.header", "import torch"),
        ("vpt.header", "from vpt.prompt import Site"),
        ("vpt.towers.vit", "from ..methods.vpt import VPT"),
        ("vpt.towers.vit", "import lightning as L"),
        ("vpt.methods.vpt", "from vpt.data.plan import Plan"),
        ("vpt.methods.baselines.lora", "from ...objectives import classify"),
        ("vpt.data.folder", "from vpt.objectives.classify import Classify"),
        ("vpt.objectives.classify", "import timm.loss"),
        ("vpt.tasks.task", "import vpt"),
        ("vpt.workflow.compare", "from vpt.cli import main"),
        ("vpt.workflow.compare", "from vpt.bench.vit import bench_vit"),
        ("vpt.cli.fit", "import torch"),
        ("vpt.cli.fit", "try:\n    from vpt.tasks.tune import tune\nexcept ImportError:\n    pass"),
        ("vpt.attic", "import os"),
    ],
)
def test_an_import_upward_sideways_or_of_what_a_room_must_not_know_is_found(module: str, source: str) -> None:
    assert complaints(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vpt.encode", "import torch\nfrom vpt.tower import Tower\nfrom .pixels import pixel_places"),
        ("vpt.towers.load", "import timm\nfrom vpt.promptset import fingerprint\nfrom .vit import open_timm"),
        ("vpt.methods.baselines.lora", "import peft\nfrom vpt.methods.method import Method"),
        ("vpt.tasks.task", "import lightning\nfrom vpt.data.plan import Plan"),
        (
            "vpt.cli.fit",
            "import rich\nfrom vpt.methods import METHODS\ndef run():\n    import torch, vpt.tasks",
        ),
    ],
)
def test_what_the_floors_allow_passes(module: str, source: str) -> None:
    assert not complaints(source, module)


def fresh(code: str) -> set[str]:
    """Names of modules that a fresh interpreter holds after the code, beyond those that it starts with."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("code", "at_most"),
    [("import vpt", 40), ("import vpt.header", 80), ("from vpt.methods import METHODS", 80)],
)
def test_a_fresh_interpreter_loads_nothing_but_the_standard_library(code: str, at_most: int) -> None:
    loaded = fresh(code)
    third = {m.split(".")[0] for m in loaded} - sys.stdlib_module_names - {"vpt"}
    assert not third
    assert len(loaded) <= at_most, sorted(loaded)


def test_the_core_runs_without_any_network_library_and_leaves_the_public_functions_in_sight() -> None:
    """``vpt.encode`` and ``vpt.methods`` are functions, and modules of these names exist."""
    code = "import vpt, vpt.encode, vpt.promptset, vpt.methods; assert callable(vpt.encode); vpt.methods()"
    loaded = fresh(code)
    assert {"torch", "vpt.encode", "vpt.methods"} <= loaded
    assert not (NETWORKS | LIGHTNING | INTERFACES) & loaded


def test_the_public_names_are_those_that_resolve() -> None:
    assert vpt.__all__ == sorted(vpt._HOMES)
    for name in vpt.__all__:
        thing = getattr(vpt, name)
        home = sys.modules[vpt._HOMES[name]]
        assert thing is getattr(home, name)
        assert name in home.__all__
        assert name in dir(vpt)
    typed = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    named = {a.name for node in ast.walk(typed) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert set(vpt.__all__) <= named
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vpt.nothing  # noqa: B018  reading it is the test
