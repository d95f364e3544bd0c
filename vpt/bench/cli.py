"""How long a person waits for the command line: whole fresh processes, from the start to the exit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vpt.bench.measure import Key, Work, check_json, in_turns, machine, row, show, write
from vpt.prompt import Site
from vpt.promptset import PromptSet

__all__ = ["bench_cli"]

EMPTY: Key = ("command line", "python -c pass", "")  # what no command can do without
TARGETS = {"import vpt": 0.2, "vpt --help": 1.0, "vpt inspect FILE": 0.3}  # seconds


def _prompt_file(folder: str) -> str:
    """A file as VPT-deep leaves it: 10 rows of width 192 in 12 layers, and a head of 100 classes."""
    rows = {Site("image", str(i), "prefix"): torch.zeros(10, 192) for i in range(12)}
    head = {"weight": torch.zeros(100, 192), "bias": torch.zeros(100)}
    about = {"kind": "prompt set", "head": {"width": 192}, "classes": [f"class {i}" for i in range(100)]}
    return str(PromptSet(rows, head, about=about).save(Path(folder) / "prompts.safetensors"))


def _process(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """Run Python with arguments to its end; returns what it printed."""
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"`python {' '.join(arguments)}` ended with status {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    return done.stdout


# A process starts with the high-water mark of the one that made it: a small one must stand between.
RESIDENT = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def _resident_mb(arguments: Sequence[str], env: Mapping[str, str]) -> float:
    """Highest resident set of such a process in MB (10^6 bytes), in a run of its own."""
    return int(_process(["-c", RESIDENT, *arguments], env)) / 1e6


def _commands(file: str) -> dict[str, list[str]]:
    return {
        EMPTY[1]: ["-c", "pass"],
        "import vpt": ["-c", "import vpt"],
        "vpt --help": ["-m", "vpt", "--help"],
        "vpt methods": ["-m", "vpt", "methods"],
        "vpt inspect FILE": ["-m", "vpt", "inspect", file],
    }


def bench_cli(*, repeats: int = 5, json: str | None = None) -> dict[str, Any]:
    """Time fresh processes of the command line, in turns; print a table, return and write the report.

    repeats: turns, after one for warm-up.  json: file for ``{"machine": .., "rows": [..]}``; there times_plain
    and times_floor both compare with an interpreter that does nothing, and peak_mb is the resident set.
    Raises ValueError for options that cannot be, RuntimeError with what a command said when it failed.
    """
    check_json(json)
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least 1 turn is needed.")
    home = str(Path(__file__).parents[2])  # the children import the package that runs here
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))}
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(_prompt_file(folder))
        works = [Work(EMPTY[0], name, "", partial(_process, a, env), EMPTY) for name, a in commands.items()]
        times = in_turns(works, repeats, torch.device("cpu"))
        rows = [row(w, times, EMPTY, _resident_mb(commands[w.variant], env)) for w in works]
    targets = {}
    for r in rows:
        if r["variant"] in TARGETS:
            wanted = TARGETS[r["variant"]]
            met = "met" if r["ms_median"] <= 1e3 * wanted else "missed"
            targets[r["work"], r["variant"], ""] = f"{wanted} s {met}"
    empty = "median over the turns of the time divided by that of an interpreter that does nothing"
    more = {
        "peak_mb_is": "highest resident set of the process, at least that of the small one that starts it",
        "times_plain_is": empty,
        "times_floor_is": empty,
    }
    about = machine(torch.device("cpu"), repeats=repeats, **more)
    show("vpt bench cli", about, rows, targets, ("pythons", "floors"))
    if json is not None:
        write(json, about, rows)
    return {"machine": about, "rows": rows}
