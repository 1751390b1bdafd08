"""What a run takes from the machine that it is on: its threads, its device, how many batches are read ahead."""

from __future__ import annotations

import argparse
import os

import joblib
import torch

from explain.basics.errors import UserError, one_line


def resolve_options(options: argparse.Namespace) -> None:
    """Replace what the options leave to the machine (--threads, --device auto, --prefetch) by its values, once for all.

    Raises UserError for a device that cannot be used.
    """
    # two threads on one core only wait for each other
    options.threads = options.threads or joblib.cpu_count(only_physical_cores=True)
    torch.set_num_threads(options.threads)
    if options.device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        options.device = accelerator.type if accelerator else "cpu"
    if getattr(options, "prefetch", 0) is None:
        options.prefetch = 0 if options.device == "cpu" else 2
    # deterministic matrix products on a GPU; read once, when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        if options.device == "cuda" and os.environ.get("LOCAL_RANK"):  # each of torchrun's processes has its own GPU
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(f"device {options.device!r} cannot be used ({one_line(error)}): try --device cpu") from None
