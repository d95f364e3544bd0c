"""One parser for YAML and for the short way: the keys are task, model, method, data and trainer."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from vpt.cli.help import describe
from vpt.methods import EPOCHS, METHODS, method_class

__all__ = ["MAIN", "checked", "explained", "parse", "rates", "read_yaml", "sections"]

# What is typed most, by its short name.
SHORT = {
    "data": "data.path",
    "model": "model.name",
    "method": "method.name",
    "task": "task.objective",
    "out": "trainer.out",
    "weights": "model.weights",
    "size": "model.size",
    **{k: f"trainer.{k}" for k in ("device", "precision", "resume", "progress")},
    **{k: f"data.{k}" for k in ("shots", "seed", "batch_size", "augment", "views", "workers")},
    **{k: f"data.{k}" for k in ("val", "test", "root", "subset")},
    **{k: f"task.{k}" for k in ("epochs", "lr", "weight_decay", "optimizer", "schedule", "warmup", "store")},
    **{k: f"task.{k}" for k in ("general", "loss", "consistency", "chunk", "snr", "prior", "ema", "remat")},
    **{k: f"data.{k}" for k in ("sentences", "beside")},
    **{k: f"task.{k}" for k in ("reward", "judge", "inference_steps", "last", "guidance", "near")},
    **{k: f"task.{k}" for k in ("population", "dimension")},
    **{k: f"data.{k}" for k in ("held", "seeds")},
    "word": "method.word",
    "quantize": "model.quantize",
}
MAIN = {"data": "path", "model": "name", "method": "name", "task": "objective"}  # what a plain string means


class Start(NamedTuple):
    """What an objective takes where nothing is said."""

    method: str
    model: str
    data: dict[str, Any]
    on: str
    prompts: bool = False  # the data are prompts, not pictures
    task: Mapping[str, Any] = MappingProxyType({})  # of the recipe


STARTS = {
    "classify": Start("vpt-deep", "starter/vit-mini", {}, "labelled pictures"),
    "retrieve": Start("ivlp", "starter/clip-mini", {"captions": True}, "pictures with captions"),
    "denoise": Start(
        "textual-inversion",
        "starter/sd-mini",
        {"captions": True, "batch_size": 5},
        "pictures of one thing",
        task={"epochs": EPOCHS["denoise"]},
    ),
    "reward": Start("context", "starter/sd-mini", {}, "prompts whose pictures a reward likes", prompts=True),
}
NAMES = {"text-to-image": "denoise"}  # what people call an objective
OTHER = (
    " With --task retrieve, on pictures with captions, so that each is found by the other; with --task text-to-image, "
    "on a few pictures of one thing, so that it can be drawn; with --task reward, on prompts, so that a reward likes "
    "what is drawn."
)
PARTS = (
    "image",
    "text",
    "tokens",
    "classes",
    "scale",
    "pipeline",
)  # what a method takes of the backbone and the data
OPEN = "trainer.trainer."  # what follows is Lightning's


def parse(command: str, argv: list[str]) -> Namespace:
    """A command line of ``fit`` as a namespace of task, model, method, data, trainer; options win over YAML.

    Raises ValueError or FileNotFoundError for what cannot be used. ``--help`` and ``--print_config`` print
    and exit, as argparse does.
    """
    files, options, asked = _read(argv)
    typed = dict(options)
    name, start = _start(
        [content for _, content in files], typed.get("method.name"), typed.get("task.objective")
    )
    if start.prompts:  # which say a placeholder themselves
        options = [(key, value) for key, value in options if key != "data.concept"]
    parser = _parser(command, name, start, bool({"-h", "--help"} & set(asked)))
    for path, content in files:
        _refuse_unknown(parser, _flat(content), name, path)
    _refuse_unknown(parser, [key for key, _ in options], name, None)
    words = [f"--config={json.dumps(content)}" for _, content in files]
    return _parsed(parser, words + [f"--{key}={value}" for key, value in options] + asked)


def checked(command: str, content: Mapping[str, Any], where: str) -> Namespace:
    """The same for nested mappings with the same keys; where: what messages call them."""
    name, start = _start([content])
    parser = _parser(command, name, start)
    _refuse_unknown(parser, _flat(content), name, where)
    return _parsed(parser, [f"--config={json.dumps(content)}"])


def _start(
    contents: Iterable[Mapping[str, Any]], method: str | None = None, objective: str | None = None
) -> tuple[str, Start]:
    """The method, and what the objective starts from; both decide which options there are and their defaults."""
    said: dict[str, str] = {}
    for content in contents:
        said |= {room: content[room][key] for room, key in MAIN.items() if key in (content.get(room) or {})}
    said_objective = str(objective or said.get("task"))
    start = STARTS.get(said_objective, STARTS["classify"])  # what is none is refused by the parser
    return method or said.get("method", start.method), start


def _read(argv: Sequence[str]) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str]], list[str]]:
    """YAML files with their content, options with full names, and what asks for help."""
    files, options, asked = [], [], []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word in ("-h", "--help", "--print_config"):
            asked.append(word)
            continue
        if not word.startswith("--"):
            raise ValueError(f"{word!r} stands alone. Options have names: --data {word}, say.")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise ValueError(f"{word} needs a value.")
        if name == "config":
            files.append((value, sections(value)))
            continue
        if name == "concept":  # its placeholder is the method's, and stands in the captions of the data
            options += [("data.concept", value), ("method.concept", value)]
            continue
        name = SHORT.get(name, name)
        value = NAMES.get(value, value) if name == "task.objective" else value
        options.append((name, json.dumps(rates(value)).strip('"') if name == "task.lr" else value))
    return files, options, asked


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; raises FileNotFoundError, or ValueError for what is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no config file {path!r}.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold keys with values, such as data: photos/.")
    return content


def sections(path: str) -> dict[str, Any]:
    """A YAML file's sections, ``data: photos/`` written as ``data: {path: photos/}``."""
    content = read_yaml(path)
    if wrong := content.keys() - {*MAIN, "trainer"}:
        raise ValueError(
            f"{path} has the key {', '.join(sorted(map(str, wrong)))}. There are task, model, method, data "
            "and trainer; what is in them is listed by vpt fit --help."
        )
    content = {k: {MAIN[k]: v} if isinstance(v, str) and k in MAIN else v or {} for k, v in content.items()}
    for key, section in content.items():
        if not isinstance(section, dict):
            raise ValueError(f"{path}: {key} should hold keys with values, got {section!r}.")
    if "lr" in content.get("task", {}):
        content["task"]["lr"] = rates(content["task"]["lr"])
    return content


def rates(value: Any) -> list[float] | str:
    """Learning rates as typed: "search", "0.1,0.3", 0.1 or a list."""
    if value == "search":
        return "search"
    if isinstance(value, str):
        given: Any = [v for v in value.strip("[]").split(",") if v.strip()]
    else:
        given = value if isinstance(value, (list, tuple)) else [value]
    try:
        return [float(v) for v in given]
    except (TypeError, ValueError):
        raise ValueError(f"lr is {value!r}, wanted numbers such as 0.1 or 0.1,0.3, or search.") from None


def _flat(content: Mapping[str, Any]) -> list[str]:
    return [f"{section}.{key}" for section, inside in content.items() for key in inside]


def _parser(command: str, method: str, start: Start, help_asked: bool = False) -> ArgumentParser:
    """The method and the objective decide which options there are. Raises ValueError for one that is none."""
    from vpt.data.module import ImageData
    from vpt.data.prompts import PromptData
    from vpt.tasks.device import Machine
    from vpt.tasks.task import Recipe

    data = PromptData if start.prompts else ImageData
    made = {"method": method_class(method), "data": data, "task": Recipe, "trainer": Machine}
    parser = ArgumentParser(
        prog=f"vpt {command}",
        usage=f"vpt {command} --data PICTURES [--method NAME] [--model NAME] [--out FOLDER] [options]",
        description=f"Train {method} (another with --method NAME; its options are then listed here) on "
        f"{start.on}, and measure it.{OTHER if start is STARTS['classify'] else ''}",
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", help="a YAML file of the keys below; options win over it"
    )
    parser.add_argument(
        "--model.name",
        default=start.model,
        help="timm/NAME[.TAG], open_clip/ARCH:WEIGHTS, hf/REPO, diffusers/REPO or starter/NAME",
    )
    parser.add_argument("--model.pretrained", type=bool, default=True)
    parser.add_argument("--model.weights", type=str | None, default=None, help="a local checkpoint")
    parser.add_argument("--model.size", type=int | None, default=None, help="another picture size, in pixels")
    parser.add_argument("--model.quantize", type=str | None, default=None, help="of a diffusion network")
    parser.add_argument(
        "--model.dtype", type=str, default="float32", help="of a diffusion pipeline's weights"
    )
    parser.add_argument("--method.name", default=method, choices=list(METHODS))
    for section, thing in made.items():
        parser.add_class_arguments(
            thing, section, skip=set(PARTS) if section == "method" else None, as_group=True
        )
    parser.set_defaults({f"method.{k}": v for k, v in METHODS[method].options.items()})
    parser.set_defaults({f"data.{k}": v for k, v in start.data.items()})
    parser.set_defaults({f"task.{k}": v for k, v in start.task.items()})
    if help_asked:
        describe(parser, made, SHORT)
    return parser


def _refuse_unknown(parser: ArgumentParser, keys: Iterable[str], method: str, where: str | None) -> None:
    """where: the file that holds the keys; None for the command line."""
    known = list(parser.get_defaults(skip_validation=True).keys())
    for key in keys:
        if key in known or key.startswith(OPEN):
            continue
        told = f"{where}: there is no key {key}." if where else f"there is no option --{key}."
        section, _, option = key.rpartition(".")
        if section == "method":
            own = [k.removeprefix("method.") for k in known if k.startswith("method.") and k != "method.name"]
            raise ValueError(f"{told} The method {method} has {', '.join(own) or 'no options'}.")
        near = [k for k in known if k.rpartition(".")[2] == option]
        near = near or difflib.get_close_matches(key, known if where else [*SHORT, *known], 2)
        told += f" Did you mean {' or '.join(k if where else f'--{k}' for k in near)}?" if near else ""
        raise ValueError(f"{told} vpt fit --help lists what there is.")


def _parsed(parser: ArgumentParser, words: list[str]) -> Namespace:
    try:
        return parser.parse_args(words)
    except Exception as error:  # jsonargparse's ArgumentError, in several lines of Python types
        raise ValueError(f"{explained(str(error))} vpt fit --help lists the options.") from None


def explained(text: str) -> str:
    """What jsonargparse found wrong, in a sentence."""
    if "required: data.path" in text:
        return (
            "which pictures? Give --data: a folder, a manifest, shards, torchvision:NAME, coop:NAME, digits, emoji "
            "or scenes."
        )
    key, got = re.search(r'Parser key "([\w.]+)"', text), re.search(r"(?:Given|Got) value: (.*)", text)
    wanted = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", text, re.MULTILINE)
    if not (key and got and wanted):
        return f"{text}."
    names = [re.sub(r"<class '(.*)'>|typing\.Literal\[(.*)\]", r"\1\2", w) for w in wanted]
    names = ["null" if n == "NoneType" else n.replace("'", "") for n in names]
    return f"{key[1]} is {got[1]}, wanted {' or '.join(names)}."
