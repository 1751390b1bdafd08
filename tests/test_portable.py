"""What Windows lacks, taken away here: the scripts run without it, and leave the same bytes."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import sys

import pytest
import torch
from conftest import SCRIPTS, contents, load_script, run_main, save_photo

import common
from explain.run import shell

POSIX_ONLY = {
    os: "O_NOFOLLOW O_DIRECTORY sched_getaffinity sched_setaffinity fork forkpty getuid geteuid getgid getpgid killpg "
    "link mkfifo chown lchown fchmod fchown nice pathconf statvfs sysconf uname wait4 posix_fadvise pread pwrite",
    signal: "set_wakeup_fd SIGKILL SIGALRM SIGHUP SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD alarm setitimer sigwait pthread_kill "
    "pthread_sigmask siginterrupt",
}


@pytest.fixture
def as_on_windows(monkeypatch):
    """No POSIX-only names and modules."""
    for module, names in POSIX_ONLY.items():
        for name in names.split():
            monkeypatch.delattr(module, name, raising=False)
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        monkeypatch.setitem(sys.modules, name, None)
    library = ctypes.CDLL

    def load(name, *arguments, **settings):
        if name is None:
            raise TypeError("there is no C library without a name")
        return library(name, *arguments, **settings)

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_what_is_posix_alone(name, undisturbed, tmp_path, monkeypatch, request):
    """It leaves the same bytes in another folder, with another number of threads that decode, over files of before."""
    shutil.copytree(undisturbed(name), tmp_path, dirs_exist_ok=True)
    expected = contents(tmp_path / "output")
    request.getfixturevalue("as_on_windows")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *SCRIPTS[name], "--fresh"])
    shell.run(load_script(name).main)  # as from a shell, over the files that are there
    assert contents(tmp_path / "output") == expected
    for path in expected:  # a name that Windows takes
        assert not re.search(r'[<>:"\\|?*\0-\x1f]|[ .](/|$)', path), path


def test_process_data_without_what_is_posix_alone(tmp_path, monkeypatch, as_on_windows):
    run_main("process_data", "--sample", cwd=tmp_path, monkeypatch=monkeypatch)
    assert len(common.validation_images(tmp_path / "dataset")) == 20
    (path,) = (tmp_path / "dataset/DL_data/validation_images").glob("imagenet_00_*")
    save_photo(path)
    run_main("process_data", cwd=tmp_path, monkeypatch=monkeypatch)  # a file is replaced
