"""The shell around an exercise: errors and signals end a run with one line.

Exercises import this file before the slow libraries, so that they answer Ctrl-C, --help and a wrong option at once.
Importing it elsewhere has no effect.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from explain.basics.errors import OthersAtWork, UserError, printable

ROOT = Path(__file__).resolve().parents[2]
STOPPED = "\nstopped; finished work is kept: run the same command again to resume\n"
STOPPED_EARLY = "\nstopped before anything was done\n"
progress_is_kept = False  # set to True once there are files from which a run can be resumed
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and the signal of clusters and torchrun


def stop(*_: Any) -> None:
    """End the process at once and print how to resume; rows and files are on the disk already."""
    os.write(2, (STOPPED if progress_is_kept else STOPPED_EARLY).encode())
    os._exit(130)


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM call `stop`; a signal that is ignored, as in a background job, stays ignored."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def answer_early(parse_options: Callable[[], Any]) -> None:
    """Answer --help, and stop at a wrong option, before the slow libraries are imported."""
    try:
        parse_options()
    except UserError as error:
        sys.exit(f"error: {error}")


def keep_freed_memory() -> None:
    """Make the C library reuse freed memory instead of returning it to the system after each batch.

    A batch's activations take hundreds of megabytes. By default glibc returns each large tensor, and the next batch
    waits until the same pages are allocated and zeroed again: a third to a half of the time of a gradient
    (docs/benchmarks.md). Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, since only the first can hold tensors of any size
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
    mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own, which would be unmapped when it is freed


def return_freed_memory() -> None:
    """Return to the system the freed memory that the C library keeps after `keep_freed_memory`."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def run(main: Callable[[], None]) -> None:
    """Run an exercise's main(); an error that a user can put right becomes one sentence and exit status 1.

    main() runs in a second thread. Python calls signal handlers in the main thread, between two of its instructions,
    and a backward pass is a single instruction: a main thread that only waits answers at once.
    """
    stop_on_signals()
    keep_freed_memory()
    gc.freeze()  # later searches for garbage skip the objects made by the imports
    gc.enable()
    warnings.filterwarnings("ignore", module="PIL")  # read_image reports what is wrong with a file
    sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not valid text
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(main)
        wait([work])
    gc.freeze()  # the interpreter's exit skips the libraries' objects, too, which saves a second
    try:
        work.result()
    except OthersAtWork as status:
        print(status)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        place = printable(Path(str(error.filename or "the system")))
        sys.exit(f"error: {place}: {error.strerror or error}; check the path and its disk")


# if the program is an exercise, not a test or a notebook
if Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent == ROOT:
    stop_on_signals()
    gc.disable()  # until `run`: searching the imports' million objects for garbage takes a quarter of their time
