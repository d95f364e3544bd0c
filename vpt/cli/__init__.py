"""The command ``vpt``. Imports the standard library only: what a command needs, it imports itself."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "fit": ("vpt.cli.fit", "train a prompt (or a baseline) on your pictures and measure it"),
    "compare": ("vpt.cli.compare", "train several methods on the same split and print one table"),
    "table": ("vpt.cli.table", "few-shot, base-to-novel, cross-dataset, .. tables over data sets and seeds"),
    "predict": ("vpt.cli.use", "name the classes of pictures with a prompt file"),
    "validate": ("vpt.cli.use", "measure a prompt file on the val split of a data set"),
    "test": ("vpt.cli.use", "measure a prompt file on the test split of a data set"),
    "index": ("vpt.cli.index", "embed a collection of pictures for search: build, add, remove, info"),
    "search": ("vpt.cli.search", "find pictures of an index by words, by a picture or by a concept"),
    "generate": ("vpt.cli.generate", "draw pictures or short videos of what prompt files learned"),
    "test-time": ("vpt.cli.test_time", "adapt a CLIP to each test picture on its own (TPT, ZERO)"),
    "concept": ("vpt.cli.concept", "teach a CLIP a new word with 3 to 10 pictures of one thing"),
    "inspect": ("vpt.cli.inspect", "say what a prompt file holds (needs no torch)"),
    "methods": ("vpt.cli.lists", "list the methods and baselines"),
    "models": ("vpt.cli.lists", "list the backbones (vpt models '*dinov2*')"),
    "import": ("vpt.cli.share", "turn another tool's checkpoint or embeddings file into a prompt file"),
    "export": ("vpt.cli.share", "turn a prompt file into another tool's embeddings file"),
    "push": ("vpt.cli.share", "upload a prompt file with its card to the Hugging Face hub"),
    "pull": ("vpt.cli.share", "fetch a prompt file from the Hugging Face hub"),
    "bench": ("vpt.cli.bench", "measure what the savings are worth on this machine"),
    "demo": ("vpt.cli.demo", "adapt the starters to digits, emoji, a search and a new word, offline"),
}
CLOSED = 141  # what a shell calls a program that SIGPIPE (13) stopped: 128 + 13


def _help() -> str:
    lines = [
        "usage: vpt COMMAND [options]      vpt COMMAND --help tells more",
        "",
        "Learn prompts for frozen vision models.",
        "",
        *(f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "  vpt fit --data photos/ --method vpt-deep --out runs/photos",
        "  vpt fit --data photos/ --model timm/vit_small_patch16_224.augreg_in21k --lr search --out runs/vit",
        "  vpt predict runs/photos/prompts.safetensors picture.jpg",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 when a run failed, 2 for what the user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        status = _run(argv)
        sys.stdout.flush()  # else a reader that is gone is noticed when nothing can be done any more
        return status
    except BrokenPipeError:
        # `vpt methods | head` has read enough; what is left in the buffer must not be tried again at exit
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  lives as long as the process
        return CLOSED


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    command = argv[0]
    if command == "--version":
        print(f"visual-prompt-tuning {version('visual-prompt-tuning')}")
        return 0
    if command not in COMMANDS:
        print(f"vpt: no command {command!r}. There are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        import_module(COMMANDS[command][0]).run(command, argv[1:])
    except SystemExit as stopped:  # argparse, after --help (0) or a message of its own (2)
        return stopped.code if isinstance(stopped.code, int) else 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        return _say(error, 2)
    except RuntimeError as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        kept = any(word.split("=")[0] == "--out" for word in argv)
        goes_on = (
            command in ("fit", "compare", "table", "generate")
            or argv[:2] == ["index", "build"]
            or (command == "test-time" and kept)
        )
        more = " The same command goes on where it stopped." if goes_on else ""
        print(f"\nvpt: stopped.{more}", file=sys.stderr)
        return 130
    return 0


def _say(error: Exception, status: int) -> int:
    if os.environ.get("VPT_DEBUG"):
        raise error
    print(f"vpt: {error}", file=sys.stderr)
    return status
