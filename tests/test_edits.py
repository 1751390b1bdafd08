"""What the README lets a reader change shows where it says: in a map, a row, a figure; a map of one's own is judged."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, draw_nothing, rows_of, save_photo, table_of
from test_readme import PYTHON, README, code

FAST_2G = ["--copies", "1", "--steps", "2", "--randomise", "1", "--stages", "1", "--mosaics", "1"]
ARGUMENTS = {
    "2b_evaluate": ["labelled"],
    "2c_class_visualization": ["--classes", "3", "--methods", "gaussian", "--steps", "8", "--judge", "none"],
    "2d_predict": ["photos"],
    "2e_saliency": ["photos", "--copies", "2", "--scores", "0"],
    "2f_guided_saliency": ["photos", "--scores", "0"],
    "2g_faithfulness": ["photos", *FAST_2G],
    "2h_mc_dropout": ["photos", "--dropout", "0.5"],
}
SCRIPT_2C, METHODS = "2c_class_visualization.py", "explain/methods/"
FIGURES, PAGE = "explain/report/figures.py", "explain/report/page.py"
# Of each name in the table "Change a method": its file, its new value or function, and the figure that shows it
EDITS = {
    "over_channels": ("2e_saliency.py", "lambda gradient: gradient.abs().sum(1)", "2e_saliency/saliency.png"),
    "MAPS": ("2e_saliency.py", '{"plain": saliency_maps}', "2e_saliency/saliency.png"),
    "guide": ("2f_guided_saliency.py", "lambda signal: -signal", "2f_guided_saliency/guided_saliency.png"),
    "grad_cam_maps": ("2f_guided_saliency.py", "lambda *a: 1 - old(*a)", "2f_guided_saliency/guided_grad_cam.png"),
    "BASELINES": ("2g_faithfulness.py", '{"random": random_maps}', "2g_faithfulness/faithfulness.png"),
    "insertion_deletion_curves": (
        METHODS + "faithfulness.py",
        "lambda *a: old(*a) / 2",
        "2g_faithfulness/insertion_deletion.png",
    ),
    "METHODS": (SCRIPT_2C, '{"gaussian": Settings()}', "2c_class_visualization/archetypes.png"),
    "gaussian_blur": (SCRIPT_2C, "lambda images, sigma_px: images / 2", "2c_class_visualization/archetypes.png"),
    "blurs": (METHODS + "ascent_settings.py", "lambda self: {0: (9, 0)}", "2c_class_visualization/scores.png"),
    "PASSES_MANY": ("2h_mc_dropout.py", "7, 7", "2h_mc_dropout/settling.png"),
    "PASSES_FEW": ("2h_mc_dropout.py", "7, 7", "2h_mc_dropout/settling.png"),
    "spread": ("2h_mc_dropout.py", "lambda p, c: {**old(p, c), 'variance': 1.0}", "2h_mc_dropout/settling.png"),
    "evaluate": (
        "2b_evaluate.py",
        "lambda *a: {k: 2 * v if k == 'loss' else v for k, v in old(*a).items()}",
        "2b_evaluate/mistakes.png",
    ),
    "BINS": (METHODS + "calibration.py", "2", "2b_evaluate/reliability.png"),
    "TOP": ("2d_predict.py", "2", "2d_predict/predictions.png"),
    "map_colours": (FIGURES, "lambda *a: {**old(*a), 'cmap': 'gray'}", "2e_saliency/saliency.png"),
    "brightest": (FIGURES, "lambda maps: 9.0", "2e_saliency/saliency.png"),
    "image_card": (PAGE, "lambda path, *a: old('another', *a)", "report.html"),
}
ZERO = "lambda model, images, *_, **__: 0 * images[:, 0]"
ROW = "2g_faithfulness/rows.jsonl"
# The other functions that the documentation names, and their maps where 2g judges them
CALLED = [
    ("visualize_classes", SCRIPT_2C, "lambda *a, **k: old(*a, **k) / 2", "2c_class_visualization/archetypes.png"),
    ("saliency_maps", "2e_saliency.py", ZERO, "2e_saliency/maps/00000_plain.npy"),
    ("smoothed_saliency_maps", "2e_saliency.py", ZERO, "2e_saliency/maps/00000_smoothed.npy"),
    ("combined_maps", "2e_saliency.py", ZERO, "2e_saliency/maps/00000_combined.npy"),
    ("guided_saliency_maps", "2f_guided_saliency.py", ZERO, "2f_guided_saliency/maps/00000_guided.npy"),
    ("guided_grad_cam_maps", "2f_guided_saliency.py", ZERO, "2f_guided_saliency/maps/00000_guided_grad_cam.npy"),
    ("saliency_maps", "2e_saliency.py", ZERO, f"{ROW} areas plain"),
    ("smoothed_saliency_maps", "2e_saliency.py", ZERO, f"{ROW} areas smoothed"),
    ("combined_maps", "2e_saliency.py", ZERO, f"{ROW} areas combined"),
    ("guided_saliency_maps", "2f_guided_saliency.py", ZERO, f"{ROW} areas guided"),
    ("grad_cam_maps", "2f_guided_saliency.py", ZERO, f"{ROW} areas grad_cam"),
    ("guided_grad_cam_maps", "2f_guided_saliency.py", ZERO, f"{ROW} areas guided_grad_cam"),
    ("insertion_deletion", "2g_faithfulness.py", "lambda *a: [areas / 2 for areas in old(*a)]", f"{ROW} areas random"),
    ("grid_pointing", "2g_faithfulness.py", "lambda *a: old(*a) / 2", f"{ROW} mosaic"),
    (
        "cascading_randomisation",
        "2g_faithfulness.py",
        "lambda *a: (old(*a)[0], [[[7.0]] * 6] * len(old(*a)[1]))",
        f"{ROW} randomised",
    ),
    ("mc_dropout_logits", "2h_mc_dropout.py", "lambda *a, **k: 3 * old(*a, **k)", "2h_mc_dropout/rows.jsonl leading"),
]
CASES = [(name, *edit) for name, edit in EDITS.items()] + CALLED
# the README's own, and some that are wrong
OWN = (
    "import os\n"
    + next(block for block in PYTHON if "def gradient_times_input" in block)
    + """


def wrong_shape(model, images, classes):
    return images


def not_finite(model, images, classes):
    return images[:, 0] * float("nan")


def negative(model, images, classes):
    return images[:, 0] - 1


def seeded(model, images, classes, generators):
    os.chdir("/")
    return torch.stack([torch.rand(images.shape[2:], generator=generator) for generator in generators])


def raises(model, images, classes):
    return {}["no such key"]
"""
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the product beside photos, with what the scripts leave before any edit."""
    folder = tmp_path_factory.mktemp("tree")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "explain", folder / "explain", ignore=shutil.ignore_patterns("__pycache__"))
    for i in range(4):
        save_photo(folder / f"photos/{i}.png", i)
        save_photo(folder / f"labelled/{i}/{i}.png", i)
    (folder / "own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        for script in ARGUMENTS:
            more = ["--passes", "12"] if script == "2h_mc_dropout" else []
            run(folder, script, folder / "before", patch, *more, drawn=True)
    return folder


@contextmanager
def scripts_of(folder: Path) -> Iterator[None]:
    """Import the scripts from this folder inside the block, and leave no trace of them."""

    def is_script(name: str) -> bool:
        return name == "common" or name[:1] == "2" or name.startswith("explain")

    before = {name: module for name, module in sys.modules.items() if is_script(name)}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [*filter(is_script, sys.modules)]:
            del sys.modules[name]
        sys.modules.update(before)


def run(
    folder: Path, script: str, output: Path, monkeypatch: pytest.MonkeyPatch, *more: str, drawn: bool = False
) -> Path:
    """Run a script of the folder, with figures and the page where they are looked at; return its part of the output."""
    arguments = [*ARGUMENTS[script], *TINY, "--output", str(output), "--dataset", "none", *more]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with scripts_of(folder):
        module = importlib.import_module(script)
        if script == "2g_faithfulness":  # any four photos will do, whatever the network says of them
            module.choose_mosaic = lambda number, of, files, sure_class: dict(enumerate(files[:4]))
        if not drawn:
            draw_nothing(monkeypatch, sys.modules["explain.report.page"])
        module.main()
    return output / script


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    """Give the file another text inside the block."""
    before = path.read_text()
    try:
        path.write_text(text)
        yield
    finally:
        path.write_text(before)


def shown(output: Path, where: str) -> object:
    """Return a file, or a part of the first row of `rows.jsonl`, whose keys follow its name."""
    file, *keys = where.split()
    if not keys:
        return (output / file).read_bytes()
    part = json.loads((output / file).read_text().splitlines()[0])
    for key in keys:
        part = part.get(key)
    return part


@pytest.mark.parametrize(("name", "file", "new", "where"), CASES, ids=[f"{name}-{where}" for name, *_, where in CASES])
def test_an_edit_shows_where_it_should(name, file, new, where, tree, tmp_path, monkeypatch):
    text = (tree / file).read_text()
    if re.search(rf"(?m)^(\w+, )?{name}\b[^=\n]*= ", text):  # a constant, or a table of several lines
        changed = re.sub(
            rf"(?ms)^((?:\w+, )?{name}\b[^=\n]*= )(?:\{{.*?^\}}|[^\n]*)", lambda match: match[1] + new, text, count=1
        )
    else:
        owner = "Settings." if re.search(rf"(?m)^    def {name}\(", text) else ""
        cut = text.rindex('if __name__ == "__main__"') if '"__main__"' in text else len(text)
        changed = f"{text[:cut]}\n\nold = {owner}{name}\n{owner}{name} = {new}\n\n\n{text[cut:]}"
    script = "2e_saliency" if where == "report.html" else where.partition("/")[0]
    more = ["--passes", "12"] if script[:2] == "2h" and not name.startswith("PASSES") else []
    with edited(tree / file, changed):
        run(tree, script, tmp_path, monkeypatch, *more, drawn=where.endswith(("png", "html")))
    assert shown(tree / "before", where) not in (None, shown(tmp_path, where))


def test_every_row_of_the_table_has_its_edit():
    table = README.split("## Change a method")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", table)[1:]
    named = {name for what, *_ in rows for name in code(what)}
    assert len(rows) >= 15 and named == {*EDITS}
    for what, files, figures in rows:
        for name in code(what):
            file, _, figure = EDITS[name]
            assert file in code(files)
            assert figure[:2] in figures or figure in figures


def test_a_map_more_is_kept_whatever_the_options(tree, tmp_path, monkeypatch):
    """Without copies only the maps that need copies go; an entry may be any callable, with values of either sign."""
    path = tree / "2e_saliency.py"
    before, main, after = path.read_text().partition("def main")
    entry = 'MAPS["mine"] = functools.partial(lambda sign, model, images, classes: sign * (images[:, 0] - 0.5), 2)'
    with edited(path, f"{before}import functools\n{entry}\n\n\n{main}{after}"):
        own = run(tree, "2e_saliency", tmp_path, monkeypatch, "--copies", "0", drawn=True)
    assert json.loads((own / "metrics.json").read_text())["results"]["kinds"] == ["plain", "mine"]
    assert np.load(own / "maps/00000_mine.npy").min() < 0
    assert len([*(tmp_path / "report").glob("2e_saliency_00000_*_mine.*")]) == 1


@pytest.mark.parametrize("line", ["", '    "detail": detail_maps,\n    "bright": lambda images: images.mean(1),\n'])
def test_a_baseline_more_or_less_is_one_line(line, tree, tmp_path, monkeypatch):
    path = tree / "2g_faithfulness.py"
    with edited(path, path.read_text().replace('    "detail": detail_maps,\n', line)):
        own = run(tree, "2g_faithfulness", tmp_path, monkeypatch)
    results = json.loads((own / "metrics.json").read_text())["results"]
    assert {*results["baselines"]} == {"random", "middle", "edges"} | ({"detail", "bright"} if line else set())
    assert {*results["baselines"]} < results["maps"].keys()


def test_a_map_of_ones_own_is_judged_beside_the_others(tree, tmp_path, monkeypatch, capsys):
    """Its code is part of the settings; if it asks for generators, each image has its own."""
    given = ("--map", "own.py:seeded", "--map", "own.py:gradient_times_input")
    own = run(tree, "2g_faithfulness", tmp_path, monkeypatch, *given, drawn=True)
    results, first = json.loads((own / "metrics.json").read_text())["results"], rows_of(own)
    assert results["kinds"][-2:] == ["seeded", "gradient_times_input"]
    measures = results["maps"]["gradient_times_input"]
    assert measures["images"] == 4 and measures["stability"] is not None
    assert measures.keys() == results["maps"]["plain"].keys()
    assert results["randomised"][0]["gradient_times_input_maps"] == 1
    assert "gradient_times_input" in [line["map"] for line in table_of(own / "faithfulness.csv")]
    assert "gradient times input" in (tmp_path / "report.html").read_text()
    with edited(tree / "own.py", OWN + "# changed\n"):
        run(tree, "2g_faithfulness", tmp_path, monkeypatch, *given)
    assert "another version of the code" in capsys.readouterr().err
    curves, again = ([row["curves"]["seeded"] for row in rows] for rows in (first, rows_of(own)))
    assert curves == again and curves[0] != curves[1]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("wrong_shape", r"own.py:wrong_shape must be finite .* shape \(1, 64, 64\): their shape is \(1, 3, 64, 64\)"),
        ("not_finite", "own.py:not_finite must be finite .*; 4096 values are not finite"),
        ("negative", "own.py:negative must be at least 0, and the smallest value is -.*: give maps.abs"),
        ("raises", "own.py:raises fails .KeyError: 'no such key'.: correct it"),
        ("nothing", "own.py has no function 'nothing': choose from gradient_times_input"),
    ],
)
def test_what_a_map_does_wrong_is_one_sentence_with_its_name(function, says, tree, tmp_path, monkeypatch):
    with pytest.raises(Exception, match=says) as caught:
        run(tree, "2g_faithfulness", tmp_path, monkeypatch, "--map", f"own.py:{function}")
    assert type(caught.value).__name__ == "UserError"  # that of the copied product
