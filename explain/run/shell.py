"""The command-line shell around an exercise: however a run ends, it ends with one line.

Exercises import this file before the libraries that take seconds, so that Ctrl-C, --help and a wrong option are
answered at once. Imported by anything else, it does nothing by itself.
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
from pathlib import Path
from typing import Any

from explain.basics.errors import OthersAtWork, UserError, printable

ROOT = Path(__file__).resolve().parents[2]
STOPPED = "\nstopped; what is done is kept: run the same command again to resume\n"
STOPPED_EARLY = "\nstopped before anything was done\n"
progress_is_kept = False  # set by whoever writes what a later run resumes from
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a cluster or torchrun sends


def stop(*_: Any) -> None:
    """End the process at once and say how to resume: all that a row or a file is worth is on the disk already."""
    os.write(2, (STOPPED if progress_is_kept else STOPPED_EARLY).encode())
    os._exit(130)


def stop_on_signals() -> None:
    """Let Ctrl-C and SIGTERM call `stop`; what a shell has set to be ignored (a background job) stays ignored."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def answer_early(parse_options: Callable[[], Any]) -> None:
    """Answer --help and end at a wrong option, before the libraries that take seconds are imported."""
    try:
        parse_options()
    except UserError as error:
        sys.exit(f"error: {error}")


def keep_freed_memory() -> None:
    """Tell the C library to reuse freed memory rather than hand it back to the system after each batch.

    A batch's activations are hundreds of megabytes. By default glibc returns each large tensor, and
    the next batch waits for the same pages to be handed out and zeroed anew: a third to a half of
    the time of a gradient (docs/benchmarks.md). Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-8, 1)  # M_ARENA_MAX: one heap for all threads, since only the first can hold tensors of any size
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
    mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own, which would end with it


def run(main: Callable[[], None]) -> None:
    """Run an exercise's main(): what a user can put right becomes one sentence and exit status 1.

    main() has a thread of its own. Python calls a signal's handler in the main thread, between two of its
    instructions, and a backward pass is a single one: a main thread that only waits answers at once.
    """
    stop_on_signals()
    keep_freed_memory()
    gc.freeze()  # what the imports made stays: later searches for garbage leave it out
    gc.enable()
    warnings.filterwarnings("ignore", module="PIL")  # read_image says itself what is wrong with a file
    sys.stdout.reconfigure(errors="backslashreplace")  # for a path that is not text
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(main)
        while not work.done():
            wait([work], timeout=0.5)  # an endless wait would not hear Ctrl-C on Windows
    gc.freeze()  # the prompt comes back a second sooner: the interpreter's end does not search the libraries' objects
    try:
        work.result()
    except OthersAtWork as status:
        print(status)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        place = printable(Path(str(error.filename or "the system")))
        sys.exit(f"error: {place}: {error.strerror or error}; check the path and its disk")


# the program is one of the exercises, and not a test or a notebook
if Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent == ROOT:
    stop_on_signals()
    gc.disable()  # until `run`; searching a million new objects for garbage takes a quarter of the time of the imports
