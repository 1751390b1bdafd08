"""explain/basics/files.py: a file's digest, and what lies inside a folder."""

from __future__ import annotations

import hashlib

import pytest

from explain.basics.files import is_inside, sha256_of


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 1])
def test_sha256_is_that_of_the_whole_file(tmp_path, size):
    (tmp_path / "file").write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert sha256_of(tmp_path / "file") == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()


def test_links_are_followed(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (folder / "out").symlink_to("../out")
    (folder / "in").symlink_to("sub")
    (tmp_path / "link").symlink_to("folder")
    for path in (folder, folder / "absent", folder / "in/x", folder / "sub/../x", tmp_path / "link/sub"):
        assert is_inside(path, folder) and is_inside(path, tmp_path / "link")
    for path in (tmp_path, tmp_path / "folder2", folder / "..", folder / "out", folder / "out/x"):
        assert not is_inside(path, folder)
