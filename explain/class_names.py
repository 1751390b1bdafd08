"""The names of a network's classes: the user's own, the checkpoint's, the dataset's, or those it was published with."""

from __future__ import annotations

from pathlib import Path

from explain.datasets import read_dataset_names
from explain.errors import UserError
from explain.labels import clean, read_names
from explain.networks import Classifier


def name_classes(model: Classifier, file: str | None, dataset: Path | None) -> None:
    """Give a model the names of its classes: those in --names, the checkpoint's, the dataset's, else its own.

    Raises UserError where --names, or the dataset's list alone, has another number than the network has classes.
    """
    count = len(model.categories)
    found = None
    if file:
        found = read_names(Path(file)), file
        if len(found[0]) != count:
            raise UserError(f"{file} has {len(found[0])} names and {model.name} has {count} classes: give {count}")
    elif model.checkpoint_names and len(model.checkpoint_names) == count:
        found = [("", clean(name)) for name in model.checkpoint_names], "the checkpoint"
    elif dataset:
        found = read_dataset_names(dataset)
        if found and len(found[0]) != count:
            raise UserError(
                f"{found[1]} has {len(found[0])} names and {model.name} has {count} classes: give --names with "
                f"{count}, or another --dataset"
            )
    if model.checkpoint_names and len(model.checkpoint_names) != count:
        model.notes.append(f"the checkpoint has {len(model.checkpoint_names)} names for {count} classes: not used")
    if found:
        names, source = found
        model.categories, model.names_from = [name for _, name in names], str(source)
        if any(wnid for wnid, _ in names):
            model.wnids = [wnid for wnid, _ in names]
