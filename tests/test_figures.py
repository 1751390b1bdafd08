"""Figures as they are handed in: readable at the width of a page, in one style, able to stand alone."""

from __future__ import annotations

import importlib

import matplotlib
import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY, load_script, save_photo, sentences
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import common
from explain.report import figures
from explain.run.command_line import option_parser

LONG = "a name of sixty characters, which is as long as names may be"
PICTURES = 12


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", [name for name in SCRIPTS if "photos" in SCRIPTS[name]])
def test_figures_fit_the_page_whatever_is_in_them(name, tmp_path, run, monkeypatch):
    """With 1, 2, 3, 5 and 12 images, and names of 60 characters; their captions have at most three sentences."""
    for i in range(PICTURES):
        save_photo(tmp_path / f"photos/{i} {LONG}.png", i)
    drawn = []

    def draw(output, figure_name, function, *arguments):
        for count in (1, 2, 3, 5, PICTURES):
            rows = next((argument for argument in arguments if isinstance(argument, list)), None)
            fewer = [a[:count] if a is rows else a for a in arguments]
            with figures.figure_style():
                figure, text = function(*fewer)
                figures.draw_title(figure, *text)
                check_page(figure)
            assert text[0].startswith("timm/test_resnet, untrained: ") and 1 <= sentences(*text[1:]) <= 3, text
            drawn.append(figure_name)

    monkeypatch.setattr(figures, "draw_figure", draw)
    monkeypatch.setattr(figures.Classifier, "categories", [f"{LONG} {i}" for i in range(1000)], raising=False)
    run(name, *SCRIPTS[name], "--show", PICTURES)
    assert len(drawn) >= 5


def check_page(figure: Figure) -> None:
    """Sixteen centimetres wide, no text below seven points, none that leaves the page."""
    figure.draw_without_rendering()
    assert figure.get_figwidth() == pytest.approx(16 / 2.54)
    page = figure.bbox
    axes = [axis for panel in figure.findobj(Axes) for axis in (panel.xaxis, panel.yaxis)]
    ticks = {tick.label1: (axis, tick) for axis in axes for tick in axis.get_major_ticks()}
    for text in figure.findobj(Text):
        if not (text.get_visible() and text.get_text().strip()):
            continue
        axis, tick = ticks.get(text, (None, None))
        if axis and not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval()):
            continue  # not drawn
        assert text.get_fontsize() >= 7, text
        box = text.get_window_extent()
        assert box.x0 > page.x0 - 3 and box.x1 < page.x1 + 3, text
        assert box.y0 > page.y0 - 3 and box.y1 < page.y1 + 3, text


def test_a_figure_stands_without_its_title(tmp_path, run):
    """And in the project's style: a user's own would end in LaTeX."""
    save_photo(tmp_path / "a.png")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 3, "savefig.dpi": 30}):
        run("2e_saliency", "a.png", *TINY, "--no-title", "--pdf")
    folder = tmp_path / "output/2e_saliency"
    caption = (folder / "saliency.txt").read_text().splitlines()
    heads = "saliency map, smoothed map, combined map"
    assert caption[0] == f"timm/test_resnet, untrained: {heads}" and "centre crop" in "".join(caption)
    assert (folder / "saliency.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(folder / "saliency.png") as figure:
        assert figure.width == pytest.approx(16 / 2.54 * 200, abs=1)
    without = (folder / "saliency.png").read_bytes()
    # drawn again with its title: what is no longer asked for is gone
    run("2e_saliency", "a.png", *TINY)
    assert (folder / "saliency.png").read_bytes() != without
    assert {path.name for path in folder.glob("saliency.*")} == {"saliency.png", "saliency.csv"}


def test_a_font_with_the_missing_characters_is_taken(tmp_path, monkeypatch, capsys):
    """Of matplotlib's own fonts STIXGeneral alone has the first character, and none but a font of boxes the second."""
    own = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    options = option_parser("", "--output", "--no-title", "--pdf").parse_args(["--output", str(tmp_path)])
    figure = Figure(figsize=(figures.WIDTH, 1), layout="constrained")
    figures.draw_figure(common.OutputFolder(options, "thing.py"), "a", lambda: (figure, ["\u1d81 \u6f22 \u6f22"]))
    said = "no installed font has the characters \u6f22 in a: install one that has them, such as Noto\n"
    assert capsys.readouterr().err == said and "STIXGeneral" in figure.texts[0].get_fontfamily()


# ------------------------------------------------------------------------------------------------
# Results that stay, classes, whole pictures


@pytest.mark.usefixtures("undrawn")
def test_what_is_replaced_is_said(tmp_path, run, capsys):
    for i in range(2):
        save_photo(tmp_path / f"{i}.png", i)

    def said(*arguments: str) -> str:
        run("2d_predict", *arguments, *TINY)
        return capsys.readouterr().err

    assert said("0.png", "1.png") == said("0.png", "1.png") == ""
    assert said("0.png", "1.png", "--seed", "7") == "replaces the results of 2 images, made with --seed 0\n"
    assert said("1.png", "--seed", "7") == "replaces the results of 2 images, made with other images\n"
    assert said("1.png", "--limit", "1") == "replaces the results of 1 image, made with no --limit\n"


@pytest.mark.usefixtures("undrawn")
def test_findings_figures_and_metrics_are_the_last_lines(tmp_path, run, capsys):
    for i in range(12):
        save_photo(tmp_path / f"photos/{i:02d}.png", i)
    run("2d_predict", "photos", *TINY)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("00.png: ") and lines[9].startswith("09.png: ")
    assert lines[10:] == [
        "and 2 more, in predictions.csv",
        "output/2d_predict/predictions.png",
        "output/2d_predict/metrics.json",
        "output/report.html",
    ]


def test_a_line_a_minute_where_there_is_no_terminal(monkeypatch, capsys):
    progress = importlib.import_module("explain.run.progress")
    monkeypatch.setattr(progress, "SECONDS", 0)
    with progress.progress(3, "images", miniters=1) as bar:
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" elapsed")[0] for line in lines] == [f"{n} of 3 images, 00:00" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["stork"], "no class is named 'stork': choose from white stork 0, black stork 1"),
        (["stole", "white", "stork"], "'white stork' is one class: put it in quotes, as in --classes \"white stork\""),
    ],
)
def test_a_class_name_that_is_none_is_told_what_may_be_meant(texts, says):
    with pytest.raises(common.UserError, match=says):
        common.find_classes(texts, ["white stork", "black stork", "stole"])


def test_signed_maps_are_the_maps_with_the_gradients_sign(toy, images):
    script = load_script("2e_saliency")
    classes = [0, 1, 2, 3, 0]
    signed = script.signed_saliency_maps(toy, images, classes)
    gradient, _ = common.class_score_gradient(toy, images, classes)
    assert torch.equal(signed.abs(), script.saliency_maps(toy, images, classes))
    assert torch.equal(signed, torch.where(signed > 0, gradient.amax(1), gradient.amin(1)))
    assert (signed < 0).any() and (signed > 0).any()


def test_a_whole_picture_is_fitted_into_the_square():
    model = common.load_model("timm/test_resnet", "random")
    assert model.view.startswith("centre crop") and model.label == "timm/test_resnet, untrained"
    model.use_uncropped_images()
    picture = model.preprocess(Image.new("RGB", (300, 100), (255, 0, 0)))  # (3, S, S)
    side = model.input_size
    middle = slice(side // 3 + 2, 2 * side // 3 - 2)
    assert torch.equal(picture[:, middle], torch.tensor([1.0, 0, 0])[:, None, None].expand_as(picture[:, middle]))
    assert (picture[:, : side // 3 - 2] == 128 / 255).all() and "whole" in model.view


# ------------------------------------------------------------------------------------------------
# How sure is sure


@pytest.mark.parametrize("passes", [30, 300])
def test_standard_errors_are_the_spread_over_seeds(passes):
    script = load_script("2h_mc_dropout")
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([2.0, 1.5, 0.0, -1.0, -2.0]) + torch.randn(50, passes, 5, generator=generator)
    seeds = [script.spread(p, 0) for p in logits.double().softmax(-1).numpy()]
    for name in ("variance", "coefficient_of_variation", "agreement", "predictive_entropy", "mutual_information"):
        error = np.mean([seed[f"{name}_standard_error"] for seed in seeds])
        assert 1 / 1.3 < error / np.std([seed[name] for seed in seeds], ddof=1) < 1.3, name


def test_a_heading_is_inside_a_figure_without_a_title():
    """The tops of the letters of a heading were cut with --no-title, where nothing stands above it."""
    with figures.figure_style():
        figure, axes = figures.panel_grid(2, [""], per_line=4, text_lines=4)
        for (panel,) in axes:
            figures.draw_image(panel, np.zeros((8, 8, 3)))
            figures.draw_heading([panel], *["fjlp 08.png"] * 4)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        tops = [text.get_window_extent(canvas.get_renderer()).y1 for (panel,) in axes for text in panel.texts]
    assert max(tops) <= figure.bbox.height


def test_images_of_one_name_are_told_apart_by_their_folders():
    """Of photos/<class>/00.png each figure named four images 00.png; an image with two classes has one name."""
    paths = ["photos/red/00.png", "photos/blue/00.png", "photos/blue/01.png", "photos/blue/01.png", "02.png"]
    names = figures.file_names([{"path": path} for path in paths])
    assert names == ["red/00.png", "blue/00.png", "01.png", "01.png", "02.png"]
