"""Photos as phones and cameras store them: colour profiles, AVIF, HEIC, and what lies beside them in a folder."""

from __future__ import annotations

import io
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, save_photo, stored
from PIL import Image, ImageCms, ImageFile

import common
from explain.data import image_files

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
# columns red, green, blue; rows X, Y, Z, adapted to D50 (SMPTE EG 432-1 and IEC 61966-2-1, as in the usual profiles)
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
CONVERTED, IGNORED = "colour profile converted to sRGB", "colour profile ignored"
UNUSABLE = "unusable colour profile ignored"


def icc(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.1 (ICC.1:2001-04, section 6)."""
    tags = {b"desc": b"desc" + struct.pack(">5I", 0, 2, 0x74000000, 0, 0) + bytes(74), **tags}
    tags |= {b"wtpt": xyz(0.9642, 1, 0.8249), b"cprt": b"text\0\0\0\0-\0"}
    table, data, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">2I", at + len(data), len(content))
        data += content
    header = struct.pack(">I", at + len(data)) + b"none" + bytes([2, 0x10, 0, 0]) + kind + space + pcs
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


CURVES = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(2.2))
COLUMNS = {name: xyz(*column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), DISPLAY_P3.T, strict=True)}
P3 = icc(b"RGB ", b"XYZ ", b"mntr", COLUMNS | CURVES)
GREY_OF_1_5 = icc(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": gamma(1.5)})
# lightness 100 (1 - c)(1 - m)(1 - y)(1 - k), no colour
INKS = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
INKS += bytes(range(256)) * 4 + b"\xff\x80\x80" + b"\x00\x80\x80" * 15 + bytes(range(256)) * 3
CMYK = icc(b"CMYK", b"Lab ", b"prtr", {b"A2B0": INKS})
STANDARD = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def read(image: Image.Image, profile: bytes, kind: str = "PNG", upright: bool = True) -> tuple[np.ndarray, list[str]]:
    result = image_files.decode_image(stored(image, kind, icc_profile=profile), "photo", upright)
    assert result.mode == "RGB"
    return np.asarray(result), result.info["notes"]


def encode(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: linear light in [0, 1] as sRGB's 8 bits."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_p3(pixels: np.ndarray) -> np.ndarray:
    return encode((pixels / 255) ** (round(2.2 * 256) / 256) @ DISPLAY_P3.T @ np.linalg.inv(SRGB).T)


def test_display_p3_becomes_srgb_or_is_noted():
    """What every iPhone writes; the strongest colours, which sRGB lacks, are cut off. sRGB itself is left alone."""
    pixels, notes = read(Image.fromarray(RGB), P3)
    assert np.abs(pixels - from_p3(RGB)).max() < 2.5 and notes == [CONVERTED]
    assert np.abs(pixels.astype(int) - RGB).mean() > 5
    for profile, upright, said in ((P3, False, [IGNORED]), (STANDARD, True, []), (STANDARD, False, [])):
        pixels, notes = read(Image.fromarray(RGB), profile, upright=upright)
        assert np.array_equal(pixels, RGB) and notes == said


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_the_profile_of_every_format(kind):
    pixels, notes = read(Image.new("RGB", (32, 24), (60, 180, 90)), P3, kind)
    assert np.abs(pixels - from_p3(np.array([60, 180, 90]))).max() < 5 and notes == [CONVERTED]


GREY, INKS_OF_HALF = RGB[..., 0], Image.new("CMYK", (8, 8), (128, 0, 0, 0))
OF_GREY = encode((RGB[..., :1] / 255) ** 1.5)
OTHER_MODES = {  # image, profile, pixels, notes
    "grey": (Image.fromarray(GREY), GREY_OF_1_5, OF_GREY, ["L to RGB"]),
    "16 bits": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY_OF_1_5, OF_GREY, ["16-bit to 8-bit"]),
    # some cameras do so
    "grey in colours": (Image.fromarray(GREY), P3, from_p3(RGB[..., :1].repeat(3, 2)), ["L to RGB"]),
    # a lightness of 50, in sRGB a grey of 119; Pillow's own is light blue
    "inks": (INKS_OF_HALF, CMYK, np.array(119), ["CMYK to RGB"]),
    "palette": (Image.new("RGB", (8, 8), (60, 180, 90)).quantize(2), P3, from_p3(np.array([60, 180, 90])), []),
}


@pytest.mark.parametrize("name", OTHER_MODES)
def test_profiles_of_other_modes(name):
    image, profile, expected, said = OTHER_MODES[name]
    pixels, notes = read(image, profile, "TIFF" if name == "inks" else "PNG")
    assert np.abs(pixels - expected).max() < 2.5 and notes == [*said, CONVERTED]
    if name == "inks":
        assert read(image, profile, "TIFF", upright=False)[1] == [IGNORED, "CMYK to RGB"]


def test_a_profile_is_for_the_colours_not_for_what_is_transparent():
    alpha = Image.new("L", (32, 24), 255)
    alpha.paste(0, (0, 0, 16, 24))
    image = Image.fromarray(RGB)
    image.putalpha(alpha)
    pixels, notes = read(image, P3)
    assert (pixels[:, :16] == 255).all() and notes == [CONVERTED, "transparency laid over white"]
    assert np.abs(pixels[:, 16:] - from_p3(RGB[:, 16:])).max() < 2.5


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", profile) for profile in (b"no profile", P3[:200], P3[:132] + b"\xff" * 400, CMYK, GREY_OF_1_5)]
    + [("CMYK", P3), ("L", CMYK)],
)
def test_a_broken_profile_is_noted_and_passed_over(mode, profile):
    image = Image.fromarray(RGB).convert(mode)
    said = [UNUSABLE] if mode == "RGB" else [UNUSABLE, f"{mode} to RGB"]
    for upright in (True, False):
        pixels, notes = read(image, profile, "TIFF", upright)
        assert np.array_equal(pixels, image.convert("RGB")) and notes == said


def test_a_damaged_profile_in_a_file():
    data = stored(Image.fromarray(RGB), "PNG", icc_profile=P3)
    at = data.index(b"iCCP") + 20
    with pytest.raises(common.UserError, match="is not an image"):  # the checksum
        image_files.decode_image(data[:at] + b"damage" + data[at + 6 :], "photo")
    data = stored(Image.fromarray(RGB), "TIFF", icc_profile=P3)
    at = data.index(P3[100:]) - 100
    image = image_files.decode_image(data[: at + 36] + b"damage" + data[at + 42 :], "photo")
    assert np.array_equal(image, RGB) and image.info["notes"] == [UNUSABLE]


@pytest.mark.usefixtures("undrawn")
def test_2d_converts_and_2b_does_not(tmp_path, run):
    """Published accuracies are those of the pixels as stored; both say what they did."""
    for folder in ("photos", "data/DL_data_p/7"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(RGB).save(tmp_path / folder / "a.png", icc_profile=P3)
        save_photo(tmp_path / folder / "b.png")
    for script, arguments, note in (("2d_predict", ["photos"], CONVERTED), ("2b_evaluate", [], IGNORED)):
        images = run(script, *arguments, *TINY)["images"]
        assert images["notes"] == {note: 1} and images["used"] == 2


# ------------------------------------------------------------------------------------------------
# Formats of phones


def test_avif():
    data = stored(Image.fromarray(RGB), "AVIF", quality=95)
    image = image_files.decode_image(data, "photo.avif")
    assert np.array_equal(image, Image.open(io.BytesIO(data))) and image.info["notes"] == []
    for end in (100, len(data) // 2, len(data) - 1):
        with pytest.raises(common.UserError, match=r"photo\.avif (cannot be read|is not an image)"):
            image_files.decode_image(data[:end], "photo.avif")
    frames = stored(Image.fromarray(RGB), "AVIF", save_all=True, append_images=[Image.new("RGB", (32, 24))])
    assert image_files.decode_image(frames, "photo.avif").info["notes"] == ["first frame of several"]
    for upright, size in ((True, (24, 32)), (False, (32, 24))):
        exif = Image.Exif()
        exif[0x0112] = 6  # Pillow takes it out of what it is given
        turned = image_files.decode_image(stored(Image.fromarray(RGB), "AVIF", exif=exif), "photo", upright)
        assert turned.size == size and turned.info["notes"]


def test_the_bits_that_avif_had():
    """A header that says 10 or 12 bits; Pillow returns 8, and writes no other."""
    image = SimpleNamespace(format="AVIF", info={})
    for flags, bits in ((0x0C, 8), (0x4C, 10), (0x6C, 12)):
        assert image_files._bits(image, b"....av1C\x81\x20" + bytes([flags]) + b"\0") == bits
    assert image_files._bits(SimpleNamespace(format="HEIF", info={"bit_depth": 10}), b"") == 10


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0heicmif1"])
def test_heic_without_its_package_is_one_sentence(brands, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(100))
    with pytest.raises(common.UserError, match=r"IMG_1.HEIC is a HEIC image, .*`pip install pillow-heif`, or convert"):
        common.read_image(tmp_path / "IMG_1.HEIC")


def test_heic_where_its_package_is_installed(monkeypatch):
    """What the package does: it registers a reader with Pillow."""

    class Reader(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode, self.tile = (32, 24), "RGB", []
            self.info["bit_depth"] = 10

        def load(self):
            self.im = Image.fromarray(RGB).im
            return super().load()

    package = SimpleNamespace(register_heif_opener=lambda: Image.register_open("HEIF", Reader))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    for registered in (Image.OPEN, Image.ID):
        monkeypatch.setattr(Image, "OPEN" if registered is Image.OPEN else "ID", registered.copy())
    image = image_files.decode_image(HEIC, "photo.heic")
    assert np.array_equal(image, RGB) and image.info["notes"] == ["10-bit to 8-bit"]
    with pytest.raises(common.UserError, match="is not an image in JPEG, .*, AVIF, PPM, HEIC"):  # a closed list, still
        image_files.decode_image(stored(Image.fromarray(RGB), "TGA"), "photo.tga")


# ------------------------------------------------------------------------------------------------
# What lies beside the photos


@pytest.mark.usefixtures("undrawn")
def test_files_that_are_no_images_by_their_names_are_counted(tmp_path, run, capsys):
    """It was listed among the damaged pictures, file by file; what is a picture by its name still is."""
    for folder in (tmp_path / "photos", tmp_path / "data/DL_data_p/7"):
        for name in ("a.png", "c", "photo.2", "sub/d.png"):
            save_photo(folder / name, format="PNG")
        (folder / "old.dng").write_bytes(b"raw")
        for name in ("README.txt", "Thumbs.db", "sub/notes.md", "movie.MP4"):
            (folder / name).write_text("no picture")
    for script, arguments in (("2d_predict", ["photos"]), ("2b_evaluate", [])):
        images = run(script, *arguments, *TINY)["images"]
        assert (images["used"], images["other_files"]) == (4, 4)
        assert [entry["path"].rpartition("/")[2] for entry in images["skipped"]] == ["old.dng"]
        assert "files skipped because they have no image extension: 4" in capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("undrawn")
def test_a_file_given_by_name_is_read_whatever_its_name(tmp_path, run):
    save_photo(tmp_path / "a.png").rename(tmp_path / "a.dat")
    assert run("2d_predict", "a.dat", *TINY)["images"]["used"] == 1
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/README.txt").touch()
    with pytest.raises(common.UserError, match="texts has no images, only 1 file without an image extension: put"):
        run("2d_predict", "texts", *TINY)
