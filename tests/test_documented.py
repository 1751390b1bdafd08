"""The function that the README names is the function that the script calls: redefined, it changes the result."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, save_photo
from test_readme import PYTHON

from explain.basics.errors import UserError

FAST_2G = ["--copies", "1", "--steps", "2", "--randomise", "1", "--stages", "1", "--mosaics", "1"]
ARGUMENTS = {
    "2b_evaluate": ["labelled"],
    "2c_class_visualization": ["--classes", "3", "--methods", "gaussian", "--steps", "8", "--judge", "none"],
    "2e_saliency": ["photos", "--copies", "2", "--scores", "0"],
    "2f_guided_saliency": ["photos", "--scores", "0"],
    "2g_faithfulness": ["photos", *FAST_2G],
    "2h_mc_dropout": ["photos", "--passes", "3", "--dropout", "0.5"],
}
ZERO = "lambda model, images, *_, **__: 0 * images[:, 0]"
# Of each script: the function redefined at its end, the new function, the part of a row, or the map, that changes
REDEFINED = {
    "2b_evaluate": [("evaluate", "lambda *a: {key: 2 * value for key, value in old(*a).items()}", "loss")],
    "2c_class_visualization": [
        ("visualize_classes", "lambda *a, **k: old(*a, **k) / 2", "archetype"),
        ("gaussian_blur", "lambda images, sigma_px: images / 2", "archetype"),
    ],
    "2e_saliency": [
        ("saliency_maps", ZERO, "plain"),
        ("smoothed_saliency_maps", ZERO, "smoothed"),
        ("combined_maps", ZERO, "combined"),
    ],
    "2f_guided_saliency": [
        ("guided_saliency_maps", ZERO, "guided"),
        ("grad_cam_maps", ZERO, "grad_cam"),
        ("guided_grad_cam_maps", ZERO, "guided_grad_cam"),
    ],
    "2g_faithfulness": [
        ("insertion_deletion", "lambda *a: [areas / 2 for areas in old(*a)]", "areas"),
        ("grid_pointing", "lambda *a: old(*a) / 2", "mosaic"),
        ("cascading_randomisation", "lambda *a: (old(*a)[0], [[[7.0]] * 6] * len(old(*a)[1]))", "randomised"),
    ],
    "2h_mc_dropout": [("mc_dropout_logits", "lambda *a, **k: 3 * old(*a, **k)", "leading")],
}
CASES = [(script, *case, script) for script, cases in REDEFINED.items() for case in cases]
# 2g judges the maps of 2e and 2f
CASES += [(*case[:4], "2g_faithfulness") for case in CASES if case[2] == ZERO]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A copy of the scripts beside photos."""
    folder = tmp_path_factory.mktemp("copy")
    for path in [*ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    os.symlink(ROOT / "explain", folder / "explain")
    for i in range(4):
        save_photo(folder / f"photos/{i}.png", i)
        save_photo(folder / f"labelled/{i}/{i}.png", i)
    return folder


@contextmanager
def scripts_of(folder: Path) -> Iterator[None]:
    """Import the scripts from this folder inside the block, and leave no trace of them."""

    def is_script(name: str) -> bool:
        return (
            name == "common"
            or name[:1] == "2"
            or (name.startswith("explain") and not (folder / "explain").is_symlink())
        )

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


def run(folder: Path, script: str, output: Path, monkeypatch, *more: str) -> Path:
    """Run a script of the folder; return its part of the output."""
    arguments = [*ARGUMENTS.get(script, ["photos"]), *TINY, "--output", str(output), "--dataset", "none", *more]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with scripts_of(folder):
        module = importlib.import_module(script)
        if script == "2g_faithfulness":  # any four photos will do, whatever the network says of them
            module.choose_mosaic = lambda number, of, files, sure_class: dict(enumerate(files[:4]))
        module.main()
    return output / script


def result(own: Path, part: str) -> object:
    """Return a part of the first row, or its map or the score of its map of this kind."""
    row = json.loads((own / "rows.jsonl").read_text().splitlines()[0])
    if own.name == "2g_faithfulness" and part not in row:
        return row["areas"].get(part, "zero")
    if part == "archetype":
        return (own / row["files"][0]).read_bytes()
    return row[part] if part in row else np.load(own / f"maps/00000_{part}.npy").tobytes()


@pytest.mark.parametrize(("script", "function", "new", "part", "runs"), CASES)
def test_a_redefined_function_changes_the_result(script, function, new, part, runs, workplace, monkeypatch, tmp_path):
    path = workplace / f"{script}.py"
    text = path.read_text()
    before = result(run(workplace, runs, tmp_path / "before", monkeypatch), part)
    cut = text.rindex('if __name__ == "__main__"')
    try:
        path.write_text(f"{text[:cut]}old = {function}\n{function} = {new}\n\n\n{text[cut:]}")
        after = result(run(workplace, runs, tmp_path / "after", monkeypatch), part)
    finally:
        path.write_text(text)
    assert before != after


# the README's own, and some that are wrong
OWN = (
    next(block for block in PYTHON if "def gradient_times_input" in block)
    + """


def wrong_shape(model, images, classes):
    return images


def not_finite(model, images, classes):
    return images[:, 0] * float("nan")


def negative(model, images, classes):
    return images[:, 0] - 1


def seeded(model, images, classes, generators):
    return torch.stack([torch.rand(images.shape[2:], generator=generator) for generator in generators])


def raises(model, images, classes):
    return {}["no such key"]
"""
)


def test_a_map_more_is_kept_whatever_the_options(workplace, tmp_path, monkeypatch):
    """Without copies only the maps that need copies go; an entry may be any callable, with values of either sign."""
    path = workplace / "2e_saliency.py"
    text = path.read_text()
    entry = 'MAPS["mine"] = functools.partial(lambda sign, model, images, classes: sign * (images[:, 0] - 0.5), 2)'
    cut = text.index("def main")
    try:
        path.write_text(f"{text[:cut]}import functools\n{entry}\n\n\n{text[cut:]}")
        own = run(workplace, "2e_saliency", tmp_path / "o", monkeypatch, "--copies", "0")
    finally:
        path.write_text(text)
    assert json.loads((own / "metrics.json").read_text())["results"]["kinds"] == ["plain", "mine"]
    assert np.load(own / "maps/00000_mine.npy").min() < 0
    assert len([*(tmp_path / "o/report").glob("2e_saliency_00000_*_mine.*")]) == 1


@pytest.fixture
def own_maps(tmp_path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def test_a_map_of_ones_own_is_judged_beside_the_others(own_maps, workplace, tmp_path, monkeypatch):
    own = run(workplace, "2g_faithfulness", tmp_path / "o", monkeypatch, "--map", f"{own_maps}:gradient_times_input")
    metrics = json.loads((own / "metrics.json").read_text())
    assert metrics["results"]["kinds"][-1] == "gradient_times_input"
    measures = metrics["results"]["maps"]["gradient_times_input"]
    assert measures["images"] == 4 and measures["stability"] is not None
    assert measures.keys() == metrics["results"]["maps"]["plain"].keys()
    stage = metrics["results"]["randomised"][0]
    assert stage["gradient_times_input_maps"] == 1
    table = csv.DictReader((own / "faithfulness.csv").read_text().splitlines())
    assert "gradient_times_input" in [line["map"] for line in table]
    assert "gradient times input" in (tmp_path / "o/report.html").read_text()


def test_a_map_that_asks_for_generators_is_seeded_by_image(own_maps, workplace, tmp_path, monkeypatch):
    curves = []
    for output in ("a", "b"):
        own = run(workplace, "2g_faithfulness", tmp_path / output, monkeypatch, "--map", f"{own_maps}:seeded")
        curves.append([json.loads(line)["curves"]["seeded"] for line in (own / "rows.jsonl").read_text().splitlines()])
    assert curves[0] == curves[1] and curves[0][0] != curves[0][1]


def test_its_code_is_part_of_the_settings(own_maps, workplace, tmp_path, monkeypatch, capsys):
    given = ("--map", f"{own_maps}:gradient_times_input")
    run(workplace, "2g_faithfulness", tmp_path / "o", monkeypatch, *given)
    Path(own_maps).write_text(OWN + "# changed\n")
    run(workplace, "2g_faithfulness", tmp_path / "o", monkeypatch, *given)
    assert "another version of the code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("wrong_shape", r"own.py:wrong_shape must be finite .* shape \(1, 64, 64\): they are \(1, 3, 64, 64\)"),
        ("not_finite", "own.py:not_finite must be finite .*, 4096 values not finite"),
        (
            "negative",
            "maps of --map .*own.py:negative must be at least 0, and the smallest value is -.*: give maps.abs",
        ),
        ("raises", "own.py:raises fails .KeyError: 'no such key'.: correct it"),
        ("nothing", "own.py has no function 'nothing': valid are gradient_times_input"),
    ],
)
def test_what_a_map_does_wrong_is_one_sentence_with_its_name(
    function, says, own_maps, workplace, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match=says):
        run(workplace, "2g_faithfulness", tmp_path / "o", monkeypatch, "--map", f"{own_maps}:{function}")


@pytest.mark.parametrize(
    ("line", "added", "removed"),
    [
        ('    "detail": detail_maps,\n', {}, {"detail"}),
        ('    "detail": detail_maps,\n    "bright": lambda images: images.mean(1),\n', {"bright"}, {}),
    ],
)
def test_a_baseline_more_or_less_is_one_line(line, added, removed, workplace, tmp_path, monkeypatch):
    path = workplace / "2g_faithfulness.py"
    text = path.read_text()
    try:
        path.write_text(text.replace('    "detail": detail_maps,\n', line if added else ""))
        own = run(workplace, "2g_faithfulness", tmp_path / "o", monkeypatch)
    finally:
        path.write_text(text)
    metrics = json.loads((own / "metrics.json").read_text())["results"]
    assert {*metrics["baselines"]} == {"random", "middle", "edges", "detail"} - {*removed} | {*added}
    assert {*metrics["baselines"]} < metrics["maps"].keys()
    assert (own / "insertion_deletion.png").is_file() and (own / "faithfulness.png").is_file()
