"""Pictures: read as 8-bit sRGB whatever they were stored as; a damaged one is an error, never passed off as whole."""

from __future__ import annotations

import io
import os
import re
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

IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")  # and HEIC, by another package
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # ISO/IEC 23008-12, annex B
FINDINGS = ("notes", "largest_16_bit")  # in a picture's `info`, for its row
# and the opposite, as Pillow has them
BYTE_ORDERS = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# What a picture's name ends with; the second line are those that cannot be read, and are worth a sentence each
PICTURE_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|jfif|mpo|a?png|gif|bmp|dib|tiff?|webp|avifs?|hei[cf]|hif|"
    r"p[pgbn]m|tga|ico|jp2|j2k|jxl|psd|svg|eps|exr|dng|cr[23]|nef|arw|orf|rw2|raf)",
    re.IGNORECASE,
)
# The colours that a profile defines: the mode in which it is applied, and the modes of pictures that it is for
PROFILE_MODES = {
    "RGB": ("RGB", {"RGB", "RGBA", "RGBX", "P", "PA", "YCbCr", "1", "L", "LA"}),
    "GRAY": ("L", {"1", "L", "LA"}),
    "CMYK": ("CMYK", {"CMYK"}),
}
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


def is_image_name(path: Path) -> bool:
    """Return whether a file may be a picture by its name: by what it ends with, or where that is no word (photo.2)."""
    return bool(PICTURE_SUFFIX.fullmatch(path.suffix)) or not path.suffix[1:2].isalpha()


def read_image(path: str | os.PathLike, upright: bool = True, white: int | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB, whatever it was stored as.

    `upright` turns it as its EXIF orientation says, and converts its colours from its colour profile to sRGB; without,
    the pixels are as stored. `white` is the value that becomes 255 in a 16-bit picture (default: WHITE); values above
    it are white, too. `image.info` has "notes" on what was done to the stored pixels beyond decoding, or left out, and
    the largest value of a 16-bit picture as "largest_16_bit" (FINDINGS). Raises UserError where the file cannot be
    read.
    """
    return decode_image(read_bytes(path), printable(Path(path)), upright, white)


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


def decode_image(data: bytes, name: str, upright: bool = True, white: int | None = None) -> Image.Image:
    """Decode the content of a file as `read_image` does; errors call it `name`."""
    try:
        image = _open(data, _heic_format(name) if _is_heic(data) else IMAGE_FORMATS)
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
        bits, low = _bits(image, data), _low_bytes(image, data)
        has_own_white = _maxval(image) not in (None, WHITE)  # the latter is any 16-bit picture's
        # the EXIF tag Orientation, taken away before Pillow turns a TIFF by itself
        turn = TURNS.get(image.getexif().pop(0x0112, 1))
        image.load()
        image, largest = _to_8_bits(image, low, None if has_own_white else white)
        if bits > 8:
            is_set = white and largest is not None and not has_own_white
            notes.append(f"{bits}-bit to 8-bit" + (f", white at {white:,}" if is_set else ""))
        if turn is not None:
            notes.append("turned upright by EXIF" if upright else "EXIF orientation ignored")
            image = image.transpose(turn) if upright else image
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
    if bits > 8:  # said already
        colour, note = ([n for n in said if n != "L to RGB"] for said in (colour, note))
    image.info["notes"] = notes + colour + note
    if largest is not None and not has_own_white:
        image.info["largest_16_bit"] = largest
    return image


def nearly_black(largest: Sequence[int], white: int | None) -> str | None:
    """Return a sentence with a cure if any 16-bit picture, of all whose largest values these are, is nearly black."""
    white = white or WHITE
    dark = [value for value in largest if 0 < value < white / 4]
    if not dark:
        return None
    better = 2 ** max(dark).bit_length() - 1
    alone = " in a run without the brighter ones" if max(largest) > better else ""
    have = "has" if len(dark) == 1 else "have"
    return (
        f"16-bit pictures come out nearly black: {len(dark):,} of {len(largest):,} {have} no value above "
        f"{max(dark):,}, and white is {white:,}; give --white {better}{alone}"
    )


def _open(data: bytes, formats: Sequence[str]) -> Image.Image:
    """Open a picture; a PPM of 16-bit colours so that `_low_bytes` finds the bytes that Pillow's decoder drops."""
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.mode == "RGB" and _maxval(image) == WHITE and image.tile[0].codec_name == "ppm":
        image.tile = [image.tile[0]._replace(codec_name="raw", args=("RGB;16B", 0, 1))]
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


def _is_heic(data: bytes) -> bool:
    """Return whether a file is HEIC, by the brands it begins with; AVIF has some of them, and its own."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    return data[4:8] == b"ftyp" and bool(brands & HEIC_BRANDS) and not brands & {b"avif", b"avis"}


def _heic_format(name: str) -> list[str]:
    """Return Pillow's name of HEIC, once pillow-heif can read it."""
    try:
        import pillow_heif
    except ImportError:
        cure = "`pip install pillow-heif`, or convert it to JPEG"
        raise UserError(f"{name} is a HEIC picture, which only the package pillow-heif can read: {cure}") from None
    pillow_heif.register_heif_opener()
    return ["HEIF"]


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel, of which Pillow or a format's decoder may keep 8."""
    if image.format == "AVIF" and (box := re.search(rb"av1C\x81.(.)", data, re.DOTALL)):
        return 8 if not box[1][0] & 0x40 else 12 if box[1][0] & 0x20 else 10  # github.com/AOMediaCodec/av1-isobmff, 2.3
    if image.format in ("AVIF", "HEIF"):
        return image.info.get("bit_depth", 8)
    if (maxval := _maxval(image)) is not None:
        return max(8, maxval.bit_length())
    return 16 if image.mode.startswith("I") or re.search("[ABKX];16", str(image.tile)) else 8  # RGB;16B, LA;16B, ...


def _maxval(image: Image.Image) -> int | None:
    """Return the value that a PPM calls white, to which Pillow's decoder scales its pixels."""
    tile = image.tile[0] if image.format == "PPM" and image.tile else None
    return tile.args[1] if tile and tile.codec_name.startswith("ppm") and isinstance(tile.args[-1], int) else None


def _low_bytes(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the lower bytes (H, W, channels) of 16-bit colours, of which Pillow keeps the upper; None if it cannot.

    Read in the opposite byte order, they are in the place of the upper ones.
    """
    if not re.search("RGBA?;16", str(image.tile)):
        return None

    def opposite(mode: Any) -> Any:
        return re.sub("(?<=;16)[BLN]", lambda order: BYTE_ORDERS[order[0]], mode) if isinstance(mode, str) else mode

    low = _open(data, [image.format])
    low.tile = [
        tile._replace(args=opposite(tile.args) if isinstance(tile.args, str) else tuple(map(opposite, tile.args)))
        for tile in low.tile
    ]
    low.getexif().pop(0x0112, None)  # for a PNG this decodes the pixels
    return np.asarray(low)


def _to_8_bits(image: Image.Image, low: np.ndarray | None, white: int | None) -> tuple[Image.Image, int | None]:
    """Return a 16-bit picture with 8 bits, and the largest value of its colours; others as they are, and None.

    The picture holds grey values of 16 bits, or the upper bytes of colours, whose lower bytes are `low`.
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
    """Return the picture with its colours in sRGB, and what was done; as it was where it shall be as stored."""
    if "icc_profile" not in image.info or image.mode == "LAB":  # whose colours need no profile
        return image, []
    try:
        converted = _to_srgb(image)
    except Exception:  # LittleCMS and Pillow raise many kinds
        return image, ["unusable colour profile ignored"]
    if converted is None or not upright:
        return image, [] if converted is None else ["colour profile ignored"]
    notes = [f"{image.mode} to RGB"]
    known = image.mode in ("RGB", "P") or image.has_transparency_data  # or noted later
    return converted, [*([] if known else notes), "colour profile converted to sRGB"]


def _to_srgb(image: Image.Image) -> Image.Image | None:
    """Return the picture with its colours, which its profile defines, in sRGB; None where they are sRGB already.

    Colours that sRGB lacks become the nearest that it has, or what the profile has for them. Raises any exception for a
    profile that is broken, or belongs to another kind of picture.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    mode, modes = PROFILE_MODES[profile.profile.xcolor_space.strip()]
    if image.mode not in modes:
        raise ValueError(f"a profile of {mode} colours for a picture of {image.mode}")
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK":
        # 9 x 9 x 9 colours, or as many greys
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        probe = Image.fromarray(colours).convert(mode)
        change = np.subtract(ImageCms.applyTransform(probe, transform), probe.convert("RGB"), dtype=int)
        if np.abs(change).max() <= 2:  # rounding, and the two versions of sRGB's profile
            return None
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


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


def fit_whole(image: Image.Image, side: int) -> Tensor:
    """Return a whole picture (3, side, side) in [0, 1]: its longer side is `side` pixels, what is around it is grey."""
    fitted = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=(128, 128, 128))
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255


def to_pixels(image: Tensor) -> np.ndarray:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) uint8, for drawing and saving."""
    return (image.detach().cpu() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
