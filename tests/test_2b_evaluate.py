"""Evaluation: exact counts and losses against a loop of one image at a time."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load_script, rows_of, save_photo, table_of
from PIL import Image
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import nn

import common
from explain.methods import calibration
from explain.report import evaluation as report
from explain.report.figures import measured_on

script = load_script("2b_evaluate")


def linear(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).requires_grad_(False)


@pytest.mark.parametrize("among", [5, 6, 8])
def test_against_scikit_learn(images, among):
    """With five classes or fewer, every network has a top-5 of 1: there is none."""
    net, classes = linear(among), torch.tensor([0, 3, 4, 2, 2])
    found = script.evaluate(net, images, classes)
    assert torch.equal(found.pop("logits"), net(images))
    rows = [{"class": int(c), **{k: v[n].item() for k, v in found.items()}} for n, c in enumerate(classes)]
    results, _ = report.summary(rows, among)
    p = net(images).softmax(1).double().numpy()
    labels = range(among)
    assert results["loss"] == pytest.approx(log_loss(classes, p / p.sum(1, keepdims=True), labels=labels), abs=1e-6)
    assert results["top1_accuracy"] == top_k_accuracy_score(classes, p, k=1, labels=labels)
    assert ("top5_accuracy" in results) == ("top5_correct" in results) == ("top5_interval" in results) == (among > 5)
    if among > 5:
        assert results["top5_accuracy"] == top_k_accuracy_score(classes, p, k=5, labels=labels)
    assert results["brier_score"] == pytest.approx(((p - np.eye(among)[classes]) ** 2).sum(1).mean(), rel=1e-5)


def test_a_constant_network_has_no_accuracy(images):
    net = linear(8)
    net[1].weight.zero_(), net[1].bias.zero_()
    found = script.evaluate(net, images, torch.tensor([0, 1, 2, 3, 4]))
    assert found["rank"].tolist() == [8] * 5 and found["predicted"].tolist() == [0] * 5
    assert found["loss"].tolist() == pytest.approx([np.log(8)] * 5)


def test_one_image_has_no_standard_error():
    row = {"class": 0, "rank": 1, "predicted": 0, "confidence": 0.9, "loss": 0.1, "brier": 0.02}
    assert report.summary([row], 3)[0]["top1_standard_error"] is None
    assert report.summary([row, row | {"rank": 2}], 3)[0]["top1_standard_error"] == pytest.approx(0.125**0.5)


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.97, 0.55, 0.52, 1.0, 0.2])
    correct = np.array([True, False, True, True, True, False])
    error, table = calibration.calibration(confidence, correct, bins=5)
    # (0.8, 1]: 3 images, accuracy 2/3; (0.4, 0.6]: 2, accuracy 1; (0, 0.2]: 1, accuracy 0
    expected = 3 / 6 * abs(2 / 3 - 2.92 / 3) + 2 / 6 * abs(1 - 0.535) + 1 / 6 * 0.2
    assert error == pytest.approx(expected)
    assert [b["images"] for b in table] == [1, 0, 2, 0, 3] and table[1]["accuracy"] is None


@pytest.mark.parametrize("chunk", [1, calibration.CHUNK])
def test_one_temperature_by_hand(chunk, monkeypatch):
    """Logits of 0 and z: the loss log(1 + exp(-z / t)), the confidence its sigmoid; one image at a time, and both."""
    monkeypatch.setattr(calibration, "CHUNK", chunk)
    logits, classes, t = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]), 0.7
    losses, confidences = calibration.at_temperature(logits, classes, t)
    assert losses.tolist() == pytest.approx([np.log1p(np.exp(-2 / t)), np.log1p(np.exp(3 / t))], rel=1e-12)
    assert confidences.tolist() == pytest.approx([1 / (1 + np.exp(-2 / t)), 1 / (1 + np.exp(-3 / t))], rel=1e-12)


# Ten images with probabilities 0.5, 0.3, 0.2, of which as many have each class: no temperature but 1 has less loss
HONEST, SHARES = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(10, 1), torch.tensor([0, 1, 0, 0, 1, 2, 0, 1, 0, 2])


@pytest.mark.parametrize("scale", [0.02, 0.5, 1, 8.25, 90])
def test_the_temperature_is_that_by_which_honest_logits_were_multiplied(scale):
    """The search ended at 0.25 and at 4, and the end was printed as the optimum."""
    assert calibration.fit_temperature(scale * HONEST, SHARES) == pytest.approx(scale, rel=1e-3)


def test_an_end_of_the_search_is_named():
    eye, classes = torch.eye(3), torch.arange(3)
    for logits, labels, temperature, limit in (
        (eye, classes, 0.01, "at most"),  # all right: the surer the better
        (100 * eye, classes, 0.01, "at most"),  # the loss is 0 before the end
        (eye, classes.roll(1), 100, "at least"),  # all wrong
        (0 * eye, classes, 1, None),  # no temperature changes anything
    ):
        scaled, _ = calibration.temperature_scaling(logits.repeat(10, 1), labels.repeat(10), [True] * 30)
        assert (scaled["temperature"], scaled["temperature_limit"]) == (temperature, limit)
    texts = {(0.01, 0.01): "at most 0.01", (2, 100): "2.00 to at least 100.00", (8.251, 8.249): "8.25"}
    texts |= {(100, 100): "at least 100.00", (0.01, 0.5): "at most 0.01 to 0.50"}
    assert [report.temperature_text({"temperatures_of_folds": t}) for t in texts] == [*texts.values()]


def test_no_image_is_judged_by_a_temperature_that_it_helped_to_choose(monkeypatch):
    """In two folds: the even images want the temperature 4, the odd ones 0.5, and each half gets the other's."""
    monkeypatch.setattr(calibration, "MANY", 30)
    logits = torch.stack([4 * HONEST, 0.5 * HONEST], 1).flatten(0, 1).repeat(2, 1)
    classes = SHARES.repeat_interleave(2).repeat(2)
    scaled, _ = calibration.temperature_scaling(logits, classes, [True] * 40)
    assert scaled["temperatures_of_folds"] == pytest.approx([0.5, 4], rel=1e-3)
    shares = torch.tensor([0.5, 0.3, 0.2])
    even, odd = ((power * shares.log()).log_softmax(0) for power in (4 / 0.5, 0.5 / 4))
    assert scaled["loss"] == pytest.approx(float(-(shares @ even + shares @ odd) / 2), rel=1e-3)


def rescaled(folder, right: list[bool], z: float) -> tuple[dict, list[dict]]:
    """What `rescale` says of images whose logits are all (0, z)."""
    np.save(folder / "a.npy", np.array([0, z], np.float32))
    p = 1 / (1 + np.exp(-z))
    rows = [{"class": int(r), "rank": 2 - r, "files": ["a.npy"], "confidence": p} for r in right]
    before = {"loss": -np.log([p if r else 1 - p for r in right]).mean()}
    before["expected_calibration_error"], _ = calibration.calibration(np.full(len(right), p), np.array(right))
    return report.rescale(rows, before, folder)


def test_a_temperature_that_hurts_by_hand(tmp_path):
    """21 of 30 are right and p is 0.7: no temperature is better than 1, and those of the folds are worse.

    The others of 7 folds are right in 18 of 27, and so p = 2/3 there; those of the other 3 in 21 of 27, where all are
    wrong.
    """
    scaled, bins = rescaled(tmp_path, [i % 10 < 7 for i in range(30)], np.log(7 / 3))
    expected = [np.log(7 / 3) / np.log(2)] * 7 + [np.log(7 / 3) / np.log(7 / 2)] * 3
    assert scaled["temperatures_of_folds"] == pytest.approx(expected, rel=1e-3)
    assert scaled["temperature"] == pytest.approx(1, rel=1e-3)
    assert scaled["loss"] == pytest.approx(-0.7 * np.log(2 / 3) - 0.3 * np.log(2 / 9), rel=1e-3)
    assert scaled["expected_calibration_error"] == pytest.approx(0.7 * (1 - 2 / 3) + 0.3 * 7 / 9, rel=1e-3)
    assert sum(b["images"] for b in bins) == 30
    assert scaled["says"] == (
        "Temperature scaling (temperature 0.68 to 1.22, cross-fitted in 10 folds): loss worse, from 0.611 to "
        "0.735; calibration error worse, from 0.000 to 0.467."
    )


@pytest.mark.parametrize("count", [1, 20, 29])
def test_few_images_have_no_temperature(tmp_path, count):
    scaled, bins = rescaled(tmp_path, [i % 10 < 7 for i in range(count)], np.log(7 / 3))
    images = "1 image" if count == 1 else f"{count} images"
    assert scaled == {"says": f"{images}: too few for temperature scaling, which needs 30."}
    assert bins == []


@pytest.mark.parametrize(("images", "says"), [(8, "Temperature scaling (temperature at most"), (7, "28 images: too")])
def test_terminal_figure_metrics_and_page_say_the_same_of_a_temperature(tmp_path, run, capsys, images, says):
    """All are right at any temperature: the colder the better, and the search ends."""
    (tmp_path / "net.py").write_text(COLOURS)
    save_colours(tmp_path / "photos", COLOUR_NAMES, images)
    metrics = run("2b_evaluate", *OWN, "photos")
    sentence = metrics["results"]["temperature_scaling"]["says"]
    assert sentence.startswith(says)
    assert sentence in capsys.readouterr().out.splitlines()
    assert metrics["captions"]["reliability.png"][-1] == sentence
    assert sentence in " ".join((tmp_path / "output/report.html").read_text().split())


def test_each_curve_of_the_reliability_diagram_has_its_points_and_its_images():
    table = [{"from": k / 4, "to": (k + 1) / 4, "images": n, "confidence": k / 4 + 0.1, "accuracy": 0.5}
             for k, n in enumerate([0, 4, 2, 0])]  # fmt: skip
    says = {"says": "", "temperatures_of_folds": [0.5, 0.52]}
    results = {"images": 6, "temperature_scaling": says, **measured_on([0, 0, 1, 1, 1, 1], 3)}
    results |= {"expected_calibration_error": 0.1, "top1_accuracy": 0.5, "mean_confidence": 0.4}
    for after, names in (([], 2), (table, 3)):
        figure, text = report.draw_reliability(table, after, results, SimpleNamespace(label="net"))
        legend, above, below = figure.axes
        texts = [text.get_text() for text in legend.get_legend().get_texts()]
        assert len(texts) == names and above.get_legend() is None
        assert texts[2:] == ["scaled by temperature 0.50 to 0.52"][: len(after)]
        lines = [line for line in above.lines if line.get_linestyle() != "--"]
        assert {line.get_linestyle() for line in lines} == {"None"} and len(lines[0].get_xdata()) == 2
        assert [patch.get_data().values.tolist() for patch in below.patches] == [[0, 4, 2, 0]] * (names - 1)
        assert "6 images from 2 of 3 classes" in text[2]


def test_the_logits_are_kept_beside_the_rows(own):
    """By hand: means of a channel in [-1, 1], times 40."""
    save_colours(own.folder / "photos", ("0", "1"), images=1)
    own("photos")
    assert [row["files"] for row in rows_of(own.output)] == [["logits/00000.npy"], ["logits/00001.npy"]]
    red, dark = 40 * (200 / 255 * 2 - 1), 40 * (20 / 255 * 2 - 1)
    logits = np.load(own.output / "logits/00000.npy")
    assert logits.dtype == np.float32 and logits == pytest.approx([red, dark, dark, 12], rel=1e-5)


def split_dataset(folder):
    """A split dataset: nine pictures over three classes, one of them turned by EXIF, and a broken one."""
    for i in range(9):
        save_photo(folder / "dataset/DL_data_p" / str((5, 76, 130)[i % 3]) / f"v{i}.png", i)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "dataset/DL_data_p/130/v2.png"
    Image.open(path).save(path, exif=exif)
    (folder / "dataset/DL_data_p/76/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")


RANDOM = ["--model", "timm/test_resnet", "--weights", "random", "--threads", "1"]


@pytest.mark.usefixtures("undrawn")
def test_run_is_equal_to_a_loop_of_one_image_at_a_time(tmp_path, run):
    with pytest.raises(common.UserError, match="run `python process_data.py` first"):
        run("2b_evaluate", *RANDOM)
    split_dataset(tmp_path)
    model = common.load_model("timm/test_resnet", "random")
    losses, among_five = [], 0
    for path in (tmp_path / "dataset/DL_data_p").rglob("v*.png"):
        logits = model(model.preprocess(Image.open(path).convert("RGB"))[None])[0]  # as it is stored
        losses.append(float(-logits.double().log_softmax(0)[int(path.parent.name)]))
        among_five += int(path.parent.name) in logits.topk(5).indices
    for batch_size in (1, 7):
        metrics = run("2b_evaluate", *RANDOM, "--batch-size", batch_size)
        assert metrics["results"]["top5_correct"] == among_five
        assert metrics["results"]["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert metrics["images"]["notes"] == {"EXIF orientation ignored": 1}
    assert metrics["images"]["found"] == 10 and metrics["images"]["used"] == 9
    results = metrics["results"]
    assert (results["images"], results["classes_measured"], results["classes_in_data"]) == (9, 3, 3)
    assert results["top1_interval"][0] <= results["top1_accuracy"] <= results["top1_interval"][1]
    folder = tmp_path / "output/2b_evaluate"
    names = ("classes", "predictions", "confusion", "calibration")
    classes, predictions, confusion, bins = (table_of(folder / f"{name}.csv") for name in names)
    assert [(row["class"], row["images"]) for row in classes] == [("5", "3"), ("76", "3"), ("130", "3")]
    for row in classes:
        assert float(row["top1_accuracy"]) == pytest.approx(int(row["top1_correct"]) / 3, rel=1e-5)
    costliest = sorted((row for row in rows_of(folder) if "skipped" not in row), key=lambda row: -row["loss"])
    assert [(row["path"], row["rank"]) for row in predictions] == [(row["path"], str(row["rank"])) for row in costliest]
    assert " ".join(predictions[0]) == "path class name predicted predicted_name probability loss rank"
    assert sum(int(row["images"]) for row in confusion) == sum(int(row["images"]) for row in bins) == 9
    assert {p.name for p in folder.glob("*.png")} == {"reliability.png", "confusion.png", "mistakes.png"}
    with pytest.raises(common.UserError, match="broken.png"):
        run("2b_evaluate", *RANDOM, "--strict")
    save_photo(tmp_path / "dataset/DL_data_p/n01774750/a.png")
    with pytest.raises(common.UserError, match="n01774750 is not named by a class id.*evaluate.py dataset/DL_data_p"):
        run("2b_evaluate", *RANDOM)


# A network of four classes, each pixel's colour a class: red, green, blue, grey
COLOURS = """
import torch
from torch import nn

class Colours(nn.Module):
    def __init__(self, order=(0, 1, 2, 3)):
        super().__init__()
        self.order = list(order)
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, images):  # (N, 3, S, S) in [-1, 1]
        means = images.mean((2, 3))
        return self.scale * torch.cat([means, torch.full_like(means[:, :1], 0.3)], 1)[:, self.order]

def colours(): return Colours()
def shifted(): return Colours((3, 0, 1, 2))
def named():
    net = Colours(); net.classes = ["Red, crimson", "green", "blue", "grey"]; return net

def dropped(): return nn.Sequential(Colours(), nn.Dropout(0.1))
def twelve(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 12))
"""
OWN = ["--model", "net.py:named", "--input-size", "8", "--mean", "0.5", "--std", "0.5", "--resize", "8"]
OWN += ["--interpolation", "bilinear", "--threads", "1", "--output", "output"]


def save_colours(folder, names, images=3):
    """Some pictures in a folder of each name: red ones in the first, then green, blue and grey ones."""
    colours = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (20, 20, 20)]
    for k, name in enumerate(names):
        for i in range(images if name else 0):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), tuple(c + i for c in colours[k % 4])).save(path)


@pytest.fixture
def own(tmp_path, run, undrawn):
    """Runs 2b with the network of colours, in a folder; returns its metrics."""
    (tmp_path / "net.py").write_text(COLOURS)

    def own(*arguments):
        return run("2b_evaluate", *OWN, *arguments)

    own.folder, own.output = tmp_path, tmp_path / "output/2b_evaluate"
    return own


FISH = ["n01440764", "n01443537", "n01484850", "n01491361"]


@pytest.mark.parametrize(
    "names",
    [("Red", "green", "blue", "GREY"), ("0", "1", "2", "3"), ("crimson", "1", "blue", "3"), (*FISH[:3], "3")],
)
def test_a_folder_of_labelled_pictures_as_it_lies(own, names):
    """Its folders are named by names, ids or, with names that have them, wnids; several may be of one class."""
    save_colours(own.folder / "photos", names)
    (own.folder / "names.txt").write_text("".join(f"{wnid} colour {i}\n" for i, wnid in enumerate(FISH)))
    metrics = own("photos", *(["--names", "names.txt"] if names[0] in FISH else []))
    assert metrics["results"]["images"] == 12 and metrics["results"]["top1_accuracy"] == 1
    assert "labels" not in metrics["results"] and "top5_accuracy" not in metrics["results"]
    if names[0] == "Red":
        assert metrics["model"]["names"] == "the network"
        (own.folder / "photos/crimson").mkdir()
        (own.folder / "photos/Red/0.png").rename(own.folder / "photos/crimson/0.png")
        metrics = own("photos")
        assert metrics["results"]["top1_accuracy"] == 1
        assert "several folders for one class: Red, crimson" in metrics["model"]["notes"]


@pytest.mark.parametrize("is_split", [False, True])
def test_a_limit_is_spread_over_classes(own, split, is_split):
    """Four classes of 20: sixteen images were all of one class. Shards, too, have their places in the chosen list."""
    save_colours(own.folder / "photos", COLOUR_NAMES, images=20)
    arguments = [] if is_split else ["photos"]
    if is_split:
        split([])
    metrics = own(*arguments, "--limit", "16")
    results = metrics["results"]
    assert (results["images"], results["classes_measured"], results["classes_in_data"]) == (16, 4, 4)
    assert any(text.startswith("16 images from 4 of 4") for text in metrics["captions"]["reliability.png"])
    rows = rows_of(own.output)
    classes = [row["class"] for row in rows]
    assert all(Counter(classes[:n]) == Counter({c: n // 4 for c in range(4)}) for n in (4, 8, 12, 16))
    for shard in ("0/2", "1/2"):
        own(*arguments, "--limit", "16", "--output", "shards", "--shard", shard)
    assert rows_of(own.folder / "shards/2b_evaluate") == rows
    few = own(*arguments, "--limit", "3", "--seed", "1")["results"]
    assert (few["images"], few["classes_measured"], few["classes_in_data"]) == (3, 3, 4)


def test_a_folder_leaves_the_report_as_it_is(own, run):
    save_colours(own.folder / "photos", "0")
    run("2b_evaluate", *OWN[:-2], "photos")
    assert [path.parent.name for path in own.folder.glob("output/pictures/*/metrics.json")] == ["2b_evaluate"]


def test_a_folder_of_no_class_is_named_and_loose_files_are_listed(own):
    """A folder `n01774750` beside one named `55` was left out without a word."""
    save_colours(own.folder / "photos", ("0", "n01774750"))
    with pytest.raises(common.UserError, match="1 of the 2 folders in photos are not named by a class, such as 'n017"):
        own("photos")
    (own.folder / "photos/n01774750").rename(own.folder / "photos/1")
    (own.folder / "photos/loose.png").write_bytes(b"x")
    (own.folder / "photos/0/broken.png").write_bytes(b"x")
    metrics = own("photos")
    skipped = metrics["images"]["skipped"]
    assert [row["path"] for row in skipped] == ["photos/loose.png", "photos/0/broken.png"]
    assert any(note.startswith("2 classes of the network not in photos: ") for note in metrics["model"]["notes"])
    assert "is not in the folder of a class" in skipped[0]["reason"] and metrics["images"]["found"] == 8


def test_folders_name_the_classes_of_a_network_without_names(own):
    """In the order of torchvision's ImageFolder, by which such networks are trained."""
    save_colours(own.folder / "photos", ("a red", "b green", "c blue", "d grey"))
    metrics = own("photos", "--model", "net.py:colours")
    assert metrics["results"]["top1_accuracy"] == 1
    assert metrics["model"]["names"] == "the folders in photos, in order"
    assert "b green" in (own.output / "classes.csv").read_text()


def test_labels_in_another_order_are_said(own, capsys):
    """The folders' ids start at 1, and the network's at 0."""
    save_colours(own.folder / "photos", ("1", "2", "3"), images=12)
    metrics = own("photos", "--model", "net.py:colours")
    says = metrics["results"]["labels"]["says"]
    assert "1.000 of the images agree if the ids start at 1" in says
    assert f"warning: {says}" in capsys.readouterr().err


def test_names_of_folders_that_are_numbers(own, capsys):
    """With as many classes as folders, the trap is said: 10 sorts before 2 as text."""
    save_colours(own.folder / "photos", [str(i) for i in range(12)], images=1)
    (note,) = [note for note in own("photos", "--model", "net.py:twelve")["model"]["notes"] if "10 before 2" in note]
    assert f"note: {note}" in capsys.readouterr().err


def test_squashed_pictures(own, capsys):
    """What a network trained by Resize((s, s)) sees: with the middle alone it is right by chance.

    Pictures of 2:1 whose colour is in their outer quarters; the middle, all that a crop sees, is grey.
    """
    for name, colour in (("Red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255)), ("grey", (127,) * 3)):
        picture = Image.new("RGB", (40, 20), colour)
        picture.paste((127,) * 3, (10, 0, 30, 20))
        (own.folder / "photos" / name).mkdir(parents=True)
        picture.save(own.folder / "photos" / name / "a.png")
    for options, accuracy, mostly_cropped, says, never in (
        ([], 0.25, 1, "removes a median of 0.500 of an image's area; from a fraction of 1.000 of", "give --resize"),
        (["--squash"], 1, 0, "", "the centre crop"),
        (["--squash", "--resize", "40"], 0.25, 1, "give --resize 8 to show the network whole images", "give --squash"),
    ):
        results, said = own("photos", *options)["results"], capsys.readouterr().err
        assert (results["top1_accuracy"], results["mostly_cropped"]) == (accuracy, mostly_cropped)
        assert says in said and never not in said
    assert own("photos", "--whole")["results"]["mostly_cropped"] == 0
    with pytest.raises(common.UserError, match="--squash and --whole are two ways"):
        own("photos", "--whole", "--squash")


@pytest.fixture
def split(own, run):
    """Saves colours by these names and splits them by process_data.py, which writes the folders' names."""

    def split(names):
        save_colours(own.folder / "photos", names)
        (own.folder / "names.txt").write_text("\n".join(COLOUR_NAMES))
        run("process_data", "--folders", "photos")

    return split


UNNAMED = ["--model", "net.py:colours", "--names", "names.txt"]
COLOUR_NAMES = ["red", "green", "blue", "grey"]  # the network's order; the folders' is blue, green, grey, red


def test_a_validation_set_without_one_of_the_networks_classes(own, split, capsys):
    """By their places the labels gave the reds to blue: top-1 0 for 1, with the names of other classes."""
    split(["red", "", "blue", "grey"])
    metrics = own(*UNNAMED)
    assert metrics["results"]["images"] == 9 and metrics["results"]["top1_accuracy"] == 1
    note = "1 class of the network not in dataset/DL_data_p/synset_words.txt: green"
    assert note in metrics["model"]["notes"] and f"note: {note}" in capsys.readouterr().err
    classes = [(row["class"], row["name"], row["images"]) for row in table_of(own.output / "classes.csv")]
    assert classes == [("0", "red", "3"), ("2", "blue", "3"), ("3", "grey", "3")]


def test_a_checkpoint_whose_classes_have_another_order(own, split):
    """By their places only green, which is the second in both orders, was right: top-1 0.25 for 1."""
    split(COLOUR_NAMES)
    state = {"model": {"scale": torch.tensor(40.0)}, "class_to_idx": {name: c for c, name in enumerate(COLOUR_NAMES)}}
    torch.save(state, own.folder / "w.pth")
    metrics = own("--model", "net.py:colours", "--weights", "w.pth")
    assert metrics["results"]["top1_accuracy"] == 1 and metrics["model"]["names"] == "the checkpoint"
    assert "matched by name, not by id" in metrics["model"]["notes"][-1]


@pytest.mark.parametrize("script", ["2b_evaluate", "2g_faithfulness"])
def test_labels_none_of_which_the_network_knows_are_refused(script, own, split, run):
    split(["red", "lime"])
    (own.folder / "names.txt").write_text("a\nb\nc\nd")
    with pytest.raises(common.UserError, match="none of the 6 images can be used, the first because its class"):
        run(script, *OWN, *UNNAMED)


def test_rows_of_labels_that_mean_other_classes_by_now_are_not_resumed(own, split):
    split(COLOUR_NAMES)
    assert own(*UNNAMED)["results"]["top1_accuracy"] == 1
    (own.folder / "dataset/DL_data_p/synset_words.txt").write_text("green\nblue\ngrey\nred\n")
    assert own(*UNNAMED)["results"]["top1_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("2g_faithfulness", ["--copies", "1", "--steps", "2", "--randomise", "0", "--mosaics", "0"]),
        ("2h_mc_dropout", ["--model", "net.py:dropped", "--passes", "2", "--shift-limit", "0"]),
    ],
)
def test_the_other_exercises_match_labels_by_name_and_spread_a_limit_too(own, split, run, name, arguments):
    save_colours(own.folder / "dataset/DL_data/test_images", ["red"], images=1)
    split(["red", "", "blue", "grey"])
    metrics = run(name, *OWN, *UNNAMED, *arguments, "--limit", "6")
    rows = [row for row in rows_of(own.folder / "output" / name) if row["path"].startswith("DL_data_p")]
    found = [(row["path"].split("/")[1], row["class"] if "right" in row else row["label"]) for row in rows]
    assert sorted(found) == [*[("0", 2)] * 2, *[("1", 3)] * 2, *[("2", 0)] * 2]  # blue, grey, red
    assert len({*found[:3]}) == 3
    assert all(row["right"] if "right" in row else row["single"]["right"] for row in rows)
    assert any(note.endswith(": green") for note in metrics["model"]["notes"])
    assert metrics["results"]["measured_on"] == "6 images from 3 of 3 classes"


def test_the_photo_beside_an_archetype_is_matched_by_name(own, split, run):
    split(["red", "", "blue", "grey"])
    run("2c_class_visualization", *OWN, "--classes", "0", "1", "--methods", "plain", "--steps", "1")
    lines = table_of(own.folder / "output/2c_class_visualization/archetypes.csv")
    assert [line["photo"] for line in lines] == ["DL_data_p/2/red/0.png", ""]  # Red, crimson; green
