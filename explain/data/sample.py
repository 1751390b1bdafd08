"""The sample dataset: photos that come with installed packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torchvision

from explain.basics.errors import UserError
from explain.basics.files import list_files, write_file
from explain.data.lookup import imagenets_names


def sample_files() -> dict[str, bytes]:
    """Return the files of the sample dataset as {path in DL_data: content}."""
    folders = {}
    for name in ("foolbox", "matplotlib", "sklearn"):
        spec = importlib.util.find_spec(name)  # foolbox is slow to import
        if spec is None:
            raise UserError(f"package {name} is missing: pip install -r requirements.txt")
        folders[name] = Path(spec.origin).parent
    photos = sorted((folders["foolbox"] / "data").glob("imagenet_*_*.jpg"))  # imagenet_<number>_<class id>.jpg
    tests = [folders["sklearn"] / "datasets/images" / name for name in ("china.jpg", "flower.jpg")]
    tests.append(folders["matplotlib"] / "mpl-data/sample_data/grace_hopper.jpg")
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    return {
        **{f"validation_images/{path.name}": path.read_bytes() for path in photos},
        **{f"test_images/{path.name}": path.read_bytes() for path in tests},
        "val.txt": "".join(f"{path.name} {path.stem.split('_')[2]}\n" for path in photos).encode(),
        "synset_words.txt": "".join(f"{w} {n}\n" for w, n in zip(imagenets_names(), names, strict=True)).encode(),
    }


def write_sample(data: Path) -> None:
    """Write the sample dataset to the folder `data`; raise UserError if it holds any other file."""
    files = sample_files()
    for path in list_files(data) if data.is_dir() else ():
        name = path.relative_to(data).as_posix()
        if name not in files or path.read_bytes() != files[name]:
            cure = "omit --sample to split it, or choose another --dataset"
            raise UserError(f"{data} holds another dataset ({name!r} is not part of the sample): {cure}")
    for name, content in files.items():
        write_file(data / name, content)
