"""Files: written atomically, identified by their content, kept inside their folder."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import deque
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import NoReturn

from explain.basics.errors import UserError


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether the path is the folder or lies in it, with all links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_file_of(path: Path, digest: str) -> bool:
    """Return whether the path is a file whose content has this SHA-256 digest."""
    return path.is_file() and sha256_of(path) == digest


# Folders and files that operating systems and archives create, in lower case
SYSTEM_NAMES = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM_NAMES |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden (.DS_Store) or made by the operating system (__MACOSX)."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def list_files(folder: Path) -> list[Path]:
    """List all files below a folder, sorted, without hidden files (._photo.jpg) and the operating system's folders.

    Links to folders are followed, as torchvision does, but no folder is listed twice.
    """
    files, seen, tops = [], set(), deque([str(folder)])
    while tops:  # links come last, so that files in the folder itself keep their own paths
        for place, folders, names in os.walk(tops.popleft(), onerror=_raise):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_system_name(name))
            links = (path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path))
            tops.extend(link for link in links if not is_inside(Path(place), Path(link)))
            files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _raise(error: OSError) -> NoReturn:  # by default os.walk skips folders that it may not read
    raise error


def size_of(path: Path) -> int | None:
    """Return a file's size in bytes; None if there is no file."""
    with suppress(OSError):
        return path.stat().st_size
    return None


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file atomically; a file that already holds these bytes keeps its modification time."""
    data = data.encode() if isinstance(data, str) else data
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of each process's own, and not made from the file's, which may be as long as names can be
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}.tmp")
    try:
        for attempt in range(3):
            temporary.write_bytes(data)
            try:
                os.replace(temporary, path)
                break
            except FileNotFoundError:  # another run has just started and removed it as a leftover
                if attempt == 2:
                    raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def copy_or_link(source: Path, target: Path, folder: Path, digest: str, link: bool) -> bool:
    """Copy or hard-link a file into a folder atomically; return False if the target is already correct.

    `digest` is the SHA-256 digest of the content that was checked. Raises UserError if it has changed since.
    """
    if not is_inside(target.parent, folder):
        raise UserError(f"{target.parent} is a link out of {folder}: remove the link")
    if (target.is_file() and target.samefile(source)) if link else is_file_of(target, digest):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.tmp")  # the target's name may be as long as names can be
    try:
        if link:
            try:
                os.link(os.path.realpath(source), temporary)
            except OSError as error:
                cure = "omit --link, or keep DL_data and DL_data_p on one file system"
                raise UserError(f"{source} cannot be hard-linked to {target} ({error.strerror}): {cure}") from None
        else:
            shutil.copyfile(source, temporary)
            status = source.stat()
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        if sha256_of(temporary) != digest:
            raise UserError(f"{source} changed while it was being copied: run the same command again")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def move_out(path: Path, folder: Path) -> None:
    """Move a file from FOLDER to FOLDER_pruned, and number it if its name is taken there.

    Raises UserError for a file behind a link that leaves the folder.
    """
    if not is_inside(path.parent, folder):
        raise UserError(f"{path.parent} is a link out of {folder}: remove the link")
    target = folder.with_name(f"{folder.name}_pruned") / path.relative_to(folder)
    numbered = (target.with_name(f"{target.stem}.{n}{target.suffix}") for n in count(1))
    free = next(path for path in chain([target], numbered) if not os.path.lexists(path))
    free.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, free)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `write_file` whose processes were killed."""
    for path in (*folder.glob(".writing-*.tmp"), *folder.glob("*/.writing-*.tmp")):
        path.unlink(missing_ok=True)
