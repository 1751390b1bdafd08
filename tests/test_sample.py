"""explain/data/sample.py: what is written, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import contents

from explain.basics.errors import UserError
from explain.data import sample


def state_below(folder: Path) -> dict[Path, tuple]:
    """What tells whether a file was written again."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(folder.rglob("*"))}


def test_sample_completes_a_sample_that_was_interrupted(tmp_path):
    sample.write_sample(tmp_path / "DL_data")
    whole = contents(tmp_path)
    (tmp_path / "DL_data/val.txt").unlink()
    (tmp_path / "DL_data/test_images/china.jpg").unlink()
    sample.write_sample(tmp_path / "DL_data")
    assert contents(tmp_path) == whole


def test_hidden_files_are_no_other_dataset(tmp_path):
    for hidden in (".DS_Store", ".git/config", "test_images/._china.jpg"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("hidden")
    sample.write_sample(tmp_path)
    assert (tmp_path / "val.txt").is_file() and (tmp_path / ".git/config").read_text() == "hidden"


def test_sample_leaves_a_changed_sample_alone(tmp_path):
    sample.write_sample(tmp_path / "DL_data")
    (tmp_path / "DL_data/val.txt").write_text("mine")
    before = state_below(tmp_path)
    with pytest.raises(UserError, match="'val.txt' is not part of the sample"):
        sample.write_sample(tmp_path / "DL_data")
    assert state_below(tmp_path) == before


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="package foolbox is missing: pip install"):
        sample.sample_files()
