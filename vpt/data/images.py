"""Decode a picture to what a viewer shows: upright, RGB, 8 bits a channel, over white, first frame.

ICC profiles are not applied: the networks were trained on pictures decoded without them.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Encoded = bytes | str | os.PathLike[str] | Image.Image


class UnreadableImage(ValueError):
    """A picture that cannot be decoded; the message names it and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"cannot read the picture {name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return UnreadableImage, (self.name, self.reason)  # crosses the border of a loader's worker


def decode(data: Encoded, name: str | None = None) -> Image.Image:
    """RGB picture of encoded bytes, a file, or an open PIL picture.

    name: what errors call the picture; by default its path.
    Raises UnreadableImage for missing, empty, cut or foreign files, for pictures above
    ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (decompression bombs) and for values without a known white.
    """
    image, name = _opened(data, name)
    try:
        _refuse_bomb(image, name)
        image.seek(0)
        image.load()
        return _rgb(_upright(image), name)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImage(name, _why(error)) from error


def size(data: Encoded, name: str | None = None) -> tuple[int, int]:
    """(width, height) as stored, read from the header alone. Raises UnreadableImage."""
    image, name = _opened(data, name)
    _refuse_bomb(image, name)
    return image.size


def _opened(data: Encoded, name: str | None) -> tuple[Image.Image, str]:
    if isinstance(data, Image.Image):
        return data, name or getattr(data, "filename", "") or "(in memory)"
    if not isinstance(data, bytes):
        name = name or os.fspath(data)
        try:
            data = Path(data).read_bytes()
        except OSError as error:
            raise UnreadableImage(name, error.strerror or _why(error)) from error
    name = name or "(in memory)"
    if not data:
        raise UnreadableImage(name, "it is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data)), name
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(name, "no known picture format starts like this file") from error
    except Exception as error:  # see decode
        raise UnreadableImage(name, _why(error)) from error


def _refuse_bomb(image: Image.Image, name: str) -> None:
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise UnreadableImage(
            name,
            f"{image.width} x {image.height} = {pixels:,} pixels, more than the {limit:,} allowed (it may be "
            "a decompression bomb). Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it",
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, EOFError):
        return image  # a damaged EXIF block: viewers then show the picture as it is stored


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image, name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> np.ndarray:
    """Gray values of a picture deeper than 8 bits, scaled so that its white is 255; uint8 [H, W]."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    sixteen = image.mode.startswith("I")  # Pillow opens 16 bits as I;16 or, from some formats, as I
    white = 65535.0 if sixteen else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= white):  # NaN fails too
        wanted = "0..65535" if sixteen else "0..1 or 0..255"
        raise UnreadableImage(
            name, f"mode {image.mode} with values {low:g}..{high:g}; only {wanted} has a known white"
        )
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def _why(error: Exception) -> str:
    return f"{error} ({type(error).__name__})" if str(error) else type(error).__name__
