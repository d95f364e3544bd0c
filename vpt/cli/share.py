"""``vpt push``, ``vpt pull``, ``vpt import`` and ``vpt export``: prompt files from and to elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from vpt.cli.names import class_names
from vpt.header import read_header

__all__ = ["run"]

VIT = ("vpt-shallow", "vpt-deep")
CLIP = ("coop", "cocoop", "kgcoop", "prograd", "clip-vpt", "ivlp", "maple", "promptsrc", "mmrl", "peft")
EMBEDDINGS = "textual-inversion"
LORA = "lora"
LAYOUTS = ("diffusers", "a1111", "kohya", "sdxl", "sd3", "flux", "t5", "xti", "reneg")


def run(command: str, argv: list[str]) -> None:
    """Move a prompt file, or make one of another tool's file, or the other way round."""
    {"push": _push, "pull": _pull, "import": _import, "export": _export}[command](argv)


def _push(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="vpt push",
        description="Upload a prompt file with a card made from its metadata (README.md) to the Hugging Face hub.",
    )
    parser.add_argument("file")
    parser.add_argument("repo", help="USER/NAME; it is made where it is not there")
    parser.add_argument("--private", action="store_true", help="seen by you only, where it is made now")
    parser.add_argument("--message", default="Upload prompts with vpt", help="of the commit")
    args = parser.parse_args(argv)
    read_header(args.file)  # refused before the hub's library is loaded

    from vpt.hub import push

    print(push(args.file, args.repo, private=args.private, message=args.message))


def _pull(argv: list[str]) -> None:
    from vpt.hub import FILE, pull

    parser = argparse.ArgumentParser(
        prog="vpt pull", description="Fetch a prompt file from the Hugging Face hub."
    )
    parser.add_argument("repo", help="USER/NAME")
    parser.add_argument("--out", help="file to write; by default NAME.safetensors in this folder")
    parser.add_argument("--filename", default=FILE, help="its name in the repository (default: %(default)s)")
    parser.add_argument("--revision", help="branch, tag or commit")
    args = parser.parse_args(argv)
    out = pull(args.repo, filename=args.filename, revision=args.revision, out=args.out)
    print(f"{out} ({out.stat().st_size / 1e3:.1f} kB)\n  vpt inspect {out}")


def _import(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="vpt import",
        description="Turn a checkpoint of the authors' code (KMnP/vpt; CoOp and its family; peft's prompt tuning), or "
        "an embeddings file of a text-to-image tool, into a prompt file. Nothing in it is run.",
    )
    parser.add_argument(
        "file", help="prompt_ep*.pth, model.pth.tar-*, a whole state dict, adapter_model.*, learned_embeds.*"
    )
    parser.add_argument(
        "--method",
        choices=[*VIT, *CLIP, EMBEDDINGS],
        help=f"what it holds; of the CLIP methods it is read off the file. {EMBEDDINGS}: embeddings of diffusers, "
        "AUTOMATIC1111, ComfyUI, kohya-ss, OneTrainer, and ReNeg's negative ones",
    )
    parser.add_argument(
        "--model",
        help="the backbone that it was learned on: timm/NAME.TAG, open_clip/ARCH:WEIGHTS, diffusers/REPO_OR_FOLDER; "
        f"needed for all but {EMBEDDINGS}, whose widths are then compared",
    )
    parser.add_argument("--name", help="of embeddings: the placeholder without its brackets, such as my-mug")
    parser.add_argument("--sentence", help="where the file does not say it, such as '<ctx*8> {} <ctx*8>.'")
    parser.add_argument("--weights", help="local checkpoint of the backbone")
    parser.add_argument("--size", type=int, help="size of the pictures, where it is not the backbone's own")
    parser.add_argument("--classes", help="names in the order of the head: a,b,c or a file with one a line")
    parser.add_argument("--out", required=True, help="file to write")
    args = parser.parse_args(argv)
    if not Path(args.file).is_file():
        raise FileNotFoundError(f"there is no checkpoint {args.file!r}.")
    if args.method == EMBEDDINGS:
        _import_embeddings(args)
    elif args.name:
        raise ValueError(f"--name is for --method {EMBEDDINGS}.")
    elif not args.model:
        raise ValueError(
            f"which backbone was it learned on? Give --model. Embeddings need none: --method {EMBEDDINGS}."
        )
    else:
        _import_checkpoint(args)


def _import_checkpoint(args: argparse.Namespace) -> None:
    classes = None if args.classes is None else class_names(args.classes)

    from vpt.importers import import_clip_prompts, import_prompts
    from vpt.towers.load import load

    backbone = load(args.model, weights=args.weights, size=args.size)
    if "text" in backbone.towers and args.method not in VIT:
        prompts = import_clip_prompts(
            args.file, backbone, method=args.method, classes=classes or (), sentence=args.sentence
        )
    elif args.method not in VIT:
        raise ValueError(
            f"{args.model} has no text tower, so the file is one of {' or '.join(VIT)}. Say --method."
        )
    else:
        prompts = import_prompts(args.file, args.method, backbone, classes=classes)
    out = prompts.save(args.out)
    names = prompts.head or (prompts.about.get("names") and prompts.classes)
    use = (
        f"vpt predict {out} PICTURE..." if names else "it names no classes: give --classes to predict with it"
    )
    print(f"{len(prompts.rows)} layers of rows: {out} ({out.stat().st_size / 1e3:.1f} kB)\n  {use}")


def _import_embeddings(args: argparse.Namespace) -> None:
    if more := [f"--{k}" for k in ("sentence", "classes", "size") if getattr(args, k) is not None]:
        raise ValueError(f"{' and '.join(more)} cannot stand with --method {EMBEDDINGS}.")

    from dataclasses import replace

    from vpt.importers import read_embeddings

    encoders, label = None, {}
    if args.model:
        from vpt.towers.load import load

        backbone = load(args.model, weights=args.weights)
        encoders = {k: t.width for k, t in backbone.towers.items() if k.startswith("text") or k == "context"}
        label = backbone.label()
    prompts = read_embeddings(args.file, (args.name or "").strip("<>"), encoders=encoders)
    written = {site.tower for site in prompts.rows}
    if (
        label and "context" not in written
    ):  # rows hold for every network that has the encoders they are written to
        label["fingerprints"] = {k: v for k, v in label["fingerprints"].items() if k in written}
    if label:
        prompts = replace(prompts, about=prompts.about | {"backbone": label})
    out = prompts.save(args.out)
    sites = ", ".join(f"{site} {tuple(rows.shape)}" for site, rows in prompts.rows.items())
    print(f"{sites}: {out} ({out.stat().st_size / 1e3:.1f} kB)\n  vpt inspect {out}")


def _export(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="vpt export",
        description="Write the rows of a placeholder (or a negative context) as the embeddings file of another tool, "
        "or a DreamBooth-LoRA baseline as diffusers' LoRA file.",
    )
    parser.add_argument("file", help="a prompt file with rows at a placeholder such as <my-mug>")
    parser.add_argument(
        "--layout",
        choices=(*LAYOUTS, LORA),
        default="diffusers",
        help="whose file to write (default: %(default)s)",
    )
    parser.add_argument("--name", default="", help="the placeholder without its brackets, of several")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, .pt or .bin")
    args = parser.parse_args(argv)
    read_header(args.file)  # refused before torch is loaded

    from vpt.importers import write_embeddings, write_lora
    from vpt.promptset import PromptSet

    prompts, name = PromptSet.load(args.file), args.name.strip("<>")
    if args.layout != LORA:
        out = write_embeddings(prompts, args.out, args.layout, name=name)
    elif name:
        raise ValueError(f"--name is of a placeholder, and the layout {LORA} has none. Leave it out.")
    else:
        out = write_lora(prompts, args.out)
    print(f"{args.layout}: {out} ({out.stat().st_size / 1e3:.1f} kB)")
    for word in (prompts.about.get("placeholders") or {}).values() if args.layout == LORA else ():
        print(f"  pipe.load_lora_weights({str(out)!r}); sentences say {word!r}")
