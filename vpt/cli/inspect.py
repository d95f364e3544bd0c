"""``vpt inspect FILE``: the header of a prompt file, by the standard library alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from vpt.header import Header, read_header

__all__ = ["run"]

SHOWN = 8  # class names


def run(command: str, argv: list[str]) -> None:
    """Print what a prompt file says of itself."""
    parser = argparse.ArgumentParser(prog="vpt inspect", description="Say what a prompt file holds.")
    parser.add_argument("file")
    parser.add_argument("--json", action="store_true", help="the whole metadata as JSON")
    args = parser.parse_args(argv)
    header = read_header(args.file)
    if args.json:
        tensors = {name: {"dtype": d, "shape": s} for name, (d, s) in header.tensors.items()}
        print(json.dumps({**header.about, "bytes": header.bytes, "tensors": tensors}, indent=1))
    else:
        print("\n".join(_lines(header)))


def _lines(header: Header) -> list[str]:
    """The label in lines. What a file of another make does not say, or says in another form, is left out."""
    about = header.about
    backbone, method, created = (_mapping(about.get(key)) for key in ("backbone", "method", "created"))
    prints = _mapping(backbone.get("fingerprints"))
    lines = [
        f"{header.path}: {about.get('kind', 'prompt set')}, {header.bytes / 1e3:.1f} kB, "
        f"{header.parameters:,} numbers",
        f"  method     {method.get('name', 'not said')} {_options(_mapping(method.get('options')))}",
        f"  backbone   {backbone.get('name', 'not said')} {_options(prints)}",
    ]
    if about.get("task") == "retrieve":
        captions = _mapping(_mapping(about.get("protocol")).get("captions"))
        lines.append(
            f"  task       retrieve, trained on {captions.get('train', 'not said how many')} captions"
        )
    classes = [str(name) for name in about.get("classes") or []]
    if classes:
        more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
        lines.append(f"  classes    {len(classes)}: {', '.join(classes[:SHOWN])}{more}")
    names = _mapping(about.get("names"))
    if names:
        lines.append(f"  sentence   {names.get('sentence')}")
    for site in about.get("sites") or []:
        name = f"{site['tower']}/{site['stage']}/{site['slot']}"
        lines.append(f"  rows       {name:<22}{site['n']} x {site['width']}")
    before = {(m.get("split"), m.get("name")): m.get("value") for m in _entries(about.get("before"))}
    for m in _entries(about.get("metrics")):
        frozen = before.get((m.get("split"), m.get("name")))
        of = f"{m.get('count')} pictures, seed {m.get('seed')}"
        of += f"; frozen {_number(frozen)}" if frozen is not None else ""
        lines.append(f"  {m.get('split')!s:<11}{m.get('name')} {_number(m.get('value'))} ({of})")
    protocol = {k: v for k, v in _mapping(about.get("protocol")).items() if not isinstance(v, (dict, list))}
    lines.append(f"  protocol   {_options(protocol) or 'not said'}")
    if created:
        lines.append(f"  made       {created.get('date')} by vpt {created.get('vpt')}")
    # class names that come from file names of another encoding hold lone surrogates, which no terminal takes
    return [line.encode("utf-8", "backslashreplace").decode() for line in lines]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entries(value: Any) -> list[Mapping[str, Any]]:
    return [_mapping(m) for m in value] if isinstance(value, list) else []


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())
