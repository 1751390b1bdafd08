"""Files: identified by their content, kept inside their folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether the path, all links followed, is the folder or lies in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
