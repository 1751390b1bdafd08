"""Reading images of every kind, names of classes, options, files: what all scripts stand on."""

from __future__ import annotations

import json
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, save_photo, stored
from PIL import Image

import common
from explain.basics.errors import OthersAtWork
from explain.basics.files import is_inside, write_file
from explain.data import image_files
from explain.report import figures
from explain.report.figures import figure_style, save_figure
from explain.run import output, shell
from explain.run.command_line import exercise_parser, option_parser
from explain.run.rows import run_settings

RGB = (np.arange(56 * 75 * 3).reshape(56, 75, 3) % 251).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "P", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(RGB).convert(mode).save(tmp_path / name)
    image = common.read_image(tmp_path / name, white=4095)  # which is for 16 bits alone
    assert (image.mode, image.size) == ("RGB", (75, 56))
    expected = {"RGB": [], "P": [], "LA": ["transparency laid over white"], "RGBA": ["transparency laid over white"]}
    assert image.info["notes"] == expected.get(mode, [f"{mode} to RGB"])
    if mode in ("RGB", "RGBA"):  # opaque alpha changes nothing
        assert np.array_equal(np.asarray(image), RGB)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (H, W, 3 or 4), which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = values.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0))
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def deep_tiff(values: np.ndarray, order: str, deflate: bool) -> bytes:
    """A TIFF of 16-bit colours (H, W, 3) in the byte order < or >."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if deflate else pixels
    # width, height, bits a channel (at 128), compression, RGB, place of the pixels, channels, lines, bytes
    tags = {256: width, 257: height, 258: 128, 259: 8 if deflate else 1, 262: 2, 273: 134, 277: channels, 278: height}
    tags |= {279: len(pixels)}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in tags.items():
        kind, count = (3, 3) if tag == 258 else (4, 1)
        head += struct.pack(f"{order}HHII", tag, kind, count, value)
    return head.ljust(128, b"\0") + struct.pack(f"{order}3H", 16, 16, 16) + pixels


# 1000 * 255 / 4095 is 62.3, 2048 * 255 / 4095 is 127.5, 5000 is above white
TWELVE_BITS = np.array([[0, 1000, 2048, 4095, 5000]], np.uint16)
WITH_WHITE = [0, 62, 127, 255, 255]


COLOURS = np.stack([TWELVE_BITS, TWELVE_BITS[:, ::-1], TWELVE_BITS * 0 + 1000], -1)  # (1, 5, 3)
DEEP = {
    "grey png": stored(Image.fromarray(TWELVE_BITS), "PNG"),
    "png": deep_png(COLOURS),
    "png with transparency": deep_png(np.concatenate([COLOURS, TWELVE_BITS[..., None] * 0 + 65535], -1)),
    **{f"{order} tiff {deflate}": deep_tiff(COLOURS, order, deflate) for order in "<>" for deflate in (False, True)},
    "binary ppm": b"P6 5 1 65535\n" + COLOURS.astype(">u2").tobytes(),
    "grey as text": b"P2 5 1 65535\n" + " ".join(map(str, TWELVE_BITS[0])).encode(),
}


@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_are_read_in_full(kind, tmp_path):
    """Pillow keeps the upper byte of colours, in which 12 bits have 16 values, and makes greys above 255 white."""
    path = tmp_path / "a"
    path.write_bytes(DEEP[kind])
    image, dark = common.read_image(path, white=4095), common.read_image(path)
    others = [WITH_WHITE, WITH_WHITE] if "grey" in kind else [WITH_WHITE[::-1], [62] * 5]
    assert np.asarray(image)[0].T.tolist() == [WITH_WHITE, *others]
    assert np.abs(np.asarray(dark)[0, :, 0] - [0, 3, 7, 15, 19]).max() <= 1
    assert image.info["notes"][0] == "16-bit to 8-bit, white at 4,095" and dark.info["notes"][0] == "16-bit to 8-bit"
    assert image.info["largest_16_bit"] == dark.info["largest_16_bit"] == 5000


def test_a_ppm_says_itself_what_is_white(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 4095\n" + TWELVE_BITS.clip(max=4095).astype(">u2").tobytes())
    for white in (None, 1023):
        image = common.read_image(tmp_path / "a.pgm", white=white)
        assert np.asarray(image)[0, :, 0].tolist() == WITH_WHITE
        assert image.info["notes"] == ["12-bit to 8-bit"] and "largest" not in image.info


@pytest.mark.parametrize(
    ("largest", "white", "says"),
    [
        ([3800], None, "no value is above 3,800 in 1 of 1, and white is 65,535; give --white 4095"),
        ([1000, 4095, 60_000], None, "give --white 4095 in a run without the brighter ones"),
        ([16_383], None, "give --white 16383"),
        ([200, 250], 4095, "no value is above 250 in 2 of 2, and white is 4,095; give --white 255"),
        ([16_384], None, None),  # a quarter of white
        ([4095], 4095, None),
        ([0], None, None),
        ([], None, None),
    ],
)
def test_images_that_come_out_nearly_black_are_noted(largest, white, says, capsys):
    image_files.warn_of_nearly_black([{}, *({"largest_16_bit": value} for value in largest)], white)
    said = capsys.readouterr().err
    assert said == "" if says is None else said.endswith(f"{says}\n")


@pytest.mark.usefixtures("undrawn")
def test_scripts_say_and_set_the_white(tmp_path, run, capsys):
    for i in range(2):
        (tmp_path / f"photos/{i}").mkdir(parents=True)
        pixels = (TWELVE_BITS.repeat(8, 0).repeat(2, 1) + i).clip(max=4095)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}/a.png")
    runs = {"2d_predict": ["photos", *TINY], "process_data": ["--folders", "photos", "--dataset", "data"]}
    for script, arguments in runs.items():
        run(script, *arguments, "--output", "output")
        said = "no value is above 4,095 in 2 of 2, and white is 65,535; give --white 4095"
        assert said in capsys.readouterr().err
        metrics = run(script, *arguments, "--white", "4095", "--output", "output")
        assert "nearly black" not in capsys.readouterr().err and metrics["settings"]["white"] == 4095
        if script == "2d_predict":
            assert metrics["images"]["notes"] == {"16-bit to 8-bit, white at 4,095": 2}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    """The eight ways to store the same picture come out as one, or as they were stored."""
    upright = Image.fromarray(RGB)
    inverse = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}
    # Image.Transpose: 0 left-right, 1 top-bottom, 2, 3, 4 rotate by 90, 180, 270, 5 transpose, 6 transverse
    as_stored = upright
    for step in inverse.get(orientation, []):
        as_stored = as_stored.transpose(Image.Transpose(step))
    exif = Image.Exif()
    exif[0x0112] = orientation
    as_stored.save(tmp_path / "a.png", exif=exif)
    image = common.read_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(image), RGB)
    assert image.info["notes"] == (["turned upright by EXIF"] if orientation > 1 else [])
    left = common.read_image(tmp_path / "a.png", upright=False)
    assert np.array_equal(np.asarray(left), np.asarray(as_stored))
    assert left.info["notes"] == (["EXIF orientation ignored"] if orientation > 1 else [])


def test_any_size_can_be_seen(tmp_path):
    model = common.load_model("squeezenet1_0", "random")
    for size in ((75, 56), (6000, 4000), (1, 1), (900, 3), (1, 500)):
        Image.new("RGB", size, "red").save(tmp_path / "a.jpg")
        pixels = model.preprocess(common.read_image(tmp_path / "a.jpg"))
        assert pixels.shape == (3, 224, 224) and 0 <= pixels.min() <= pixels.max() <= 1


def test_logits_that_depend_on_the_batch_or_are_not_finite_are_an_error(images):
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3, track_running_stats=False), torch.nn.Flatten())
    with pytest.raises(common.UserError, match="depends on its batch"):
        common.predict_logits(net, images)
    with pytest.raises(common.UserError, match="logits are not finite"):
        common.predict_logits(torch.nn.Flatten(), images / 0)


def test_an_id_names_a_class():
    categories = ["tench", "crane", "great white shark, white shark"]
    assert common.find_class("2", categories) == common.find_class("White_Shark", categories) == 2
    for text in ("3", "-1"):
        with pytest.raises(common.UserError, match="0 to 2"):
            common.find_class(text, categories)


def test_write_file_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_file(path, "one")
    os.utime(path, (1, 1))
    write_file(path, "one")
    assert path.stat().st_mtime == 1  # the same bytes: left alone

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "two")
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_csv_text_has_six_digits_quotes_and_the_columns_of_all_rows_but_no_lists():
    rows = [{"a": 1 / 3, "b": 'x,"y"', "c": None, "e": [1]}, {"a": 1, "b": 2, "c": 3, "d": 4, "f": {}}]
    assert output.csv_text(rows) == 'a,b,c,d\n0.333333,"x,""y""",,\n1,2,3,4\n'


def test_links_to_folders_are_followed_once_each(tmp_path):
    """They were left out without a word. The folder's own path comes before a link's; a loop ends."""
    for name in ("photos/b/1.png", "outside/2.png", "outside/below/3.png"):
        save_photo(tmp_path / name, size=(8, 8))
    for link, target in {
        "photos/a": "b",  # beside the folder itself
        "photos/c": "../outside",
        "photos/d": "../outside/below",  # listed by the link before
        "photos/e": "../outside",
        "photos/b/loop": "..",
        "outside/up": "..",  # a folder that holds the link, wherever that is met
        "photos/nothing": "absent",
    }.items():
        (tmp_path / link).symlink_to(target)
    found = [p.relative_to(tmp_path).as_posix() for p in common.list_files(tmp_path / "photos")]
    assert found == ["photos/b/1.png", "photos/c/2.png", "photos/c/below/3.png", "photos/nothing"]
    found = [p.relative_to(tmp_path).as_posix() for p in common.list_files(tmp_path / "photos/c")]
    assert found == ["photos/c/2.png", "photos/c/below/3.png"]


def test_validation_images_are_ordered_by_class_number_without_those_of_systems(tmp_path):
    systems = ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
    own = ["9/a.png", "9/b/c.png", "100/a.png"]
    for name in (*own, "9/._a.png", *(f"{folder}{system}/1.png" for folder in ("", "9/") for system in systems)):
        save_photo(tmp_path / "DL_data_p" / name, size=(8, 8))
    (tmp_path / "DL_data_p/9/.DS_Store").touch()
    files = common.validation_images(tmp_path)
    assert [file.key.removeprefix("DL_data_p/") for file in files] == own and files.other_files == 0


@pytest.mark.parametrize("name", ["test_images", "Test Images", "test"])
def test_the_datasets_test_images(name, tmp_path):
    save_photo(tmp_path / "DL_data" / name / "x.png")
    options = option_parser("", "images", "--dataset", "--limit").parse_args(["--dataset", str(tmp_path)])
    (file,) = common.test_images(options)
    assert file.key == f"DL_data/{name}/x.png" and file.path.is_file()


def test_run_turns_errors_into_one_sentence(capsys):
    def raising(error):
        def main():
            raise error

        return main

    with pytest.raises(SystemExit, match="^error: no such thing: take another$"):
        shell.run(raising(common.UserError("no such thing: take another")))
    shell.run(raising(OthersAtWork("shard 0/2: all 3 rows are done")))
    assert capsys.readouterr().out == "shard 0/2: all 3 rows are done\n"
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        shell.run(raising(ZeroDivisionError()))


def test_every_seed_and_every_key_has_its_own_stream():
    seeds, keys = (0, 1, 2, 3, 999, 2**31 - 1), (0, 1, 2, 999, 49_999)
    drawn = {
        torch.rand(4, generator=g).numpy().tobytes() for seed in seeds for g in common.seeded_generators(seed, keys)
    }
    assert len(drawn) == len(seeds) * len(keys)
    again = [torch.rand(4, generator=g) for _ in range(2) for g in common.seeded_generators(7, [5])]
    assert torch.equal(*again)
    starts = sorted(g.initial_seed() for seed in range(1000) for g in common.seeded_generators(seed, [0]))
    assert min(b - a for a, b in zip(starts, starts[1:], strict=False)) > 1_000_000  # keys up to there meet no other's
    assert starts[0] + 2**32 - starts[-1] > 1_000_000


def test_an_earlier_run_goes_but_not_what_others_put_there(tmp_path):
    """Its files do, unless another shard of the new run has written them again by now."""
    options = option_parser("", "--output", "--seed").parse_args(["--output", str(tmp_path)])
    folder, rows = tmp_path / "thing", [{"index": 0, "notes": ["L to RGB"]}]
    for names in (["a.csv", "b.csv", "again.csv"], ["a.csv"]):
        output_folder = common.OutputFolder(options, "thing.py")
        output_folder.discard_metrics()
        output_folder.write_rows(rows)
        output_folder.finish(rows, [], {"x": 1.0}, {name: [{"k": 1}] for name in names})
        (folder / "mine.csv").write_text("mine")
        if len(names) == 3:
            later = (folder / "metrics.json").stat().st_mtime + 1
            os.utime(folder / "again.csv", (later, later))
    names = ["a.csv", "again.csv", "metrics.json", "mine.csv", "rows.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    metrics = json.loads((tmp_path / "thing/metrics.json").read_text())
    assert metrics["images"]["notes"] == {"L to RGB": 1} and metrics["seed"] == 0


def test_nothing_finite_is_needed_to_draw(tmp_path):
    """Nor a name without a dollar, which matplotlib would take for the beginning of a formula."""
    with figure_style():
        figure, axes = figures.panel_grid(3, ["a", "b"], per_line=2)
        figures.draw_image(axes[0, 0], torch.rand(3, 8, 8))
        figures.draw_heading(axes[0], "$\\bad{$")
        figures.draw_map(axes[0, 1], np.full((8, 8), np.nan), 1.0, "not finite")
    save_figure(figure, tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == first and axes.shape == (3, 2)
    with Image.open(tmp_path / "a.png") as drawn:
        drawn.load()
        assert set(drawn.info) == {"dpi"}  # no time, no version of what drew it


def test_operations_without_a_deterministic_form_are_named(tmp_path):
    """On any device but the processor; torch's warning is the source, and other warnings are let through."""
    with (
        pytest.warns(UserWarning, match="something else"),
        common.record_nondeterminism(torch.device("meta")) as chance,
    ):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        warnings.warn("bad_op does not have a deterministic implementation, but you set ...", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert chance == {"bad_op"} and not torch.are_deterministic_algorithms_enabled()
    options = option_parser("", "--output").parse_args(["--output", str(tmp_path)])
    for rows in ([{"index": 0}], [{"index": 0, "nondeterministic": ["bad_op"]}]):
        common.OutputFolder(options, "thing.py").finish(rows, [], {}, {})
        metrics = json.loads((tmp_path / "thing/metrics.json").read_text())
        assert metrics["deterministic"] == (len(rows[0]) == 1)
    assert metrics["nondeterministic_operations"] == ["bad_op"]


def test_what_is_resolved_leaves_the_options_as_they_were():
    parser = option_parser("", "--device", "--threads", "--prefetch")
    options = parser.parse_args([])
    resolved = common.resolve_options(options)
    assert (options.device, options.threads, options.prefetch) == ("auto", None, None)
    assert resolved.device != "auto" and resolved.threads >= 1 and resolved.prefetch in (0, 2)
    for device in ("warp", "meta"):
        with pytest.raises(common.UserError, match="try --device cpu"):
            common.resolve_options(parser.parse_args(["--device", device]))


@pytest.mark.parametrize("given", [[], ["--tf32"]])
def test_tf32_only_where_it_is_asked_for(given, tmp_path):
    """torch's own default rounds a convolution's inputs on a GPU, and not a matrix product's."""
    arguments = ["--model", "timm/test_resnet", "--weights", "random", "--device", "cpu", "--threads", "1"]
    options = exercise_parser("").parse_args([*arguments, "--dataset", str(tmp_path), *given])
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    for switch in switches:
        switch.allow_tf32 = not given  # conftest.py sets it back at the end
    model = common.load_from_options(common.resolve_options(options))
    assert [switch.allow_tf32 for switch in switches] == [bool(given)] * 2
    with torch.backends.cudnn.flags(enabled=False):  # which a network may use, and which reads the switch
        pass
    # and rows of one setting are never mixed with those of the other
    assert run_settings(options, ROOT / "2d_predict.py", model, [])["tf32"] is bool(given)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_so_many_full_batches_are_read_while_one_is_explained(prefetch, tmp_path, monkeypatch):
    """Kernels may differ with the batch's shape: an image that cannot be read, and the end, must not change it."""
    model = common.load_model("timm/test_resnet", "random")
    files = [common.ImageFile(i, f"{i}.png", save_photo(tmp_path / f"{i}.png", i)) for i in range(8)]
    files[1].path.write_bytes(b"not an image")
    read, is_read = common.read_image, [threading.Event() for _ in files]

    def read_and_say(path, *how):
        is_read[int(path.stem)].set()
        return read(path, *how)

    def explain(images, batch):
        assert images.shape == (3, 3, model.input_size, model.input_size) and len(batch) == 3
        last = min(batch[-1].index + 3 * prefetch, 7)
        assert is_read[last].wait(60) and not any(event.is_set() for event in is_read[last + 1 :])
        return ({"explained": file.index} for file in batch)

    monkeypatch.setattr(common, "read_image", read_and_say)
    rows = [row for rows in common.explain_batches(model, files, explain, 3, prefetch=prefetch) for row in rows]
    assert [row["index"] for row in rows] == [*range(8)] and "is not an image" in rows[1]["skipped"]
    assert [row.get("explained") for row in rows] == [0, None, *range(2, 8)]


def test_what_is_inside_a_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (folder / "out").symlink_to("../out")
    (folder / "in").symlink_to("sub")
    (tmp_path / "link").symlink_to("folder")
    for path in (folder, folder / "absent", folder / "in/x", folder / "sub/../x", tmp_path / "link/sub"):
        assert is_inside(path, folder) and is_inside(path, tmp_path / "link")
    for path in (tmp_path, tmp_path / "folder2", folder / "..", folder / "out", folder / "out/x"):
        assert not is_inside(path, folder)


def test_a_whole_number_may_be_of_any_library():
    """A tensor of one number was refused."""
    assert [common.integer_argument("passes", value) for value in (3, np.int64(3), torch.tensor(3))] == [3, 3, 3]
    with pytest.raises(common.UserError, match="passes must be a whole number of at least 1, not "):
        common.integer_argument("passes", torch.tensor(2.5))
