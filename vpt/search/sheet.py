"""A contact sheet: queries and the pictures they found, as one page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from vpt.data.images import UnreadableImage, decode
from vpt.data.item import DataError
from vpt.search.index import Index
from vpt.search.vectors import Hit

__all__ = ["Answer", "page"]

QUALITY = 85  # of thumbnails


@dataclass(frozen=True)
class Answer:
    """query: the text, or the path of a picture.  image: the picture that was asked with.  hits: best first."""

    query: str
    image: Path | None
    hits: Sequence[Hit]


def page(index: Index, answers: Sequence[Answer], *, title: str = "", thumbnail: int = 320) -> str:
    """HTML with the pictures inside as data URIs, no script, nothing fetched.

    thumbnail: longest side in pixels.  A picture that is gone is told of in its place.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("vpt.search").joinpath("sheet.html.j2").read_text("utf-8")
    shown = [
        {
            "query": a.query,
            "picture": _thumbnail(a.image, thumbnail) if a.image else "",
            "hits": [_card(index, hit, thumbnail) for hit in a.hits],
        }
        for a in answers
    ]
    m = index.manifest
    facts = {
        "pictures": f"{m.count:,}",
        "collection": m.collection,
        "backbone": m.encoder["backbone"]["name"],
        "image rows": m.encoder["rows"] or "none",
    }
    name = title or (f"“{answers[0].query}”" if len(answers) == 1 else f"{len(answers)} searches")
    page = environment.from_string(text).render(title=name, answers=shown, facts=facts)
    return page.encode("utf-8", "backslashreplace").decode()  # names of files in another encoding


def _card(index: Index, hit: Hit, side: int) -> dict[str, Any]:
    told: dict[str, Any] = {"id": hit.id, "score": hit.score, "captions": index.item(hit.id).captions}
    try:
        return {**told, "picture": _uri(index.picture(hit.id), side), "why": ""}
    except (UnreadableImage, DataError) as error:
        return {**told, "picture": "", "why": str(error)}


def _thumbnail(path: Path, side: int) -> str:
    return _uri(decode(path), side)


def _uri(picture: Image.Image, side: int) -> str:
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
