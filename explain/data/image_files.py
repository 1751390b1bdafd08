"""Image files: any supported format is read as 8-bit sRGB, and a damaged file is an error."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from explain.basics.errors import UserError, one_line, printable
from explain.basics.options import WHITE

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")  # and HEIC, if pillow-heif is installed
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # ISO/IEC 23008-12, annex B
FINDINGS = ("notes", "largest_16_bit")  # keys of an image's `info` that go into its row
# Pillow's names of byte orders, and their opposites
BYTE_ORDERS = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Image extensions; the formats of the second line cannot be read, and each file is reported
IMAGE_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|jfif|mpo|a?png|gif|bmp|dib|tiff?|webp|avifs?|hei[cf]|hif|"
    r"p[pgbn]m|tga|ico|jp2|j2k|jxl|psd|svg|eps|exr|dng|cr[23]|nef|arw|orf|rw2|raf)",
    re.IGNORECASE,
)
# By the colours that a profile defines: the mode in which it is applied, and the modes of images that may have it
PROFILE_MODES = {
    "RGB": ("RGB", {"RGB", "RGBA", "RGBX", "P", "PA", "YCbCr", "1", "L", "LA"}),
    "GRAY": ("L", {"1", "L", "LA"}),
    "CMYK": ("CMYK", {"CMYK"}),
}
ORIENTATION = 0x0112  # EXIF tag; from 2 to 8 the pixels are not stored upright
MAX_SIDES = 500  # ratio of the sides; with its shorter side resized to 256, such an image is 128,000 pixels long
MAX_PIXELS = 80_000_000  # 240 MB when decoded; larger images are refused undecoded
MAX_BYTES = 8 * MAX_PIXELS  # of a file; four channels of 16 bits, uncompressed
MAX_SCANS = 500  # of a progressive JPEG, each a pass over all pixels; ten are common, libjpeg-turbo's fuzzer allows 500


def is_image_name(path: Path) -> bool:
    """Return whether a file name may be an image's: it has an image extension, or none that is a word (photo.2)."""
    return bool(IMAGE_SUFFIX.fullmatch(path.suffix)) or not path.suffix[1:2].isalpha()


def read_image(path: str | os.PathLike, upright: bool = True, white: int | None = None) -> Image.Image:
    """Read an image of any supported format as 8-bit RGB.

    `upright` rotates it by its EXIF orientation and converts its colours from its colour profile to sRGB; otherwise the
    pixels are as stored. `white` is the value in a 16-bit image that becomes 255, as all values above it do (default:
    WHITE). `image.info` has "notes" on conversions and omissions, and the largest value of a 16-bit image as
    "largest_16_bit" (FINDINGS). Raises UserError if the file cannot be read.
    """
    return decode_image(read_bytes(path), printable(Path(path)), upright, white)


def read_bytes(path: str | os.PathLike) -> bytes:
    """Return a file's content; raise UserError for anything but a regular file (a pipe would never end)."""
    name = printable(Path(path))
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{name} is not a regular file: give an image file")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{name} has {status.st_size:,} bytes, more than {MAX_BYTES:,}: give an image file")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): replace or remove it") from None


def decode_image(data: bytes, name: str, upright: bool = True, white: int | None = None) -> Image.Image:
    """Decode a file's content as `read_image` does; `name` is the file's name in errors."""
    try:
        image = _open(data, _formats(data, name))
        pixels = f"{name} has {image.width} x {image.height} pixels"
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{pixels}, more than {MAX_PIXELS:,}: scale it down first")
        if max(image.size) > MAX_SIDES * min(image.size):
            raise UserError(f"{pixels}, one side more than {MAX_SIDES} times the other: crop it first")
        _check_complete(image, data)
        notes = ["first frame of several"] if getattr(image, "is_animated", False) else []
        bits, low = _bits(image, data), _low_bytes(image, data)
        has_own_white = _maxval(image) not in (None, WHITE)
        orientation = image.getexif().pop(ORIENTATION, 1)  # or Pillow rotates a TIFF when it loads it
        image.load()
        image, largest = _to_8_bits(image, low, None if has_own_white else white)
        largest = None if has_own_white else largest
        if bits > 8:
            notes.append(f"{bits}-bit to 8-bit" + (f", white at {white:,}" if white and largest is not None else ""))
        if orientation in range(2, 9):
            notes.append("turned upright by EXIF" if upright else "EXIF orientation ignored")
            image.getexif()[ORIENTATION] = orientation
            image = ImageOps.exif_transpose(image) if upright else image
        image, colour = _use_profile(image, upright)
        image, note = _to_rgb(image)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not an image in {', '.join(IMAGE_FORMATS)}, HEIC: convert or remove it") from None
    except Image.DecompressionBombError:  # Pillow's own limit is twice as high
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels: scale it down first") from None
    except Exception as error:  # a damaged file makes Pillow raise anything, an IndexError among them
        raise UserError(f"{name} cannot be read ({one_line(error)}): replace or remove it") from None
    # "16-bit to 8-bit" includes "L to RGB"
    image.info["notes"] = notes + [text for text in colour + note if bits == 8 or text != "L to RGB"]
    if largest is not None:
        image.info["largest_16_bit"] = largest
    return image


def warn_of_nearly_black(rows: Sequence[dict], white: int | None) -> None:
    """Print a note with a cure if 16-bit images come out nearly black; `rows` have the FINDINGS of all images."""
    largest = [row["largest_16_bit"] for row in rows if "largest_16_bit" in row]
    white = white or WHITE
    if dark := [value for value in largest if 0 < value < white / 4]:
        better = 2 ** max(dark).bit_length() - 1
        alone = " in a run without the brighter ones" if max(largest) > better else ""
        print(
            f"note: 16-bit images come out nearly black: no value is above {max(dark):,} in {len(dark):,} of "
            f"{len(largest):,}, and white is {white:,}; give --white {better}{alone}",
            file=sys.stderr,
        )


def _open(data: bytes, formats: Sequence[str]) -> Image.Image:
    """Open an image; of a 16-bit colour PPM, keep the low bytes, which Pillow's own decoder drops, for `_low_bytes`."""
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.mode == "RGB" and _maxval(image) == WHITE and image.tile[0].codec_name == "ppm":
        image.tile = [image.tile[0]._replace(codec_name="raw", args=("RGB;16B", 0, 1))]
    return image


def _check_complete(image: Image.Image, data: bytes) -> None:
    """Raise ValueError for damage that Pillow ignores, inventing the missing pixels."""
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # the checksums, which decoding does not check
    if image.format in ("JPEG", "MPO"):
        # from marker to marker; FF00 is a value, and FFD0 to FFD7 are restart marks among the pixels
        at, scans, markers = 2, 0, re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])", re.DOTALL)
        while (marker := markers.search(data, at)) and marker[1] != b"\xd9":  # D9 ends the image
            at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
            scans += marker[1] == b"\xda"
        if not marker:
            raise ValueError("image file is truncated")
        if scans > MAX_SCANS:
            raise ValueError(f"{scans} scans, more than {MAX_SCANS}")
        if any(0 in table for table in image.quantization.values()):
            raise ValueError("a quantisation table has zeros")


def _formats(data: bytes, name: str) -> Sequence[str]:
    """Return Pillow's names of the formats that a file may have; raise UserError for HEIC without pillow-heif.

    HEIC is known by the brands at the beginning of a file; AVIF has some of them beside its own.
    """
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if data[4:8] != b"ftyp" or not brands & HEIC_BRANDS or brands & {b"avif", b"avis"}:
        return IMAGE_FORMATS
    try:
        import pillow_heif
    except ImportError:
        cure = "`pip install pillow-heif`, or convert it to JPEG"
        raise UserError(f"{name} is a HEIC image, which only the package pillow-heif can read: {cure}") from None
    pillow_heif.register_heif_opener()
    return ["HEIF"]


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the stored bits per channel, of which Pillow or the format's decoder may keep 8."""
    if image.format == "AVIF" and (box := re.search(rb"av1C\x81.(.)", data, re.DOTALL)):
        return 8 if not box[1][0] & 0x40 else 12 if box[1][0] & 0x20 else 10  # github.com/AOMediaCodec/av1-isobmff, 2.3
    if image.format in ("AVIF", "HEIF"):
        return image.info.get("bit_depth", 8)
    if (maxval := _maxval(image)) is not None:
        return max(8, maxval.bit_length())
    return 16 if image.mode.startswith("I") or re.search("[ABKX];16", str(image.tile)) else 8  # RGB;16B, LA;16B, ...


def _maxval(image: Image.Image) -> int | None:
    """Return the value of white in a PPM, by which Pillow's decoder scales the pixels; None for other images."""
    tile = image.tile[0] if image.format == "PPM" and image.tile else None
    return tile.args[1] if tile and tile.codec_name.startswith("ppm") and isinstance(tile.args[-1], int) else None


def _low_bytes(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the low bytes (H, W, channels) of 16-bit colours, of which Pillow keeps the high bytes; None for others.

    In an image read in the opposite byte order, the low bytes take the place of the high ones.
    """
    if not re.search("RGBA?;16", str(image.tile)):
        return None

    def opposite(mode: Any) -> Any:
        return re.sub("(?<=;16)[BLN]", lambda order: BYTE_ORDERS[order[0]], mode) if isinstance(mode, str) else mode

    low = _open(data, [image.format])
    arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in low.tile]
    low.tile = [t._replace(args=tuple(map(opposite, args))) for t, args in zip(low.tile, arguments, strict=True)]
    low.getexif().pop(ORIENTATION, None)  # of a PNG, this decodes the pixels
    return np.asarray(low)


def _to_8_bits(image: Image.Image, low: np.ndarray | None, white: int | None) -> tuple[Image.Image, int | None]:
    """Return a 16-bit image with 8 bits, and the largest value of its colours; other images unchanged, and None.

    The image has grey values of 16 bits, or the high bytes of colours, whose low bytes are `low`.
    """
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        values = np.asarray(image)  # (H, W)
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError(f"32-bit values {values.min()}..{values.max()} have no defined white")
        largest = int(values.max())
    elif low is not None:
        values = np.asarray(image).astype(np.uint16) << 8 | low  # (H, W, 3 or 4)
        largest = int(values[..., :3].max())
        if white is None:
            return image, largest
    else:
        return image, None
    white = white or WHITE
    scale = (np.arange(WHITE + 1).clip(max=white) * 255 // white).astype(np.uint8)
    scaled = Image.fromarray(scale[values])
    if "icc_profile" in image.info:
        scaled.info["icc_profile"] = image.info["icc_profile"]
    return scaled, largest


def _use_profile(image: Image.Image, upright: bool) -> tuple[Image.Image, list[str]]:
    """Return the image with its colours, which its profile defines, in sRGB, and notes; as stored unless `upright`.

    Colours that sRGB lacks become the nearest ones in sRGB, or those that the profile provides for them.
    """
    if "icc_profile" not in image.info or image.mode == "LAB":  # LAB colours need no profile
        return image, []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        mode, modes = PROFILE_MODES[profile.profile.xcolor_space.strip()]
        if image.mode not in modes:
            raise ValueError(f"a profile of {mode} colours for an image of {image.mode}")
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        # 9 x 9 x 9 colours, or as many greys
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        probe = Image.fromarray(colours).convert(mode)
        change = np.subtract(ImageCms.applyTransform(probe, transform), probe.convert("RGB"), dtype=int)
        if mode != "CMYK" and np.abs(change).max() <= 2:  # rounding, and the two versions of sRGB's profile
            return image, []
        converted = ImageCms.applyTransform(image.convert(mode), transform)
    except Exception:  # LittleCMS and Pillow raise many kinds
        return image, ["unusable colour profile ignored"]
    if not upright:
        return image, ["colour profile ignored"]
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    is_noted = image.mode in ("RGB", "P") or image.has_transparency_data  # by `_to_rgb`, if at all
    return converted, [*([] if is_noted else [f"{image.mode} to RGB"]), "colour profile converted to sRGB"]


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, []
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB"), ["transparency laid over white"]
    return image.convert("RGB"), [] if image.mode == "P" else [f"{image.mode} to RGB"]


def fit_image(image: Image.Image, side: int) -> Tensor:
    """Return an image as (3, side, side) in [0, 1], its longer side resized to `side` pixels, with grey around it."""
    fitted = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=(128, 128, 128))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255


def to_pixels(image: Tensor) -> np.ndarray:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) of uint8, for drawing and saving."""
    return (image.detach().cpu() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
