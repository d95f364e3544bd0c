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
    metrics = about.get("metrics")
    for m in map(_mapping, metrics if isinstance(metrics, list) else []):
        value, of = m.get("value"), f"{m.get('count')} pictures, seed {m.get('seed')}"
        number = f"{value:.4f}" if isinstance(value, float) else value
        lines.append(f"  {m.get('split')!s:<11}{m.get('name')} {number} ({of})")
    protocol = {k: v for k, v in _mapping(about.get("protocol")).items() if not isinstance(v, (dict, list))}
    lines.append(f"  protocol   {_options(protocol) or 'not said'}")
    if created:
        lines.append(f"  made       {created.get('date')} by vpt {created.get('vpt')}")
    # class names that come from file names of another encoding hold lone surrogates, which no terminal takes
    return [line.encode("utf-8", "backslashreplace").decode() for line in lines]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())
