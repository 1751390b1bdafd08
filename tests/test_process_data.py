"""process_data.py: what it reads, what it refuses, what it writes and leaves alone."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from conftest import SHARED, contents, load_script, rows_of, run_script, save_photo, table_of
from PIL import Image

import common
from explain.basics.errors import UserError
from explain.data import sample
from explain.data.datasets import find_parts, read_dataset_names
from explain.report import classes as report

process_data = load_script("process_data")

NAMES = ["tench, Tinca tinca", "goldfish", "great white shark"]
WNIDS = ["n01440764", "n01443537", "n01484850"]
NAMED = "".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, NAMES, strict=True))
LABELS = {"a.jpg": 0, "b b.png": 2, "c.jpg": 2}
VAL = "a.jpg 0\nb b.png 2\nc.jpg 2\n"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three validation images of two classes out of three, one test image."""
    data = tmp_path / "dataset" / "DL_data"
    for seed, name in enumerate(LABELS):
        save_photo(data / "validation_images" / name, seed)
    save_photo(data / "test_images" / "t.png", 9)
    write_lists(data)
    return tmp_path / "dataset"


def write_lists(data: Path, labels: str = VAL, names: str = "\n".join(NAMES)) -> None:
    """val.txt and synset_words.txt."""
    (data / "val.txt").write_text(labels)
    (data / "synset_words.txt").write_text(names)


@pytest.fixture
def split(dataset, run, undrawn):
    """Runs the script on the toy dataset, in this process; returns (rows, metrics)."""

    def split(*arguments):
        metrics = run("process_data", *arguments)
        return rows_of(dataset.parent / "output/process_data"), metrics

    return split


def state_below(folder: Path) -> dict[str, tuple]:
    """What tells whether a file was written again."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def refused(split, dataset: Path, *arguments: str) -> str:
    """The message of a run that must fail without having written anything."""
    before = state_below(dataset.parent)
    with pytest.raises(UserError) as error:
        split(*arguments)
    assert state_below(dataset.parent) == before
    return str(error.value)


def at(dataset: Path, name: str = "a.jpg") -> Path:
    return dataset / "DL_data/validation_images" / name


def val(dataset: Path, *lines: str) -> None:
    """A val.txt with the three good lines and these."""
    write_lists(dataset / "DL_data", VAL + "".join(f"{line}\n" for line in lines))


# --------------------------------------------------------------------------------------------
# What is written


def test_splits_by_class_and_describes_every_image(dataset, split):
    folder = dataset / "DL_data" / "validation_images"
    os.utime(folder / "a.jpg", ns=(10**18, 10**18 + 12345))
    (folder / ".DS_Store").write_bytes(b"x")
    rows, metrics = split()
    assert contents(dataset / "DL_data_p") == {
        "0/a.jpg": (folder / "a.jpg").read_bytes(),
        "2/b b.png": (folder / "b b.png").read_bytes(),
        "2/c.jpg": (folder / "c.jpg").read_bytes(),
    }
    copied, source = ((base / "a.jpg").stat() for base in (dataset / "DL_data_p/0", folder))
    assert copied.st_ino != source.st_ino and copied.st_mtime_ns == source.st_mtime_ns == 10**18 + 12345
    assert [(r["index"], r["path"], r["role"], r["class"], r["name"]) for r in rows] == [
        (0, "DL_data_p/0/a.jpg", "validation", 0, "tench, Tinca tinca"),
        (1, "DL_data_p/2/b b.png", "validation", 2, "great white shark"),
        (2, "DL_data_p/2/c.jpg", "validation", 2, "great white shark"),
        (0, "DL_data/test_images/t.png", "test", None, None),
    ]
    for row in rows:
        assert row["bytes"] == (dataset / row["path"]).stat().st_size
        assert row["sha256"] == hashlib.sha256((dataset / row["path"]).read_bytes()).hexdigest()
        assert set(row) == {"index", "path", "role", "class", "name", "bytes", "sha256", "notes"}
    zero = dict.fromkeys(["listed_but_absent", "unchanged", "no_longer_belong", "pruned", "problems"], 0)
    counts = {"classes": 2, "validation_images": 3, "test_images": 1, "listed": 3, "written": 3}
    assert metrics["results"] == zero | counts | {"absent": [], "bad_lines": []}
    assert table_of(dataset.parent / "output/process_data/classes.csv") == [
        {"class": "0", "name": "tench, Tinca tinca", "images": "1"},
        {"class": "2", "name": "great white shark", "images": "2"},
    ]


def test_rows_are_numbered_as_the_scripts_read_the_images(dataset, split):
    for number, name in enumerate(["z.png", "y.png", "x.png"]):
        save_photo(dataset / "DL_data/validation_images" / name, 20 + number)
    names = "".join(f"name {i}\n" for i in range(12))
    write_lists(dataset / "DL_data", "a.jpg 10\nb b.png 9\nc.jpg 10\nz.png 0\ny.png 2\nx.png 10\n", names)
    rows, _ = split()
    read = common.validation_images(dataset)
    assert [(f.index, f.key) for f in read] == [(r["index"], r["path"]) for r in rows if r["role"] == "validation"]
    assert [f.key.split("/")[1] for f in read] == ["0", "2", "9", "10", "10", "10"]


CHANGES = {
    "validation": lambda data: save_photo(data / "validation_images/a.jpg", 77),
    "test": lambda data: save_photo(data / "test_images/t.png", 77),
    "class": lambda data: write_lists(data, VAL.replace("0", "1")),
    "name": lambda data: write_lists(data, names="other\ngoldfish\nshark\n"),
    "touched": lambda data: os.utime(data / "validation_images/a.jpg"),
    "list reordered": lambda data: write_lists(data, "c.jpg,2\r\na.jpg\t0\r\nb b.png 2\r\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_change_when_and_only_when_the_data_change(dataset, split, change):
    before, _ = split()
    CHANGES[change](dataset / "DL_data")
    after, metrics = split()
    assert (after == before) == (change in ("touched", "list reordered"))
    assert metrics["results"]["written"] == (change in ("validation", "class"))


def test_link_makes_hard_links_also_of_what_was_copied(dataset, split):
    split()
    for written in (3, 0):
        _, metrics = split("--link")
        assert metrics["results"]["written"] == written
    for name, class_id in LABELS.items():
        assert (dataset / f"DL_data_p/{class_id}/{name}").samefile(dataset / "DL_data/validation_images" / name)
    assert [p.name for p in (dataset / "DL_data_p").rglob(".*")] == []  # no temporary left
    source, target = dataset / "DL_data/validation_images/a.jpg", dataset / "DL_data_p/0/a.jpg"
    old = target.read_bytes()
    os.replace(save_photo(dataset.parent / "new.jpg", 50), source)
    assert target.read_bytes() == old != source.read_bytes()  # the old inode is left to the split
    split()
    assert target.read_bytes() == source.read_bytes() and not target.samefile(source)


def is_full(source, target):
    Path(target).write_bytes(b"half")
    raise OSError(28, "No space left on device")


def changes(source, target):
    save_photo(Path(source), 99)
    Path(target).write_bytes(Path(source).read_bytes())


def crosses(source, target):
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.parametrize(
    ("module", "name", "failure", "says"),
    [
        (shutil, "copyfile", is_full, "No space left"),
        (shutil, "copyfile", changes, "changed while it was being copied"),
        (os, "link", crosses, "cross-device link.*omit --link"),
    ],
)
def test_a_failed_copy_leaves_no_half_file(dataset, split, monkeypatch, module, name, failure, says):
    """In the middle of the second image: the first stays, the second is whole after a rerun."""
    real = getattr(module, name)
    with monkeypatch.context() as patch, pytest.raises((OSError, UserError), match=says):
        patch.setattr(module, name, lambda *paths: (failure if "b b.png" in str(paths[0]) else real)(*paths))
        split(*(["--link"] if name == "link" else []))
    assert list(contents(dataset / "DL_data_p")) == ["0/a.jpg"]
    results = split()[1]["results"]
    assert (results["written"], results["unchanged"]) == (2, 1)


def test_no_longer_belonging_is_reported_then_moved_never_deleted(dataset, split, capsys):
    split()
    old = (dataset / "DL_data_p/0/a.jpg").read_bytes()
    write_lists(dataset / "DL_data", "a.jpg 1\nb b.png 2\nc.jpg 2\n")
    capsys.readouterr()
    reported, metrics = split()
    assert (metrics["results"]["no_longer_belong"], metrics["results"]["pruned"]) == (1, 0)
    assert "'0/a.jpg'" in capsys.readouterr().out
    assert (dataset / "DL_data_p/0/a.jpg").read_bytes() == old
    pruned, metrics = split("--prune")
    assert (metrics["results"]["no_longer_belong"], metrics["results"]["pruned"]) == (1, 1)
    assert contents(dataset / "DL_data_p_pruned") == {"0/a.jpg": old}
    assert sorted(p.name for p in (dataset / "DL_data_p").iterdir()) == ["1", "2"]
    # 2b reads what lies in DL_data_p, so pruning changes the data and must change the rows
    assert [r["role"] for r in reported] == ["validation"] * 3 + ["test", "leftover"]
    assert [r["role"] for r in pruned] == ["validation"] * 3 + ["test"]


def test_a_split_of_another_dataset_is_refused_or_replaced(dataset, split, capsys):
    """After the sample, photos of one's own lay among its, and 2b took both for one dataset."""
    (_, metrics), (_, again) = split(), split()
    first = contents(dataset / "DL_data_p")
    class_folders(dataset.parent / "mine", "cat", "dog")
    says = "^dataset/DL_data_p has 3 images of another dataset or other labels, and none of mine: give --fresh to move"
    with pytest.raises(UserError, match=says):
        split("--folders", "mine")
    assert contents(dataset / "DL_data_p") == first
    rows, other = split("--folders", "mine", "--fresh")
    assert other["dataset"] != metrics["dataset"] == again["dataset"]  # by which the page tells them apart
    assert classes_of(rows) == {"0.png": (0, "cat"), "1.png": (1, "dog")}
    assert [*read_dataset_names(dataset)[0]] == [("", "cat"), ("", "dog")]
    assert [*contents(dataset / "DL_data_p")] == ["0/cat/0.png", "1/dog/1.png", "synset_words.txt"]
    assert contents(dataset / "DL_data_p_pruned") == first and other["results"]["pruned"] == 3
    said = capsys.readouterr().err
    assert "note: dataset/DL_data/test_images does not belong to mine: give 2d to 2h your test images" in said
    with pytest.raises(UserError, match="of another dataset or other labels, and none of dataset/DL_data/"):
        split()
    split("--fresh")
    assert [name for _, name in read_dataset_names(dataset)[0]] == NAMES


def test_prune_never_overwrites(dataset, split):
    split()
    for content in (b"first", b"second", b"third"):
        (dataset / "DL_data_p/0/old.jpg").write_bytes(content)
        split("--prune")
    pruned = contents(dataset / "DL_data_p_pruned/0")
    assert pruned == {"old.jpg": b"first", "old.1.jpg": b"second", "old.2.jpg": b"third"}
    assert list(contents(dataset / "DL_data_p")) == ["0/a.jpg", "2/b b.png", "2/c.jpg"]


@pytest.mark.parametrize("arguments", [[], ["--prune"]])
def test_nothing_is_written_or_pruned_behind_a_link(dataset, split, arguments):
    split()
    outside = save_photo(dataset.parent / "outside/a.png")
    link = dataset / "DL_data_p" / ("1" if arguments else "0")
    shutil.rmtree(link, ignore_errors=True)
    link.symlink_to(outside.parent)
    with pytest.raises(UserError, match=f"DL_data_p/{link.name}(/a.jpg)? is a link out of"):
        split(*arguments)
    assert [*outside.parent.iterdir()] == [outside]


# --------------------------------------------------------------------------------------------
# What is accepted


@pytest.mark.parametrize("folder", ["validation_images", "validation images", "val", "ILSVRC2012_img_val", "VAL"])
@pytest.mark.parametrize("suffix", [".txt", ""])
def test_spellings(dataset, folder, suffix):
    data = dataset / "DL_data"
    if folder.lower() == "val" and not suffix:
        suffix = ".TXT"  # a folder and a file cannot both be `val`
    (data / "validation_images").rename(data / folder)
    for name in ("val", "synset_words"):
        (data / f"{name}.txt").rename(data / f"{name}{suffix}")
    expected = (data / folder, data / f"val{suffix}", data / f"synset_words{suffix}", data / "test_images")
    assert find_parts(data) == expected


@pytest.mark.parametrize("options", [[], ["--link"]])
def test_long_names_and_subfolders_and_links_within_the_folder(dataset, split, options):
    long = "x" * 251 + ".jpg"
    save_photo(at(dataset, long), 5)
    save_photo(at(dataset, "sub/-a.jpg"), 6)
    at(dataset, "d.jpg").symlink_to("c.jpg")
    val(dataset, f"{long} 1", "sub/-a.jpg 0", "d.jpg 1")
    split(*options)
    expected = {"0/a.jpg", "0/sub/-a.jpg", "1/d.jpg", f"1/{long}", "2/b b.png", "2/c.jpg"}
    assert {*contents(dataset / "DL_data_p")} == expected
    target = dataset / "DL_data_p/1/d.jpg"
    assert target.read_bytes() == at(dataset, "c.jpg").read_bytes() and not target.is_symlink()
    assert target.samefile(at(dataset, "c.jpg")) == bool(options)


def test_test_images_may_be_unreadable_or_missing(dataset, split):
    for name in ("test_images/s.png", "test_images/z.txt", "validation_images/Thumbs.db"):
        (dataset / "DL_data" / name).write_text("no image")
    rows, metrics = split()
    assert [(r["path"], r["index"]) for r in rows if r["role"] == "test"] == [("DL_data/test_images/t.png", 1)]
    assert [s["path"] for s in metrics["images"]["skipped"]] == ["DL_data/test_images/s.png"]
    assert metrics["results"]["test_images"] == 1 and metrics["images"]["other_files"] == 2
    shutil.rmtree(dataset / "DL_data/test_images")
    rows, metrics = split()
    assert len(rows) == 3 and metrics["results"]["test_images"] == 0


def test_listed_but_absent_is_counted(dataset, split, capsys):
    val(dataset, "absent1.jpg 0", "absent2.jpg 1")
    results = split()[1]["results"]
    assert (results["listed"], results["listed_but_absent"]) == (5, 2)
    assert results["absent"] == ["absent1.jpg", "absent2.jpg"]
    assert "2 of 5 listed files missing\n  'absent1.jpg'\n  'absent2.jpg'\n" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------
# Layouts that people have


def class_folders(base: Path, *names: str) -> Path:
    """A folder with a picture in a subfolder of each name."""
    for number, name in enumerate(names):
        save_photo(base / name / f"{number}.png", number, (30, 24))
    return base


def classes_of(rows: list[dict]) -> dict[str, tuple[int, str]]:
    return {row["path"].rpartition("/")[2]: (row["class"], row["name"]) for row in rows if row["class"] is not None}


AS_TEXT, AS_NUMBERS = "as text, as in torchvision's ImageFolder", "follow their order as numbers"
NUMBERS = [*map(str, range(12))]
NUMBERED = sorted(f"{i} {letter}" for i, letter in enumerate("abcdefghijkl"))


@pytest.mark.parametrize(
    ("folders", "names", "arguments", "note"),
    [
        (["Zebra", "apple", "tench"], None, [], None),
        (["cat", *WNIDS[:2]], None, [], None),
        (NUMBERED, None, [], None),  # by the numbers in its names the written list named other classes
        (sorted(NUMBERS), None, [], AS_TEXT),
        (NUMBERS, None, ["--numeric"], AS_NUMBERS),
        (["bullet train", "labels", "train", "trainers", "vale"], None, [], None),  # not the parts of a dataset
        (["test", "train"], "test\ntrain\n", [], None),
        (["0", WNIDS[1], "Great_White Shark"], NAMED, [], None),
    ],
)
def test_folders_are_classes_in_this_order(dataset, split, capsys, folders, names, arguments, note):
    """The order of torchvision's ImageFolder, of the folders' numbers or of a list of names."""
    mine = class_folders(dataset.parent / "mine", *folders)
    if names:
        (dataset.parent / "names.txt").write_text(names)
        arguments = ["--names", "names.txt"]
    elif not arguments:
        assert [*torchvision.datasets.ImageFolder(mine).class_to_idx] == folders
    for folder in ("__MACOSX", "$RECYCLE.BIN"):  # of systems
        save_photo(mine / folder / "x.png")
    for file in ("Thumbs.db", f"{folders[0]}/readme.txt"):
        (mine / file).write_text("x")
    expected = NAMES if names == NAMED else folders
    for _ in range(2):
        rows, metrics = split("--folders", "mine", "--dataset", "new", *arguments)
        assert classes_of(rows) == {f"{c}.png": (c, name) for c, name in enumerate(expected)}
        assert [name for _, name in read_dataset_names(dataset.parent / "new")[0]] == expected
        assert metrics["results"]["no_longer_belong"] == 0 and metrics["images"]["other_files"] == 2
    assert [note in text for text in metrics["results"].get("read_as", [])] == [True] * bool(note)
    assert (note or "") in capsys.readouterr().err


PARTS = {  # folders -> the one that is proposed
    ("train", "val", "test"): "val",
    ("training_set", "test_set"): "test_set",
    ("Training", "Validation", "Testing"): "Validation",
    ("train_images", "dev-images"): "dev-images",
    ("TRAIN", "eval 2"): "eval 2",
    ("trainset",): "trainset",
    ("train", "test", "chest_xray"): "test",
    ("seg_train", "seg_test", "seg_pred"): "seg_test",
    ("train_dir", "val_dir"): "val_dir",
    ("val", "meta"): "val",
}


@pytest.mark.parametrize(("folders", "first"), PARTS.items())
def test_the_parts_of_a_dataset_are_no_classes(dataset, split, folders, first):
    """They were two or three classes, named train and val."""
    class_folders(dataset.parent / "mine", *folders, "__MACOSX")
    message = refused(split, dataset, "--folders", "mine")
    assert re.search(f"has the folders .*{first}", message)
    assert "parts of a dataset, not classes" in message and message.endswith(f"such as mine/{first}")


def test_links_in_class_folders_are_followed(dataset, split, capsys):
    """To folders, and to images, as DVC makes them, by the names of their content."""
    mine, elsewhere = (dataset.parent / name for name in ("mine", "elsewhere"))
    class_folders(mine, "cat")
    class_folders(elsewhere, "dogs", "private")
    (mine / "dog").symlink_to("../elsewhere/dogs")
    (mine / "feline").symlink_to("cat")
    (mine / "dog/loop").symlink_to("..")
    (mine / "cat/0.png").rename(elsewhere / "5f1d")
    (mine / "cat/0.png").symlink_to(elsewhere / "5f1d")
    rows, metrics = split("--folders", "mine")
    assert [(row["path"], row["name"]) for row in rows[:2]] == [
        ("DL_data_p/0/cat/0.png", "cat"),
        ("DL_data_p/1/dog/0.png", "dog"),
    ]
    assert not (dataset / "DL_data_p/0/cat/0.png").is_symlink()
    assert metrics["results"]["listed"] == metrics["results"]["validation_images"] == 2
    note = "1 class folder without an image: feline"
    assert metrics["results"]["read_as"] == [note] and note in capsys.readouterr().err
    (elsewhere / "5f1d").unlink()
    with pytest.raises(UserError, match="'cat/0.png' is a dangling link to '.*5f1d': fetch that file or remove"):
        split("--folders", "mine", "--dataset", "new")


@pytest.mark.parametrize("folders", [("tench, Tinca tinca", "Goldfish"), tuple(WNIDS[:2]), ("0", "1"), ("a", "b")])
def test_class_folders_in_dl_data_need_no_list(dataset, split, folders):
    """Without a list of names, the folders name the classes."""
    data = dataset / "DL_data"
    write_lists(data, names=NAMED)
    (data / "val.txt").unlink()
    if folders == ("a", "b"):
        (data / "synset_words.txt").unlink()
    shutil.rmtree(data / "validation_images")
    class_folders(data / "validation_images", *folders)
    expected = folders if folders == ("a", "b") else NAMES
    assert classes_of(split()[0]) == {"0.png": (0, expected[0]), "1.png": (1, expected[1])}


@pytest.mark.parametrize("names", [False, True])
def test_the_development_kit(dataset, split, names):
    """Its ids have an order of their own: 1 is the shark, 2 the tench, 3 the goldfish; 4 is no leaf."""
    data = dataset / "DL_data"
    (data / "val.txt").unlink(), (data / "synset_words.txt").unlink()
    kit = data / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    entries = [(i, WNIDS[c], NAMES[c], 0) for i, c in enumerate([2, 0, 1], start=1)] + [(4, "n00001740", "entity", 3)]
    scipy.io.savemat(kit / "meta.mat", {"synsets": np.array(entries, fields)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")
    if names:  # another order, by wnids
        (data / "synset_words.txt").write_text("".join(f"{WNIDS[c]} {NAMES[c]}\n" for c in (1, 0, 2)))
    rows, _ = split()
    ids = [1, 2, 0] if names else [0, 2, 1]  # of a.jpg tench, b b.png shark, c.jpg goldfish
    expected = {"a.jpg": (ids[0], NAMES[0]), "b b.png": (ids[1], NAMES[2]), "c.jpg": (ids[2], NAMES[1])}
    assert classes_of(rows) == expected
    (kit / "meta.mat").write_text("x")
    with pytest.raises(UserError, match="is not the development kit's meta.mat"):
        split()
    (kit / "meta.mat").unlink()
    with pytest.raises(UserError, match="without its meta.mat"):
        split()


def test_kaggles_archive(dataset, split):
    data = dataset / "DL_data"
    (data / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
    (data / "validation_images").rename(data / "ILSVRC/Data/CLS-LOC/val")
    (data / "test_images").rename(data / "ILSVRC/Data/CLS-LOC/test")
    (data / "val.txt").unlink(), (data / "synset_words.txt").unlink()
    (data / "LOC_synset_mapping.txt").write_text(NAMED)
    labels = "".join(f"{Path(name).stem},{WNIDS[c]} 1 2 30 40 \n" for name, c in LABELS.items())
    (data / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + labels)
    rows, metrics = split()
    assert classes_of(rows) == {name: (c, NAMES[c]) for name, c in LABELS.items()}
    assert metrics["results"]["test_images"] == 1


# --------------------------------------------------------------------------------------------
# What is refused


# how to make it, what is said, which of the files that are there is left out; test_labels.py has more lines
PROBLEMS = {
    "not listed": (lambda d: save_photo(at(d, "new.jpg"), 3), "'new.jpg' is in", "new.jpg"),
    "two ids": (lambda d: val(d, "./a.jpg 1"), "'a.jpg' the class 1, but another line gives it 0", "a.jpg"),
    "no id": (lambda d: val(d, "x.jpg"), "line 4 of dataset/DL_data/val.txt is 'x.jpg': give a file name and", None),
    "no extension": (lambda d: other_name(d), "'c.dat' is listed, but has no image extension: rename it", "c.dat"),
    "damaged": (lambda d: at(d).write_bytes(b"x"), "a.jpg is not an image", "a.jpg"),
    "link out": (lambda d: relink(at(d), save_photo(d / "b.jpg").resolve()), "'a.jpg' is a link out of", "a.jpg"),
    "dangling link": (lambda d: relink(at(d), "nothing"), "'a.jpg' is a dangling link to 'nothing'", "a.jpg"),
    "link loop": (lambda d: relink(at(d), "a.jpg"), "a.jpg cannot be read", "a.jpg"),
}


def other_name(dataset: Path) -> None:
    shutil.copy(at(dataset, "c.jpg"), at(dataset, "c.dat"))
    val(dataset, "c.dat 2")


def relink(path: Path, target: str | Path) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problem_is_refused_and_skipped_on_request(dataset, split, problem, capsys):
    make, expected, left_out = PROBLEMS[problem]
    make(dataset)
    message = refused(split, dataset)
    assert expected in message
    assert len(message.splitlines()) == 2
    _, metrics = split("--skip-bad")
    assert expected in capsys.readouterr().err
    assert metrics["results"]["problems"] == 1
    skipped, bad_lines = metrics["images"]["skipped"], metrics["results"]["bad_lines"]
    assert [s["path"] for s in skipped] == ([f"DL_data/validation_images/{left_out}"] if left_out else [])
    assert len(bad_lines) == (0 if left_out else 1)
    assert metrics["results"]["listed"] == 3 + len(bad_lines) + (left_out == "c.dat")
    assert expected in (skipped[0]["reason"] if left_out else bad_lines[0])
    assert set(contents(dataset / "DL_data_p")) == {"0/a.jpg", "2/b b.png", "2/c.jpg"} - {f"0/{left_out}"}


def test_all_problems_are_listed_at_once_the_first_twenty_by_name(dataset, split):
    data = dataset / "DL_data"
    save_photo(data / "validation_images/new.jpg", 3)
    (data / "validation_images/c.jpg").write_text("no image")
    val(dataset, "../x 1", "y.jpg 17", "a.jpg 2", "z.jpg n99999999", "absent.jpg 1")
    message = refused(split, dataset, "--strict")
    for expected in ("'../x'", "'y.jpg'", "'a.jpg'", "n99999999", "'new.jpg'", "c.jpg is not an image", "'absent.jpg'"):
        assert expected in message
    assert len(message.splitlines()) == 1 + 7
    val(dataset, *(f"x{i}.jpg 9" for i in range(23)))
    lines = refused(split, dataset).splitlines()
    assert "has 25 problems" in lines[0] and lines[-1].strip() == "and 5 more" and len(lines) == 1 + 20 + 1


MINE, NO_IMAGE = ["--folders", "mine"], "is readable and listed: put the images there or correct"
BY_NAME = [*MINE, "--names", "dataset/DL_data/synset_words.txt"]


@pytest.mark.parametrize(
    ("make", "arguments", "says"),
    [
        (lambda d: (d / "DL_data/val.txt").unlink(), [], "has no file val.txt"),
        (lambda d: (d / "DL_data/synset_words.txt").unlink(), [], "has no file synset_words.txt"),
        (lambda d: at(d, "").rename(d / "elsewhere"), [], "has no folder validation_images"),
        (lambda d: (d / "DL_data").rename(d / "elsewhere"), [], "does not exist: put your dataset there"),
        (lambda d: None, ["--sample"], "holds another dataset ("),
        (lambda d: write_lists(d / "DL_data", "x.jpg 0\n"), [], NO_IMAGE),
        (lambda d: write_lists(d / "DL_data", "x: zero\n"), [], "whose first line is 'x: zero'; give a file name and"),
        (lambda d: write_lists(d / "DL_data", "x.jpg 0\n"), ["--skip-bad"], NO_IMAGE),
        (lambda d: [at(d, name).unlink() for name in LABELS], [], NO_IMAGE),
        (lambda d: None, MINE, "mine is not a folder"),
        (lambda d: (d.parent / "mine").mkdir(), MINE, "has no subfolders"),
        (lambda d: class_folders(d.parent / "mine", "1", "x"), [*MINE, "--numeric"], "named by numbers, not 'x'"),
        (lambda d: class_folders(d.parent / "mine", "0", "x", "3"), BY_NAME, "2 of the 3 folders in mine are not"),
    ],
)
def test_a_dataset_that_is_none_is_refused(dataset, split, make, arguments, says):
    make(dataset)
    assert says in refused(split, dataset, *arguments)


@pytest.mark.parametrize("classes", [1, 30, 130])
def test_figure_shows_as_many_photos_as_asked(tmp_path, classes):
    photo = save_photo(tmp_path / "a.png")
    table = [{"class": 2 * i, "name": f"name {i}", "images": i + 1} for i in range(classes)]
    figure, _ = report.draw_classes(table, {2 * i: photo for i in range(classes)}, show=10)
    ids = [axes.texts[0].get_text().splitlines()[1] for axes in figure.axes if axes.images]
    last = classes * 9 // 10 if classes > 1 else 0
    assert len(ids) == min(10, classes) and ids[0] == "0: 1 image" and ids[-1].startswith(f"{2 * last}: {last + 1} ")


# --------------------------------------------------------------------------------------------
# The sample, and the command itself


def test_sample_as_a_command_then_again(tmp_path, run):
    first = run_script("process_data", "--sample", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[0] == "20 images of 19 classes -> dataset/DL_data_p (20 written, 0 unchanged)"
    images = {p.name: len(list(p.iterdir())) for p in (tmp_path / "dataset/DL_data_p").iterdir()}
    assert images.pop("609") == 2 and [*images.values()] == [1] * 18
    tests = sorted(p.name for p in (tmp_path / "dataset/DL_data/test_images").iterdir())
    assert tests == ["china.jpg", "flower.jpg", "grace_hopper.jpg"]
    words = (tmp_path / "dataset/DL_data/synset_words.txt").read_text().splitlines()
    assert (len(words), words[0], words[609]) == (1000, "n01440764 tench", "n03594945 jeep")
    assert len((tmp_path / "output/process_data/rows.jsonl").read_text().splitlines()) == 23
    with Image.open(tmp_path / "output/process_data/classes.png") as figure:
        assert len(figure.convert("RGB").getcolors(1 << 20)) > 1000  # photos, not an empty sheet

    before = state_below(tmp_path)
    results = run("process_data", "--sample")["results"]
    assert (results["written"], results["unchanged"]) == (0, 20)
    after = state_below(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} <= {"output/process_data/metrics.json"}
    assert set(after) == set(before)


def test_sample_completes_what_was_interrupted_and_leaves_a_changed_one_alone(tmp_path):
    for hidden in (".DS_Store", ".git/config", "test_images/._china.jpg"):  # are no other dataset
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("hidden")
    sample.write_sample(tmp_path)
    whole = contents(tmp_path)
    for name in ("val.txt", "test_images/china.jpg"):
        (tmp_path / name).unlink()
    sample.write_sample(tmp_path)
    assert contents(tmp_path) == whole and whole[".git/config"] == b"hidden"
    (tmp_path / "val.txt").write_text("mine")
    before = state_below(tmp_path)
    with pytest.raises(UserError, match="'val.txt' is not part of the sample"):
        sample.write_sample(tmp_path)
    assert state_below(tmp_path) == before


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="package foolbox is missing: pip install"):
        sample.sample_files()


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes only there")
def test_names_of_bytes_and_of_lines_are_said_in_one_line(dataset, split, capsys):
    folder = dataset / "DL_data/validation_images"
    try:
        for name in (b"\xff.jpg", b"new\nline.jpg", b"<script>.jpg", b"q'\".jpg"):
            shutil.copy(folder / "a.jpg", os.path.join(os.fsencode(folder), name))
    except OSError:
        pytest.skip("this file system has no such names")
    assert len(refused(split, dataset).splitlines()) == 1 + 4
    _, metrics = split("--skip-bad", "--strict")
    assert len(metrics["images"]["skipped"]) == 4
    shutil.copy(folder / "a.jpg", os.path.join(os.fsencode(dataset / "DL_data_p/0"), b"\xff.jpg"))
    rows, _ = split("--skip-bad")
    assert rows[-1]["path"] == "DL_data_p/0/\udcff.jpg"
    assert "\\udcff.jpg" in capsys.readouterr().out


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "data/DL_data").is_dir(), reason="../shared has no photos")
def test_real_photos(tmp_path, run):
    shutil.copytree(SHARED / "data/DL_data", tmp_path / "dataset/DL_data")
    results = run("process_data")["results"]
    folders = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "dataset/DL_data_p").iterdir()}
    assert len(folders) == 91 and {"55", "76"} <= folders.keys() and set(folders.values()) == {1}
    assert (results["validation_images"], results["test_images"], results["problems"]) == (91, 12, 0)
    results = run("2b_evaluate")["results"]
    assert results["images"] == 91 and results["top1_accuracy"] >= 0.85
