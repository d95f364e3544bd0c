"""``vpt bench``: measure on this machine; the options are the keyword arguments of the benches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser

from vpt.cli.config import explained
from vpt.cli.help import describe, said

__all__ = ["BENCHES", "run"]

BENCHES = {
    "vit": ("vpt.bench.vit", "bench_vit", "training steps and inference in plain frozen forwards"),
    "clip": ("vpt.bench.clip", "bench_clip", "training steps of the CLIP methods against the plain way"),
    "diffusion": (
        "vpt.bench.diffusion",
        "bench_diffusion",
        "a step of textual inversion against the plain way and its floor",
    ),
    "search": (
        "vpt.bench.search",
        "bench_search",
        "building and asking an index, and embedding pictures for it",
    ),
    "cli": ("vpt.bench.cli", "bench_cli", "how long the command line takes to answer"),
}


def run(command: str, argv: list[str]) -> None:
    """Run one bench; it prints a table and, with ``--json FILE``, writes the numbers."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vpt bench NAME [options]      vpt bench NAME --help tells more\n")
        print("\n".join(f"  {name:<11}{what}" for name, (_, _, what) in BENCHES.items()))
        return
    if argv[0] not in BENCHES:
        raise ValueError(f"no bench {argv[0]!r}. There are {', '.join(BENCHES)}.")
    module, name, _ = BENCHES[argv[0]]
    bench = getattr(import_module(module), name)
    parser = ArgumentParser(prog=f"vpt bench {argv[0]}", description=said(bench)[0], exit_on_error=False)
    parser.add_function_arguments(bench, as_group=False)
    describe(parser, {"": bench})
    try:
        options = parser.parse_args(_lists(bench, argv[1:]))
    except Exception as error:  # jsonargparse's ArgumentError
        raise ValueError(f"{explained(str(error))} vpt bench {argv[0]} --help lists the options.") from None
    bench(**options.as_dict())


def _lists(bench: Callable[..., Any], argv: list[str]) -> list[str]:
    """``--rows 10,50`` as ``--rows=[10,50]`` for the parameters that take several values."""
    several = {
        f"--{k}" for k, p in inspect.signature(bench).parameters.items() if "Sequence" in str(p.annotation)
    }
    words, out = iter(argv), []
    for word in words:
        name, equals, value = word.partition("=")
        if name in several:
            value = value if equals else next(words, "")
            word = f"{name}={value if value.startswith('[') else f'[{value}]'}"
        out.append(word)
    return out
