"""``vpt inspect FILE``: the header of a prompt file, by the standard library alone."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vpt.header import Header, read_header

__all__ = ["run"]


def run(command: str, argv: list[str]) -> None:
    """Print what a prompt file says of itself."""
    parser = argparse.ArgumentParser(prog="vpt inspect", description="Say what a prompt file holds.")
    parser.add_argument("file")
    parser.add_argument("--json", action="store_true", help="the whole metadata as JSON")
    args = parser.parse_args(argv)
    header = read_header(args.file)
    if args.json:
        tensors = {name: {"dtype": d, "shape": s} for name, (d, s) in header.tensors.items()}
        print(json.dumps({"bytes": header.bytes, "tensors": tensors, **header.about}, indent=1))
    else:
        print("\n".join(_lines(header)))


def _lines(header: Header) -> list[str]:
    about = header.about
    backbone, method = about.get("backbone") or {}, about.get("method") or {}
    lines = [
        f"{header.path}: {about.get('kind', 'prompt set')}, {header.bytes / 1e3:.1f} kB, "
        f"{header.parameters:,} numbers",
        f"  method     {method.get('name')} {_options(method.get('options'))}",
        f"  backbone   {backbone.get('name')} {_options(backbone.get('fingerprints'))}",
    ]
    classes = about.get("classes") or []
    if classes:
        more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
        lines.append(f"  classes    {len(classes)}: {', '.join(classes[:8])}{more}")
    for site in about.get("sites") or []:
        name = f"{site['tower']}/{site['stage']}/{site['slot']}"
        lines.append(f"  rows       {name:<22}{site['n']} x {site['width']}")
    for m in about.get("metrics") or []:
        lines.append(f"  {m['split']:<11}{m['name']} {m['value']:.4f} ({m['count']:,} pictures, seed {m['seed']})")
    protocol = about.get("protocol") or {}
    lines.append(f"  protocol   {_options({k: v for k, v in protocol.items() if not isinstance(v, (dict, list))})}")
    created = about.get("created") or {}
    lines.append(f"  made       {created.get('date')} by vpt {created.get('vpt')}")
    return lines


def _options(options: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in (options or {}).items())
