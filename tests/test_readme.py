"""The examples and commands of the README and of docs/ run as written."""

from __future__ import annotations

import importlib
import re
import shlex
import sys

import matplotlib
import pytest
from conftest import ROOT, finish_script, save_photo

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
README = PAGES["README.md"]
BLOCKS = [
    re.sub("(?m)^ {4}", "", block).strip("\n")
    for page in PAGES.values()
    for block in re.findall(r"(?m)(?:^ {4}.*\n|^\n(?= {4}))+", page)
    if block.strip()
]
PYTHON = list(dict.fromkeys(block for block in BLOCKS if re.match("(import|from) ", block)))
COMMANDS = [
    command
    for block in BLOCKS
    if block not in PYTHON
    for line in block.replace("\\\n", " ").splitlines()
    for command in re.split(" && ", line.partition("  #")[0].strip())
    if re.match(r"(\S*python|torchrun|sbatch|make|pip|python3) ?", command)
]
COMMANDS += [command for page in PAGES.values() for command in re.findall(r"`((?:python|make)\b[^`]*)`", page)]
SCRIPTS = list(dict.fromkeys(command for command in COMMANDS if re.match(r"python \w+\.py", command)))
# $MINE and photos are run by test_own_network.py, from training on; the others need weights, a dataset or hours
NOT_ALONE = r"\$MINE|photos|FILE|DIR|report.py|--limit 91|--classes all|--link"
ALONE = [command for command in SCRIPTS if not re.search(NOT_ALONE, command)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with photo.jpg, in which the first of the commands has been run."""
    folder = tmp_path_factory.mktemp("readme")
    save_photo(folder / "photo.jpg", size=(300, 260))
    finish_script("2e_saliency", "photo.jpg", "--threads", 1, "--copies", 1, "--scores", 0, cwd=folder)
    return folder


def test_the_readme_is_short_and_its_examples_are_found():
    assert len(README.encode()) <= 12_000
    assert len(PYTHON) == 6
    assert len(SCRIPTS) >= 25 and {"make", "make test", "python report.py"} <= set(COMMANDS)
    assert len(ALONE) >= 8


def test_names_in_the_architecture_are_where_it_says():
    lines = re.sub(r"\n +", " ", PAGES["docs/architecture.md"].split("## To add")[1]).splitlines()
    places = [code(line) for line in lines if ".py`" in line and not line.startswith("- **an exercise")]
    assert len(places) >= 7
    for place in places:
        files = [(ROOT / file).read_text() for file in place if file.endswith(".py")]
        for name in [name for name in place if name.isidentifier()]:
            assert any(re.search(rf"(?m)^(def {name}\(|{name}\b.*=)", text) for text in files), (name, place)


def code(text: str) -> list[str]:
    """The words of a text that are set as code."""
    return re.findall(r"`([\w./]+)`", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        headings = re.findall(r"(?m)^#+ (.+)$", target.read_text()) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], link


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
@pytest.mark.parametrize("command", ALONE)
def test_each_command_runs(command, tmp_path):
    save_photo(tmp_path / "photo.jpg", size=(300, 260))
    (tmp_path / "my_map.py").write_text(next(block for block in PYTHON if "def gradient_times_input" in block))
    finish_script("process_data", "--sample", cwd=tmp_path)
    script, *arguments = shlex.split(command)[1:]
    finish_script(script.removesuffix(".py"), *arguments, cwd=tmp_path)
