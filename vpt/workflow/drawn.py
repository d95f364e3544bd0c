"""Pictures that were drawn: files that say how they were made, contact sheets, and a page."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from vpt.promptset import write_atomically

__all__ = ["Drawn", "page", "read_told", "sheet", "there", "write_drawn"]

Picture = Image.Image | list[Image.Image]  # a list of frames is a video

DESCRIPTION = 0x010E  # EXIF's ImageDescription, where a WebP keeps what a PNG keeps in text chunks
PASSING = ("vpt", "command")  # what may differ between two ways to the same picture
SIDE, WIDEST, LEAST = (
    320,
    4096,
    96,
)  # of pictures on sheets: longest side, of all beside each other, at least; pixels
PAPER, INK, SOFT = "#ffffff", "#1d2733", "#52606d"
GAP = 16
QUALITY = 90


@dataclass(frozen=True)
class Drawn:
    """A file that was drawn.  label: what tells it from its neighbours.  prompt: as it was said."""

    file: Path
    label: str
    prompt: str

    @property
    def still(self) -> Image.Image:
        """The picture; of a video the frame in the middle."""
        with Image.open(self.file) as picture:
            picture.seek(getattr(picture, "n_frames", 1) // 2)
            return picture.convert("RGB")


def write_drawn(
    path: str | os.PathLike[str], picture: Picture, told: Mapping[str, str], fps: float = 16
) -> Path:
    """Write a PNG with ``told`` in its text chunks, or of a video an animated WebP with it as JSON in its EXIF.

    It is written to a temporary name and renamed.
    """
    buffer, said = io.BytesIO(), {k: _writable(v) for k, v in told.items()}
    if isinstance(picture, list):
        exif = Image.Exif()
        exif[DESCRIPTION] = json.dumps(said)
        how: dict[str, Any] = {"save_all": True, "append_images": picture[1:], "loop": 0, "quality": QUALITY}
        picture[0].save(buffer, "WEBP", duration=round(1000 / fps), exif=exif, **how)
    else:
        info = PngInfo()
        for key, value in said.items():
            info.add_text(key, value)
        picture.save(buffer, "PNG", pnginfo=info)
    return write_atomically(path, buffer.getvalue())


def _writable(text: str) -> str:
    """Arguments in another encoding hold lone surrogates; a zero ends a chunk."""
    return text.replace("\0", " ").encode("utf-8", "backslashreplace").decode()


def read_told(path: str | os.PathLike[str]) -> dict[str, str]:
    """What :func:`write_drawn` told a file; {} for files of another make. Raises FileNotFoundError."""
    try:
        with Image.open(path) as picture:
            if picture.format == "PNG":
                return {k: str(v) for k, v in picture.text.items()}  # type: ignore[attr-defined]
            found = json.loads(picture.getexif().get(DESCRIPTION) or "{}")
            return found if isinstance(found, dict) else {}
    except (UnidentifiedImageError, ValueError, SyntaxError):
        return {}


def there(path: Path, told: Mapping[str, str]) -> bool:
    """Whether the file is there, drawn in this very way. Raises ValueError for one that was drawn otherwise."""
    if not path.exists():
        return False
    kept = read_told(path)
    want = {k: _writable(v) for k, v in told.items()}
    for key in [k for k in {**want, **kept} if k not in PASSING]:
        if kept.get(key) != want.get(key):
            was, now = (f"{key} {side[key]!r}" if key in side else f"without {key}" for side in (kept, want))
            raise ValueError(
                f"{path} is there and was drawn otherwise ({was}; now {now}). Give another --out, or --replace to "
                "draw it anew."
            )
    return True


def sheet(title: str, rows: Sequence[Sequence[Drawn]], facts: Mapping[str, str]) -> Image.Image:
    """A contact sheet: pictures with their labels, row by row; a single column is wrapped.

    Small pictures are enlarged by a whole number, so that their pixels stay what they are.
    """
    rows = _wrapped_rows(rows)
    across = max(map(len, rows))
    side = min(SIDE, max(LEAST, WIDEST // across))
    stills = [[_fitted(d.still, side) for d in row] for row in rows]
    cell = max(side * 3 // 4, max(s.width for row in stills for s in row))
    width = 2 * GAP + across * (cell + GAP) - GAP
    width = max(width, 2 * GAP + SIDE)
    small, large = _font("DejaVuSans.ttf", 13), _font("DejaVuSans-Bold.ttf", 19)
    told = "; ".join(f"{k} {v}" for k, v in facts.items())
    head = [(line, large, INK, 26) for line in _lines(title, large, width - 2 * GAP)]
    head += [(line, small, SOFT, 18) for line in _lines(told, small, width - 2 * GAP)]
    labels = [[_lines(d.label, small, cell) for d in row] for row in rows]
    heights = [
        max(s.height for s in some) + 6 + 18 * max(map(len, texts)) + GAP
        for some, texts in zip(stills, labels, strict=True)
    ]
    top = GAP + sum(step for *_, step in head) + GAP // 2
    canvas = Image.new("RGB", (width, top + sum(heights)), PAPER)
    pen, y = ImageDraw.Draw(canvas), GAP
    for line, font, ink, step in head:
        pen.text((GAP, y), line, ink, font)
        y += step
    y = top
    for some, texts, height in zip(stills, labels, heights, strict=True):
        for i, (still, lines) in enumerate(zip(some, texts, strict=True)):
            x = GAP + i * (cell + GAP)
            canvas.paste(still, (x, y))
            for k, line in enumerate(lines):
                pen.text((x, y + max(s.height for s in some) + 6 + 18 * k), line, INK, small)
        y += height
    return canvas


def _wrapped_rows(rows: Sequence[Sequence[Drawn]]) -> list[list[Drawn]]:
    """Rows as they are; a single column about as wide as high."""
    if max(map(len, rows)) > 1:
        return [list(row) for row in rows]
    every = [d for row in rows for d in row]
    across = ceil(sqrt(len(every)))
    return [every[i : i + across] for i in range(0, len(every), across)]


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    longest = max(picture.size)
    if longest * 2 <= side:
        times = side // longest
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's DejaVu, which knows more letters than Pillow's own."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most this many pixels, broken between words where they fit, else within."""
    lines, line = [], ""
    for word in _writable(text).split():
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        while len(line) > 1 and font.getlength(line) > width:
            cut = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line]


def page(
    title: str, rows: Sequence[Sequence[Drawn]], facts: Mapping[str, str], made: Mapping[str, str]
) -> str:
    """HTML with the pictures inside as data URIs, no script, nothing fetched; pictures link to the files beside it.

    facts: what all pictures have in common.  made: how they can be made again.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("vpt.workflow").joinpath("drawn.html.j2").read_text("utf-8")
    shown = [[_card(d) for d in row] for row in rows]
    told = {
        "title": title,
        "rows": shown,
        "across": max(map(len, rows)),
        "facts": dict(facts),
        "made": dict(made),
    }
    return _writable(environment.from_string(text).render(**told))


def _card(d: Drawn) -> dict[str, Any]:
    """Small pictures and videos as they are, others as thumbnails."""
    still = d.still
    small = max(still.size) <= SIDE
    if d.file.suffix == ".webp" or small:
        kind, data = d.file.suffix[1:], d.file.read_bytes()
    else:
        kind, buffer = "jpeg", io.BytesIO()
        still.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
        still.save(buffer, kind, quality=QUALITY)
        data = buffer.getvalue()
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "href": d.file.name, "label": d.label, "alt": d.prompt, "small": small}
