"""What makes a script a command: however it ends, it does so with one line, and it keeps its memory.

Scripts import this file before the libraries that take seconds, so that Ctrl-C has its line from then on. Imported by
anything else, it does nothing by itself.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from explain.errors import UserError, printable

STOPPED = "\nstopped; what is done is kept: start the same command again to go on\n"
GRACE = 1.0  # seconds until a process that was asked to end is ended
ASKING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a cluster or torchrun sends


def end_when_asked(grace: float) -> Callable[[], None]:
    """End the process `grace` seconds after Ctrl-C or SIGTERM, whatever it is doing, and say how to go on.

    Python's own handlers run between two of its instructions, and a backward pass is a single one.
    The byte that a signal writes wakes a thread, which needs to wait for nobody. With some grace,
    KeyboardInterrupt is raised meanwhile; without, nothing is. Returned is what says, once, how to go on.
    """
    lock, said = threading.Lock(), []

    def say() -> None:
        with lock:
            if not said:
                said.append(os.write(2, STOPPED.encode()))

    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while os.read(reading, 1)[0] not in ASKING:
            pass
        say()
        time.sleep(grace)
        os._exit(130)  # as by SIGKILL: what was half written is put right at the next start

    threading.Thread(target=watch, daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in ASKING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell has it for what runs in the background
            signal.signal(number, signal.default_int_handler if grace else lambda *_: None)
    return say


def keep_freed_memory() -> None:
    """Tell the C library to use freed memory again rather than hand it back to the system after each batch.

    A batch's activations are hundreds of megabytes. By default glibc returns each large tensor, and
    the next batch waits for the same pages to be handed out and zeroed anew: a third to a half of
    the time of a gradient (docs/benchmarks.md). Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
    mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own, which would end with it


def run(main: Callable[[], None]) -> None:
    """Run a script's main(): what a user can put right becomes one sentence and exit status 1."""
    say_how_to_go_on = end_when_asked(GRACE)
    keep_freed_memory()
    warnings.filterwarnings("ignore", module="PIL")  # read_image says itself what is wrong with a file
    sys.stdout.reconfigure(errors="backslashreplace")  # for a path that is no text
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = printable(Path(str(error.filename or "the system")))
        sys.exit(f"error: {where}: {error.strerror or error}; check the path and its disk")
    except KeyboardInterrupt:
        say_how_to_go_on()
        os._exit(130)  # the interpreter's own end waits for threads, and nothing could cut it short
    finally:
        for number in ASKING:  # while the interpreter ends, there is nothing left to stop
            signal.signal(number, signal.SIG_IGN)
        gc.freeze()  # or that end looks through all that the libraries have made: a second


ROOT = Path(__file__).resolve().parents[1]
# the program is one of the exercises, and not a test or a notebook
if Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve().parent == ROOT:
    end_when_asked(grace=0)
