"""One parser for YAML and for the short way: the keys are task, model, method, data and trainer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from vpt.methods import METHODS, method_class

__all__ = ["Parsed", "parse"]

# What is typed most, by its short name.
SHORT = {
    "data": "data.path",
    "model": "model.name",
    "method": "method.name",
    "task": "task.objective",
    "out": "trainer.out",
    **{k: f"trainer.{k}" for k in ("device", "precision", "resume", "progress")},
    **{k: f"data.{k}" for k in ("shots", "seed", "batch_size", "augment", "views", "workers", "val", "test", "root")},
    **{k: f"task.{k}" for k in ("epochs", "lr", "weight_decay", "optimizer", "schedule", "warmup", "store")},
    "weights": "model.weights",
    "size": "model.size",
}
MAIN = {"data": "path", "model": "name", "method": "name", "task": "objective"}  # what a plain string means


class Parsed(Namespace):
    """task, model, method, data and trainer as namespaces."""


def _expand(argv: Iterable[str]) -> list[str]:
    """Short names to full ones; a YAML file to its text with plain strings spelled out."""
    out: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            out.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = SHORT.get(name, name)
        if name in ("help", "print_config"):
            out.append(word)
            continue
        if not equals:
            value = next(words, None)  # type: ignore[assignment]
            if value is None:
                raise ValueError(f"{word} needs a value.")
        if name == "config":
            value = json.dumps(_spelled_out(value))
        if name == "task.lr":
            value = json.dumps(_rates(value))
        out += [f"--{name}={value}"]
    return out


def _spelled_out(path: str) -> dict[str, Any]:
    """A YAML file's content, ``data: photos/`` written as ``data: {path: photos/}``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no config file {path!r}.")
    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict) or not content.keys() <= {*MAIN, "trainer"}:
        raise ValueError(f"{path} should hold the keys task, model, method, data and trainer, nothing else.")
    for key, main in MAIN.items():
        if isinstance(content.get(key), (str, int)):
            content[key] = {main: str(content[key])}
    task = content.get("task") or {}
    if "lr" in task:
        task["lr"] = _rates(task["lr"])
    return content


def _rates(value: Any) -> Any:
    """ "search", "0.1,0.3", 0.1 or a list -> a list, or "search"."""
    if isinstance(value, str):
        return value if value == "search" else [float(v) for v in value.strip("[]").split(",") if v.strip()]
    return [value] if isinstance(value, (int, float)) else value


def _chosen_method(argv: list[str]) -> str:
    """The method decides which options there are, so it is looked up before the parser is built."""
    name = "vpt-deep"
    for word in argv:
        if word.startswith("--config="):
            name = (json.loads(word[9:]).get("method") or {}).get("name", name)
        if word.startswith("--method.name="):
            name = word.partition("=")[2]
    return name


def parse(command: str, argv: list[str]) -> Namespace:
    """Read a command line of ``fit``; raises ValueError for what cannot be used."""
    from vpt.data.module import ImageData
    from vpt.tasks.task import Recipe
    from vpt.tasks.tune import Machine

    words = _expand(argv)
    name = _chosen_method(words)
    short = ", ".join(f"--{k.replace('_', '-')}" for k in SHORT)
    parser = ArgumentParser(
        prog=f"vpt {command}",
        description=f"Train {name} (choose with --method) on labelled pictures. Short names: {short}.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with the keys below; options win over it")
    parser.add_argument("--model.name", default="starter/vit-mini", help="timm/NAME[.TAG] or starter/NAME")
    parser.add_argument("--model.pretrained", type=bool, default=True)
    parser.add_argument("--model.weights", type=str | None, default=None, help="a local checkpoint")
    parser.add_argument("--model.size", type=int | None, default=None, help="another picture size, in pixels")
    parser.add_argument("--method.name", default=name, choices=list(METHODS))
    options = METHODS[name].options if name in METHODS else {}
    method_class(name)  # raises, listing the names
    parser.add_class_arguments(method_class(name), "method", skip={"image"} | set(options), as_group=True)
    parser.add_class_arguments(ImageData, "data", as_group=True)
    parser.add_class_arguments(Recipe, "task", as_group=True)
    parser.add_class_arguments(Machine, "trainer", as_group=True)
    try:
        return parser.parse_args(words)
    except Exception as error:  # jsonargparse's ArgumentError: its message is for the user
        raise ValueError(f"{error}\nvpt {command} --help lists the options.") from None
