"""What a script does before it imports the libraries that take seconds."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS, TINY, save_photo


@pytest.mark.parametrize("script", ["process_data", *SCRIPTS])
@pytest.mark.parametrize(("argument", "status", "text"), [("--help", 0, "usage: "), ("--hlep", 1, "--hlep")])
def test_help_and_a_wrong_option_need_no_torch(script, argument, status, text):
    command = [sys.executable, "-X", "importtime", ROOT / f"{script}.py", argument]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    said = done.stdout + done.stderr.splitlines()[-1]
    assert done.returncode == status and text in said and "Traceback" not in done.stderr
    if status == 0:  # the question and the commands first, then what few need
        places = [said.index(part) for part in (f"    python {script}.py", "the output:", "rarely needed:", "--white")]
        assert places == sorted(places)
    assert "argparse" in imported and not {"torch", "numpy", "PIL", "matplotlib"} & imported


def test_the_report_is_the_exercises_in_one_process(tmp_path, monkeypatch, capsys):
    """Each with its own options at their defaults; one that fails does not keep the others from running."""
    save_photo(tmp_path / "data/DL_data/test_images/0.png")
    exercises = ["2d_predict", "2h_mc_dropout", "2b_evaluate"]  # the network has no dropout, the dataset no labels
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", *exercises, *TINY])
    with pytest.raises(SystemExit, match="failed: 2h_mc_dropout, 2b_evaluate"):
        importlib.import_module("report").main()
    assert "no dropout" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "output/2d_predict/metrics.json").read_text())
    assert metrics["script"] == "2d_predict" and metrics["command"].startswith("python 2d_predict.py --")
    assert metrics["model"]["name"] == "timm/test_resnet"
