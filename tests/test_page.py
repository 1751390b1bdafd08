"""The page of an output folder: as text, and in a browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import SCRIPTS, sentences
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from explain.basics.errors import UserError
from explain.report import page
from explain.report.figures import draw_title, figure_style, margins
from explain.report.page import EXERCISES
from explain.run.command_line import exercise_parser
from explain.run.output import map_name

HOSTILE = "<script>document.title='run'</script> \"quo'ted\" &amp; \u202eפוט"
LONG = "x" * 251 + ".jpg"
MAPS_OF_TWO = {"kinds": ["plain"], "maps": 2, "mean_plain_half_mass_area": 0.25, "insertion_minus_deletion": {}}


class Page(HTMLParser):
    """What a page has: its elements with their attributes, its text, its links."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.elements, self.words = path, [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        return [given[attribute] for _, given in self.elements if attribute in given]


def write_run(output: Path, script: str, results: dict, rows: list[dict] = (), **more) -> Path:
    """Write a finished run by hand."""
    folder = output / script
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"script": script, "settings": {"show": 2}, "results": results, "files": []}
    metrics |= {"images": {"found": 2, "used": 2, "skipped": [], "notes": {}, "other_files": 0}} | more
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_predictions(output: Path, names: list[str], **more) -> Path:
    """Write a run of 2d: two classes for each picture."""
    rows = [
        {"index": i, "path": f"photos/{name}", "classes": [3, 1], "probabilities": [0.75, 0.25]}
        for i, name in enumerate(names)
    ]
    results = {"mean_top1_probability": 0.75, "chance_probability": 0.001, "images_under_half": 1}
    return write_run(output, "2d_predict", results, rows, **more)


@pytest.fixture(scope="session")
def finished(undisturbed, tmp_path_factory) -> Path:
    """The output of all exercises but 2g on a tiny network."""
    output = tmp_path_factory.mktemp("report") / "output"
    for name in set(EXERCISES) & set(SCRIPTS) - {"2g_faithfulness"}:
        shutil.copytree(undisturbed(name) / "output" / name, output / name)
    page.write_page(output)
    return output


@pytest.fixture(scope="session")
def half(tmp_path_factory) -> Path:
    """One exercise, whose names, reasons and classes are hostile."""
    output = tmp_path_factory.mktemp("half") / "output"
    skipped = [{"path": f"photos/{HOSTILE}", "reason": f"it is {HOSTILE}"}]
    images = {"found": 3, "used": 2, "skipped": skipped, "notes": {HOSTILE: 1}, "other_files": 1}
    model = network(HOSTILE) | {"notes": [HOSTILE]}
    folder = write_predictions(output, [HOSTILE, LONG], images=images, model=model, captions={"a.png": [HOSTILE] * 2})
    Image.new("RGB", (40, 30), "white").save(folder / "a.png")
    (folder / "predictions.csv").write_text(f'class,name\n3,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n')
    page.write_page(output)
    return output


@pytest.fixture(scope="session")
def empty(tmp_path_factory) -> Path:
    return page.write_page(tmp_path_factory.mktemp("empty")).parent


def network(name: str) -> dict:
    return {"name": name, "weights": "w", "sha256": name * 8, "input_size": 8, "classes": 4}


# ------------------------------------------------------------------------------------------------
# As text


def test_an_empty_folder_names_each_command(empty):
    text = Page(empty / "report.html").text
    assert all(f"python {script}.py" in text for script in EXERCISES)
    assert text.count("Not run yet.") == 2 * len(EXERCISES) == 16


def test_a_command_that_is_missing_carries_the_network_of_the_others(tmp_path):
    settings = {"show": 2, "model": "resnet18", "weights": "my net.pth", "dataset": "dataset", "output": "out"}
    write_predictions(tmp_path, ["a.jpg"], settings=settings | {"images": ["b c.jpg"]})
    text = Page(page.write_page(tmp_path)).text
    assert "python 2e_saliency.py 'b c.jpg' --output out --model resnet18 --weights 'my net.pth'" in text
    assert "python 2b_evaluate.py --output out --model resnet18 --weights 'my net.pth'" in text
    assert "python process_data.py --output out" in text


def test_text_is_text(half):
    """File names, reasons, class names, notes and captions with markup."""
    found = Page(half / "report.html")
    assert not [tag for tag, _ in found.elements if tag in ("script", "iframe", "object")]
    assert found.text.count("document.title='run'") >= 6
    assert f"it is {HOSTILE}" in found.text and LONG in found.text


@pytest.mark.parametrize("which", ["finished", "half", "empty"])
def test_every_link_and_picture_is_there(which, request):
    output = request.getfixturevalue(which)
    found = Page(output / "report.html")
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    for link in [*found.values("href"), *found.values("src")]:
        assert link[1:] in ids if link.startswith("#") else ":" not in link and (output / unquote(link)).exists(), link
    for tag, given in found.elements:
        if tag == "img":
            with Image.open(output / unquote(given["src"])) as image:
                assert image.size == (int(given["width"]), int(given["height"])) and given["alt"].strip()


def test_a_finished_folder_has_a_card_for_each_picture(finished):
    """Two pictures are shown (--show 2), each with five classes and two or more maps; the numbers are those of rows."""
    found = Page(finished / "report.html")
    assert "None" not in found.text
    assert [given.get("class") for _, given in found.elements].count("card") == 2
    rows = [json.loads(line) for line in (finished / "2d_predict/rows.jsonl").read_text().splitlines()]
    assert all(f"{p:.3f}" in found.text for row in rows[:2] for p in row["probabilities"])
    loss = json.loads((finished / "2b_evaluate/metrics.json").read_text())["results"]["loss"]
    assert f"{loss:.3f}" in found.text
    drawn = [path.name for path in (finished / "report").iterdir()]
    assert len([name for name in drawn if re.fullmatch(r"2e_saliency_0000\d_\d+_plain\.(jpg|png)", name)]) == 2
    assert re.search(r" guided score −?\d\.\d{3} half in 0\.\d{3} ", found.text)
    assert any(re.match(r"guided map of 0.png for ", given.get("alt", "")) for _, given in found.elements)


def test_a_caption_has_at_most_three_sentences(finished):
    """And begins with a title; 2g's and the dataset's are in test_figures.py and test_process_data.py."""
    captions = {}
    for path in finished.glob("*/metrics.json"):
        captions |= json.loads(path.read_text())["captions"]
    assert len(captions) >= 12
    assert {name: text for name, (_, *text) in captions.items() if not 1 <= sentences(*text) <= 3} == {}


def test_the_same_folder_gives_the_same_bytes_and_stays_as_it_is(finished):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.rglob("*") if path.is_file()}
    page.write_page(finished)
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.rglob("*") if p.is_file()}


def test_a_map_that_is_gone_leaves_the_page(finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "output")
    (output / "report/2e_saliency_99999_0_plain.jpg").write_bytes(b"old")
    (output / "report/mine.webp").write_bytes(b"mine")
    for path in [*output.glob("2*/maps/*.npy"), *output.glob("2*/pictures/*")]:
        path.unlink()
    found = Page(page.write_page(output))
    assert "mine.webp" in os.listdir(output / "report") and not list((output / "report").glob("2e_*_99999_*"))
    assert found.text.count("The image is not in the folder.") == 2
    assert "guided : its file is missing" in found.text


def test_maps_of_a_kind_share_a_scale_within_a_picture(tmp_path):
    """Constant maps of 1 and 2 for two classes: the second is the brightest colour, the first halfway to it."""
    rows = [{"index": k, "path": "a.jpg", "class": k, "maps": ["plain"], "plain_status": "ok"} for k in (0, 1)]
    folder = write_run(tmp_path, "2e_saliency", {}, [row | {"probability": 0.5, "rank": 1} for row in rows])
    (folder / "maps").mkdir()
    for row in rows:
        np.save(folder / map_name(row["index"], "plain"), np.full((8, 8), row["class"] + 1.0))
    page.write_page(tmp_path)
    drawn = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "report").iterdir())]
    pixels = [np.array(image, float)[4, 4] for image in drawn]
    assert np.abs(pixels - 255 * colormaps["inferno"]([0.5, 1.0])[:, :3]).max() < 6


@pytest.mark.parametrize(
    "content", ["", "[]", '{"settings": {}}', '{"settings": {"show": 2}, "results": []}', "[" * 9999]
)
def test_metrics_that_are_not_ours_are_named(tmp_path, content):
    write_predictions(tmp_path, ["a.jpg"])
    (tmp_path / "2h_mc_dropout").mkdir()
    (tmp_path / "2h_mc_dropout/metrics.json").write_text(content)
    text = Page(page.write_page(tmp_path)).text
    assert "python 2h_mc_dropout.py" in text and "0.750" in text
    assert "cannot be read, or was written by another version" in text


@pytest.mark.parametrize("same", [True, False])
def test_different_networks_and_data_are_said(tmp_path, same):
    write_predictions(tmp_path, ["a.jpg"], model=network("one"), dataset="1")
    other = "one" if same else "two"
    write_run(tmp_path, "2e_saliency", MAPS_OF_TWO, model=network(other), dataset=other.replace("one", "1"))
    write_run(tmp_path, "2b_evaluate", {}, dataset=None)  # of photos that were given as an argument
    text = Page(page.write_page(tmp_path)).text
    assert ("ran on different networks" in text) is not same
    assert ("The network of 2e_saliency: two" in text) is not same
    assert ("ran on different data (2d_predict; 2e_saliency): compare them with care." in text) is not same


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret/a.png")
    folder = write_predictions(tmp_path / "output", ["a.jpg"], captions={"../../secret/a.png": ["a"]})
    assert folder.is_dir() and "secret" not in page.write_page(tmp_path / "output").read_text()


def test_a_large_folder_is_bounded(tmp_path):
    """50,000 rows and as many skipped images: only the first rows are read, and the first reasons listed."""
    skipped = [{"path": f"photos/{i}.jpg", "reason": "broken"} for i in range(50_000)]
    images = {"found": 100_000, "used": 50_000, "skipped": skipped, "notes": {}, "other_files": 0}
    folder = write_predictions(tmp_path, [f"{i}.png" for i in range(50_000)], images=images)
    with (folder / "rows.jsonl").open("a") as file:
        file.write("no row")  # which would be an error
    path = page.write_page(tmp_path)
    assert path.stat().st_size < 200_000
    text = Page(path).text
    assert "50,000 of 100,000 images skipped: photos/0.jpg ( broken ), " in text and "and 49,988 more" in text
    assert path.read_text().count('class="card"') == 2


def test_a_run_that_ends_meanwhile_is_not_lost(tmp_path, monkeypatch):
    """Another exercise writes its metrics after this one has read the folder, and its page before this one's."""
    write_predictions(tmp_path, ["a.jpg"])
    render, calls = page.render, []

    def render_late(*arguments):
        calls.append(1)
        text = render(*arguments)
        if len(calls) == 1:
            write_run(tmp_path, "2e_saliency", MAPS_OF_TWO)
        return text

    monkeypatch.setattr(page, "render", render_late)
    found = Page(page.write_page(tmp_path))
    assert "map lies in a fraction of 0.250 of its pixels, on average over 2 maps" in found.text and len(calls) == 2


def test_a_single_file_has_its_pictures_inside(finished):
    path = page.write_page(finished, single=True)
    found = Page(path)
    path.unlink()
    assert all(source.startswith("data:image/webp;base64,") for source in found.values("src"))
    assert all(link.startswith("#") for link in found.values("href"))
    assert len(found.values("src")) == len(Page(finished / "report.html").values("src"))


def test_a_single_file_shrinks_its_pictures_until_it_fits(tmp_path, monkeypatch):
    folder = write_predictions(tmp_path, ["a.jpg"], captions={"a.png": ["a"]})
    noise = np.random.default_rng(0).integers(0, 256, (600, 1260, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    large = page.write_page(tmp_path, single=True).stat().st_size
    monkeypatch.setattr(page, "SINGLE_BYTES", large // 2)
    assert page.write_page(tmp_path, single=True).stat().st_size <= large // 2
    monkeypatch.setattr(page, "SINGLE_BYTES", 1000)
    with pytest.raises(UserError, match="larger than 1,000 bytes: draw fewer images with --show"):
        page.write_page(tmp_path, single=True)


def test_the_best_map_and_the_best_baseline_are_said_once(tmp_path):
    plain = {"images": 7, "insertion": 0.5, "deletion": 0.4, "insertion_minus_deletion": 0.1, "cells": 4}
    plain |= {"insertion_minus_deletion_standard_error": 0.02, "grid_pointing": 0.3}
    edges = plain | {"insertion_minus_deletion": 0.01, "grid_pointing": None}
    results = {"maps": {"edges": edges, "plain": plain}, "kinds": ["plain"], "baselines": ["edges"]}
    results |= {"images_measured": 7, "images_wrong": 1, "best_map": "plain", "best_baseline": "edges"}
    results |= {"difference": 0.09, "difference_standard_error": 0.0004, "map_is_better": True}
    write_run(tmp_path, "2g_faithfulness", results)
    text = Page(page.write_page(tmp_path)).text
    assert "plain 7 0.500 0.400 0.100 ± 0.020 4 0.300 edges 7 0.500 0.400 0.010 ± 0.020 4 –" in text
    scores = "plain 0.100 ± 0.020, edges 0.010 ± 0.020; difference: 0.0900 ± 0.0004"
    assert text.count(f"The most faithful map is the plain map (insertion minus deletion: {scores}).") == 1
    write_run(tmp_path, "2g_faithfulness", results | {"best_map": None})
    assert "There is nothing to compare: every map or every baseline" in Page(page.write_page(tmp_path)).text


def test_measures_of_uncertainty_are_shown_with_their_intervals(tmp_path):
    mistakes = {"single_pass": {"auroc": 0.8, "auroc_interval": [0.7, 0.9], "area_under_risk_coverage": 0.1}}
    mistakes["single_pass"]["mistakes"] = 6
    found = {"passes": 5, "mean_mutual_information": 0.1, "mean_predictive_entropy": 1.0, "most_uncertain": "a/b.jpg"}
    found |= {"not_told_apart_from_most_uncertain": ["a/c.jpg"], "mistakes": mistakes, "images": 2}
    found["predictions"] = {"images": 20}
    write_run(tmp_path, "2h_mc_dropout", found)
    text = Page(page.write_page(tmp_path)).text
    assert "Main numbers for 2 images" in text
    assert "the network's mistakes on 20 labelled images?" in text
    assert "single pass 6 0.800 (0.700 to 0.900) 0.100" in text
    assert "the network is least sure of b.jpg, which cannot be told apart from 1 other image." in text


def test_a_figure_is_shown_without_its_title_and_caption(tmp_path):
    """A figure of nothing but a title and a caption has ink in both margins, and is white on the page."""
    folder = write_predictions(tmp_path, [], captions={"a.png": ["A title", "A caption"]}, margins={"a.png": (0, 0)})
    with figure_style():
        figure = Figure(figsize=(4, 2), layout="constrained")
        texts = draw_title(figure, "A title", "A caption", "of two sentences")
        figure.savefig(folder / "a.png")
        above, below = margins(figure, *texts)
    ink = np.asarray(Image.open(folder / "a.png").convert("L")) < 128
    assert ink[: round(above * len(ink))].any() and ink[-round(below * len(ink)) :].any()
    write_predictions(tmp_path, [], captions={"a.png": ["A title"]}, margins={"a.png": (above, below)})
    found = Page(page.write_page(tmp_path))
    with Image.open(tmp_path / found.values("src")[0]) as shown:
        assert shown.height < (1 - above - below) * len(ink) + 2 and np.asarray(shown.convert("L")).min() > 240
    assert found.text.count("A title") == 1


def test_a_photo_is_kept_as_jpeg_and_a_drawing_without_loss(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    drawing = np.full((60, 60, 3), 255, np.uint8)
    drawing[::7] = 0, 114, 178
    for name, pixels in (("photo", noise), ("drawing", drawing)):
        page.drawn(tmp_path, name, Image.fromarray(pixels))
    assert sorted(os.listdir(tmp_path / "report")) == ["drawing.png", "photo.jpg"]
    assert (np.asarray(Image.open(tmp_path / "report/drawing.png")) == drawing).all()


@pytest.mark.parametrize(
    ("given", "command", "output"),
    [
        ([], "python x.py", "output"),
        (["--limit", "3", "--fresh", "--shard", "0/2"], "python x.py --limit 3", "output"),
        (["a b.jpg", "--seed", "0", "--whole"], "python x.py 'a b.jpg' --whole", "output/pictures"),
        (["p.jpg", "--mean", "0.5", "0.25", "--output", "x"], "python x.py p.jpg --output x --mean 0.5 0.25", "x"),
    ],
)
def test_the_command_has_what_is_not_default(given, command, output):
    """And pictures of one's own leave the report as it is."""
    parser = exercise_parser("", "images", "--limit")
    parser.prog = "x.py"
    options = parser.parse_args(given)
    assert (options.command, options.output) == (command, output)
