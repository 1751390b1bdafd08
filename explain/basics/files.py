"""Files: written all or nothing, identified by their content, kept inside their folder."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import NoReturn

from explain.basics.errors import UserError, printable

WAITS = (0.01, 0.1, 0.9)  # seconds between attempts at a file that another program has open


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


def is_file_of(path: Path, digest: str) -> bool:
    """Return whether there is a file whose content has this SHA-256."""
    return path.is_file() and sha256_of(path) == digest


# Folders and files that systems and archives leave beside those of users, in lower case
SYSTEM_NAMES = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM_NAMES |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden (.DS_Store, .ipynb_checkpoints), or belongs to a system (__MACOSX)."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def list_files(folder: Path) -> list[Path]:
    """List all files below a folder, in a fixed order, but hidden ones (._photo.jpg) and those in folders of systems.

    Links to folders are followed, as torchvision follows them, but no folder is listed twice: a link to one that is
    listed anyway, or that holds the link, adds nothing.
    """
    files, seen, tops = [], set(), deque([str(folder)])
    while tops:  # links only after all that is below the folder itself, whose files keep their own paths
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


def _raise(error: OSError) -> NoReturn:  # os.walk passes over folders that it may not read
    raise error


def size_of(path: Path) -> int | None:
    """Return a file's size in bytes; None where there is no file."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def write_file(path: Path, data: bytes | str) -> None:
    """Write all or nothing; a file that already holds these bytes is left alone (so is its time)."""
    data = data.encode() if isinstance(data, str) else data
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # each process has names of its own, which are not made from the file's: that may be as long as names can be
    temporary = path.with_name(f".writing-{secrets.token_hex(8)}.tmp")
    try:
        for attempt in range(3):
            temporary.write_bytes(data)
            try:
                replace_file(temporary, path)
                break
            except FileNotFoundError:  # a run that has just started took it for a leftover
                if attempt == 2:
                    raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(source: Path, target: Path) -> None:
    """Move a file over another one, if any; see `_when_closed`."""
    _when_closed(lambda: os.replace(source, target), target)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there; see `_when_closed`."""
    _when_closed(lambda: path.unlink(missing_ok=True), path)


def _when_closed(change: Callable[[], None], path: Path) -> None:
    """Make a change to a file which Windows forbids as long as any program has it open: wait for a second."""
    for seconds in WAITS:
        try:
            return change()
        except PermissionError:
            time.sleep(seconds)
    try:
        return change()
    except PermissionError as error:
        cure = "close the program that has it open, or check its permissions"
        raise UserError(f"{printable(path)} cannot be replaced or removed ({error.strerror}): {cure}") from None


def copy_or_link(source: Path, target: Path, folder: Path, digest: str, link: bool) -> bool:
    """Copy or hard-link a file into a folder, all or nothing; return False if the target is right already.

    `digest` is the SHA-256 of the content that was checked. Raises UserError if the content has changed since.
    """
    if not is_inside(target.parent, folder):
        raise UserError(f"{target.parent} is a link that leaves {folder}: remove the link")
    if (target.is_file() and target.samefile(source)) if link else is_file_of(target, digest):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}.tmp")  # not made from a name that may have 255 bytes already
    try:
        if link:
            try:
                os.link(os.path.realpath(source), temporary)
            except (OSError, AttributeError) as error:  # not every system has such links
                reason = getattr(error, "strerror", None) or "this system has no hard links"
                cure = "omit --link, or keep DL_data and DL_data_p on one file system"
                raise UserError(f"{source} cannot be hard-linked to {target} ({reason}): {cure}") from None
        else:
            shutil.copyfile(source, temporary)
            status = source.stat()
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        if sha256_of(temporary) != digest:
            raise UserError(f"{source} changed while it was being copied: run the same command again")
        replace_file(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def move_out(path: Path, folder: Path) -> None:
    """Move a file from FOLDER to FOLDER_pruned, to a name that is free.

    Raises UserError for a file below a link to another place, where it may belong to somebody else.
    """
    if not is_inside(path.parent, folder):
        raise UserError(f"{path.parent} is a link that leaves {folder}: remove the link")
    target = folder.with_name(f"{folder.name}_pruned") / path.relative_to(folder)
    numbered = (target.with_name(f"{target.stem}.{n}{target.suffix}") for n in count(1))
    free = next(path for path in chain([target], numbered) if not os.path.lexists(path))
    free.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, free)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for path in (*folder.glob(".writing-*.tmp"), *folder.glob("*/.writing-*.tmp")):
        with suppress(PermissionError):  # on Windows: somebody is writing it
            path.unlink(missing_ok=True)
