"""The README's examples run as they stand there."""

from __future__ import annotations

import importlib
import re
import shlex
import sys

import matplotlib
import pytest
from conftest import ROOT, finish_script, save_photo

README = (ROOT / "README.md").read_text()
BLOCKS = [
    re.sub("(?m)^ {4}", "", block).strip("\n")
    for block in re.findall(r"(?m)(?:^ {4}.*\n|^\n(?= {4}))+", README)
    if block.strip()
]
PYTHON = [block for block in BLOCKS if re.match("(import|from) ", block)]
COMMANDS = [
    command
    for block in BLOCKS
    if block not in PYTHON
    for line in block.splitlines()
    for command in re.split(" && ", line.partition("  #")[0].strip())
    if re.match(r"(\S*python|torchrun|sbatch|make|pip|python3) ?", command)
]
SCRIPTS = [command for command in COMMANDS if re.match(r"python \w+\.py", command)]
# the others are those of "Your own network", which test_own_network.py runs, from training on
WITHOUT_A_NETWORK = [command for command in SCRIPTS if not re.search(r"\$MINE|photos", command)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with photo.jpg, in which the first of the commands has been run."""
    folder = tmp_path_factory.mktemp("readme")
    save_photo(folder / "photo.jpg", size=(300, 260))
    finish_script("2e_saliency", "photo.jpg", "--threads", 1, "--copies", 1, "--scores", 0, cwd=folder)
    return folder


def test_what_can_be_changed_is_where_the_table_says():
    rows = re.findall(r"(?m)^\| [^|]+ \| ((?:.*`[\w/.]+\.(?:py|j2)`.*)) \|$", README.split("**Change a method**")[1])
    assert len(rows) >= 16
    for row in rows:
        for names, file in re.findall(r"(.+?) in `([\w/.]+\.(?:py|j2))`", row):
            text = (ROOT / file).read_text()
            for name in re.findall(r"`(\w+)`", names.partition("or `")[0]):
                assert re.search(rf"(?m)^(def {name}\(|{name}\b.*=|.*, {name} = |{{%-? macro {name}\()", text), (
                    name,
                    file,
                )


def test_the_examples_are_found():
    assert len(PYTHON) == 6
    assert len(SCRIPTS) >= 14 and {"make", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("example", PYTHON, ids=lambda block: re.findall("[a-z_]+", block)[-2])
def test_each_example_in_python_runs(example, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with matplotlib.rc_context({"backend": "agg"}):
        exec(compile(example, "README.md", "exec"), {"__name__": "README"})


@pytest.mark.parametrize("command", SCRIPTS)
def test_each_command_is_understood(command, monkeypatch, capsys):
    """Every option exists, and every script has --help; the work itself is for the long test."""
    script, *arguments = shlex.split(command)[1:]
    module = importlib.import_module(script.removesuffix(".py"))
    text = "" if "--help" in arguments else " ".join(arguments)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    options = re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)
    for option in re.findall(r"--[a-z0-9-]+", text):
        assert option in options, option


@pytest.mark.long
@pytest.mark.parametrize("command", WITHOUT_A_NETWORK)
def test_each_command_runs(command, tmp_path):
    save_photo(tmp_path / "photo.jpg", size=(300, 260))
    (tmp_path / "my_map.py").write_text(next(block for block in PYTHON if "def gradient_times_input" in block))
    finish_script("process_data", "--sample", cwd=tmp_path)
    script, *arguments = shlex.split(command)[1:]
    finish_script(script.removesuffix(".py"), *arguments, cwd=tmp_path)
