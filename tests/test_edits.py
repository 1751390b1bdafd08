"""Each row of the README's table "Change a method" is an edit that shows in the figure that the row names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, save_photo
from test_documented import ARGUMENTS, run
from test_readme import README, code

# Of each name: its file, its new value or new function, and the figure that shows it.
METHODS, FIGURES, PAGE = "explain/methods/", "explain/report/figures.py", "explain/report/page.py"
EDITS = {
    "over_channels": ("2e_saliency.py", "lambda gradient: gradient.abs().sum(1)", "2e_saliency/saliency"),
    "MAPS": ("2e_saliency.py", '{"plain": saliency_maps}', "2e_saliency/saliency"),
    "guide": ("2f_guided_saliency.py", "lambda signal: -signal", "2f_guided_saliency/guided_saliency"),
    "grad_cam_maps": ("2f_guided_saliency.py", "lambda *a: 1 - old(*a)", "2f_guided_saliency/guided_grad_cam"),
    "BASELINES": ("2g_faithfulness.py", '{"random": random_maps}', "2g_faithfulness/faithfulness"),
    "insertion_deletion_curves": (
        METHODS + "faithfulness.py",
        "lambda *a: old(*a) / 2",
        "2g_faithfulness/insertion_deletion",
    ),
    "METHODS": ("2c_class_visualization.py", '{"gaussian": Settings()}', "2c_class_visualization/archetypes"),
    "gaussian_blur": (
        "2c_class_visualization.py",
        "lambda images, sigma_px: images / 2",
        "2c_class_visualization/archetypes",
    ),
    "blurs": (METHODS + "ascent_settings.py", "lambda self: {0: (9, 0)}", "2c_class_visualization/scores"),
    "PASSES_MANY": ("2h_mc_dropout.py", "7, 7", "2h_mc_dropout/settling"),
    "PASSES_FEW": ("2h_mc_dropout.py", "7, 7", "2h_mc_dropout/settling"),
    "spread": ("2h_mc_dropout.py", "lambda p, c: {**old(p, c), 'variance': 1.0}", "2h_mc_dropout/settling"),
    "evaluate": (
        "2b_evaluate.py",
        "lambda *a: {k: 2 * v if k == 'loss' else v for k, v in old(*a).items()}",
        "2b_evaluate/mistakes",
    ),
    "BINS": (METHODS + "calibration.py", "2", "2b_evaluate/reliability"),
    "TOP": ("2d_predict.py", "2", "2d_predict/predictions"),
    "map_colours": (FIGURES, "lambda *a: {**old(*a), 'cmap': 'gray'}", "2e_saliency/saliency"),
    "brightest": (FIGURES, "lambda maps: 9.0", "2e_saliency/saliency"),
    "image_card": (PAGE, "lambda path, *a: old('another', *a)", "report"),
}


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARGUMENTS, "2h_mc_dropout", ["photos", "--passes", "12", "--dropout", "0.5"])
        for script in {script_of(figure) for *_, figure in EDITS.values()}:
            run(folder, script, folder / "before", patch)
    return folder


def script_of(figure: str) -> str:
    return "2e_saliency" if figure == "report" else figure.partition("/")[0]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_shows_in_its_figure(name, tree, tmp_path, monkeypatch):
    file, new, figure = EDITS[name]
    path, script = tree / file, script_of(figure)
    text = path.read_text()
    if re.search(rf"(?m)^(\w+, )?{name}\b[^=\n]*= ", text):  # a constant, or a table of several lines
        edited = re.sub(
            rf"(?ms)^((?:\w+, )?{name}\b[^=\n]*= )(?:\{{.*?^\}}|[^\n]*)", lambda match: match[1] + new, text, count=1
        )
    else:
        owner = "Settings." if re.search(rf"(?m)^    def {name}\(", text) else ""
        cut = text.rindex('if __name__ == "__main__"') if '"__main__"' in text else len(text)
        edited = f"{text[:cut]}\n\nold = {owner}{name}\n{owner}{name} = {new}\n\n\n{text[cut:]}"
    given = [] if name.startswith("PASSES") else ["--passes", "12"]
    monkeypatch.setitem(ARGUMENTS, "2h_mc_dropout", ["photos", "--dropout", "0.5", *given])
    try:
        path.write_text(edited)
        run(tree, script, tmp_path / "after", monkeypatch)
    finally:
        path.write_text(text)
    suffix = ".html" if figure == "report" else ".png"
    before, after = (folder / f"{figure}{suffix}" for folder in (tree / "before", tmp_path / "after"))
    assert before.read_bytes() != after.read_bytes()


def test_every_row_of_the_table_has_its_edit():
    table = README.split("## Change a method")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", table)[1:]
    named = {name for what, *_ in rows for name in code(what)}
    assert named == {*EDITS}
    for what, files, figures in rows:
        for name in code(what):
            assert EDITS[name][0] in code(files)
            assert EDITS[name][2][:2] in figures or EDITS[name][2] in figures
