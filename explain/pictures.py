"""Pictures: read as 8-bit RGB whatever they were stored as; a damaged one is an error, never passed off as whole."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from explain.errors import UserError, one_line, printable

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
TURNS = {  # what turns a picture upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_SIDES = 500  # one side by the other; resizing the shorter one to 256 makes such an image 128,000 long
MAX_PIXELS = 80_000_000  # a decoded image of that size takes 240 MB; larger ones are refused undecoded
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four channels of 16 bits, uncompressed
MAX_SCANS = 500  # of a progressive JPEG, each a pass over all pixels; ten are common, libjpeg-turbo's fuzzer stops here


def read_image(path: str | os.PathLike, upright: bool = True) -> Image.Image:
    """Read a picture as 8-bit RGB, whatever it was stored as.

    `upright` turns it as its EXIF orientation says. What was done to the stored pixels beyond
    decoding is listed in `image.info["notes"]`. Raises UserError where the file cannot be read.
    """
    return decode_image(read_bytes(path), printable(Path(path)), upright)


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return a file's content; raises UserError for what is not a regular file (a pipe would never end)."""
    name = printable(Path(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{name} is not a regular file: give an image file")
    try:
        size = os.stat(path).st_size
        data = Path(path).read_bytes() if size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{name} cannot be read ({reason}): replace or remove it") from None
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size:,} bytes, more than {MAX_BYTES:,}: give an image file")
    return data


def decode_image(data: bytes, name: str, upright: bool = True) -> Image.Image:
    """Decode the content of a file as `read_image` does; errors call it `name`."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: scale it down first"
            )
        if max(image.size) > MAX_SIDES * min(image.size):
            raise UserError(
                f"{name} has {image.width} x {image.height} pixels, one side over {MAX_SIDES} times the other"
            )
        _check_whole(image, data)
        notes = ["first frame of several"] if getattr(image, "is_animated", False) else []
        if re.search("[ABKX];16", str(image.tile)):  # RGB;16B, LA;16B, ...: Pillow keeps the upper half
            notes.append("16-bit to 8-bit")
        # the EXIF tag Orientation, taken away before Pillow turns a TIFF by itself
        turn = TURNS.get(image.getexif().pop(0x0112, 1))
        image.load()
        if turn is not None:
            notes.append("turned upright by EXIF" if upright else "EXIF orientation ignored")
            image = image.transpose(turn) if upright else image
        image, note = _to_rgb(image)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not an image in {', '.join(IMAGE_FORMATS)}: convert or remove it") from None
    except Image.DecompressionBombError:  # Pillow's own limit is twice as high
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels: scale it down first") from None
    except Exception as error:  # a damaged file makes Pillow raise anything, an IndexError among them
        raise UserError(f"{name} cannot be read ({one_line(error)}): replace or remove it") from None
    image.info["notes"] = notes + note
    return image


def _check_whole(image: Image.Image, data: bytes) -> None:
    """Raise ValueError for damage that Pillow passes over: it would make up the pixels."""
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # the checksums, which decoding leaves out
    if image.format in ("JPEG", "MPO"):
        # from marker to marker; FF00 is a value and FFD0 to FFD7 are marks within the pixels' code
        at, scans, markers = 2, 0, re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])", re.DOTALL)
        while (marker := markers.search(data, at)) and marker[1] != b"\xd9":  # D9 ends the image
            at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
            scans += marker[1] == b"\xda"
        if not marker:
            raise ValueError("image file is truncated")
        if scans > MAX_SCANS:
            raise ValueError(f"{scans} scans, more than {MAX_SCANS}")
        if any(0 in table for table in image.quantization.values()):
            raise ValueError("a quantization table has zeros")


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, []
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit values {values.min()}..{values.max()} have no defined white")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB"), ["16-bit to 8-bit"]
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB"), ["transparency laid over white"]
    return image.convert("RGB"), [] if image.mode == "P" else [f"{image.mode} to RGB"]


def fit_whole(image: Image.Image, side: int) -> Tensor:
    """Return a whole picture (3, side, side) in [0, 1]: its longer side is `side` pixels, what is around it is grey."""
    fitted = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=(128, 128, 128))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255


def to_pixels(image: Tensor) -> np.ndarray:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) uint8, for drawing and saving."""
    return (image.detach().cpu() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
