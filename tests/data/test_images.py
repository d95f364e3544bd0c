"""Pictures decode as a viewer shows them; every expectation is computed from arrays, not by decode."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vpt.data.images import UnreadableImage, decode, size


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes | Path | Image.Image) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def rgb(noise) -> np.ndarray:
    return noise(0, width=5, height=7)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_plain_pictures_are_untouched(rgb, kind):
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(rgb), kind)), rgb)


def test_sources_agree(rgb, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(rgb), "png"))
    for data in (path, str(path), path.read_bytes(), Image.open(path), Image.fromarray(rgb)):
        np.testing.assert_array_equal(np.asarray(decode(data)), rgb)
    assert size(path) == (5, 7)


# EXIF's meaning of each orientation: where the stored row 0 and column 0 lie, as array operations
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_exif_rotation(rgb, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(rgb), kind, exif=exif)
    np.testing.assert_array_equal(pixels(data), TURNS[orientation](rgb))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_as_stored(rgb):
    data = encoded(Image.fromarray(rgb), "png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(data), rgb)


def ink(cmyk: np.ndarray) -> np.ndarray:
    left = 255.0 - cmyk.astype(float)
    return left[..., :3] * left[..., 3:] / 255


def test_cmyk_tiff(noise):
    cmyk = np.concatenate([noise(1), noise(2)[..., :1]], -1)
    data = encoded(Image.fromarray(cmyk, "CMYK"), "tiff")
    np.testing.assert_allclose(pixels(data), ink(cmyk), atol=1)


def test_cmyk_jpeg_as_adobe_writes_it():
    cmyk = np.zeros((32, 32, 4), np.uint8)
    cmyk[:, :16], cmyk[:, 16:] = (200, 30, 60, 20), (0, 220, 100, 90)
    data = encoded(Image.fromarray(cmyk, "CMYK"), "jpeg", quality=100)
    assert b"Adobe" in data[:200]  # the marker that says: stored inverted
    np.testing.assert_allclose(pixels(data), ink(cmyk), atol=4)


def png16(values: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, built by hand: [H, W] gray or [H, W, 3]."""
    height, width = values.shape[:2]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_sixteen_bits_are_scaled(shape):
    values = np.random.default_rng(0).integers(0, 2**16, shape)
    want = np.broadcast_to((values / 257).reshape(6, 9, -1), (6, 9, 3))
    np.testing.assert_allclose(pixels(png16(values)), want, atol=1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bit_tiff(dtype):
    values = np.random.default_rng(0).integers(0, 2**16, (4, 4)).astype(dtype)
    got = pixels(encoded(Image.fromarray(values), "tiff"))
    np.testing.assert_allclose(got[..., 0], values / 257, atol=1)


def test_float_tiff_has_a_white_of_1_or_255():
    values = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    for scale in (1, 255):
        got = pixels(encoded(Image.fromarray(values * scale), "tiff"))
        np.testing.assert_allclose(got[..., 1], values * 255, atol=1)
    with pytest.raises(UnreadableImage, match=r"mode F with values .*known white"):
        decode(encoded(Image.fromarray(values * 1e6), "tiff"))


def test_palette(rgb):
    image = Image.fromarray(rgb).quantize(8)
    want = np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)]
    for kind in ("png", "gif", "bmp"):
        np.testing.assert_array_equal(pixels(encoded(image, kind)), want)


def test_transparent_palette_is_shown_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    for kind in ("png", "gif"):
        got = pixels(encoded(image, kind, transparency=1))
        assert got.tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_alpha_is_shown_over_white(noise, kind):
    rgba = np.concatenate([noise(1), noise(2)[..., :1]], -1)
    data = encoded(
        Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "webp" else {})
    )
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(pixels(data), rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1.01)


def test_gray_with_alpha_and_black_and_white(noise):
    la = noise(3)[..., :2]
    alpha = la[..., 1] / 255
    got = pixels(encoded(Image.fromarray(la, "LA"), "png"))
    np.testing.assert_allclose(got[..., 2], la[..., 0] * alpha + 255 * (1 - alpha), atol=1.01)
    bits = la[..., 0] > 127
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits), "png"))[..., 0], bits * 255)


def test_colour_key_of_an_rgb_png(rgb):
    rgb[0, 0] = (1, 2, 3)
    got = pixels(encoded(Image.fromarray(rgb), "png", transparency=(1, 2, 3)))
    rgb[0, 0] = 255
    np.testing.assert_array_equal(got, rgb)


@pytest.mark.parametrize(("kind", "options"), [("gif", {}), ("png", {}), ("webp", {"lossless": True})])
def test_first_frame_of_an_animation(kind, options):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    opened = Image.open(io.BytesIO(data))
    assert opened.n_frames == 3
    opened.seek(2)  # wherever somebody left it
    for source in (data, opened):
        np.testing.assert_array_equal(pixels(source), np.broadcast_to([255, 0, 0], (4, 4, 3)))


def test_bomb_is_refused_before_it_is_decoded(monkeypatch, rgb):
    data = encoded(Image.fromarray(rgb), "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for read in (decode, size):
        with pytest.raises(UnreadableImage, match=r"bomb.png: .*35 pixels"):
            read(data, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow itself refuses from twice the limit on
    with pytest.raises(UnreadableImage, match=r"bomb\.png"):
        decode(data, "bomb.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello, this is text", "no known picture format"),
        (None, "No such file"),
    ],
)
def test_refusals_name_the_file_and_the_reason(tmp_path, content, reason):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=rf"broken\.jpg: .*{reason}"):
        decode(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp"])
def test_truncated_pictures_are_refused(kind, noise):
    data = encoded(Image.fromarray(noise(0, 64, 64)), kind)
    with pytest.raises(UnreadableImage, match="cut"):
        decode(data[: len(data) // 2], "cut")


def test_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "it is empty")))
    assert (str(error), error.name, error.reason) == (
        str(UnreadableImage("a.jpg", "it is empty")),
        "a.jpg",
        "it is empty",
    )


@given(st.sampled_from(["png", "jpeg", "gif", "webp", "tiff", "bmp"]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_damage_decodes_or_is_refused_and_nothing_else(kind, seed):
    stream = np.random.default_rng(seed)
    data = bytearray(encoded(Image.fromarray(stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)), kind))
    for place in stream.integers(0, len(data), 3):
        data[place] = stream.integers(256)
    with contextlib.suppress(UnreadableImage):
        assert decode(bytes(data)).mode == "RGB"
