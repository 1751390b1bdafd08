"""Devices other than the CPU: no method mixes the CPU's tensors with theirs.

Without a GPU the methods run on fake tensors, which have a shape and a device but no values, and raise where an
operation gets tensors of two devices. That the values are right too is tested where there is a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import load_script
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import common
from explain.methods.disturbances import disturbed
from explain.methods.faithfulness import faithfulness_scores

ascent = load_script("2c_class_visualization")
saliency, guided = load_script("2e_saliency"), load_script("2f_guided_saliency")
faithfulness = load_script("2g_faithfulness")
mc_dropout_logits = load_script("2h_mc_dropout").mc_dropout_logits

NETWORKS = ["efficientnet_lite0", "squeezenet1_0", "resnet18", "alexnet", "timm/test_resnet", "timm/test_vit"]
HAVE_DROPOUT = {"efficientnet_lite0", "squeezenet1_0", "alexnet"}
HAVE_NO_RECTIFIERS = {"timm/test_vit"}
# Not "cuda": without its driver, autograd cannot ask in which stream to go back.
FAKE = "meta"


class Answers(TorchDispatchMode):
    """Answer what depends on values, so that the methods run through.

    Floats are 1, whole numbers 0, all() and any() true, comparisons false, and nothing is found by nonzero().
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "nonzero":
            return args[0].new_empty((0, args[0].dim()), dtype=torch.long)
        if name in ("allclose", "equal"):
            return True
        if name in ("_local_scalar_dense", "item", "is_nonzero"):
            return args[0].answer if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 0
        output = function(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.dtype == torch.bool:
            output.answer = name in ("all", "any")
        return output


@contextmanager
def fake_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the block, tensors are fake."""
    torch.set_num_threads(1)  # 2h draws in so many, and fake tensors take no two at once
    tensor = torch.tensor
    # torch.tensor(device="meta") makes one that is not fake
    monkeypatch.setattr(torch, "tensor", lambda data, device=None, **kind: tensor(data, **kind).to(device or "cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True), Answers():
        yield


def moved(model: nn.Module) -> nn.Module:
    """Return the network on the fake device."""
    return model._apply(lambda values: torch.empty_like(values, device=FAKE))


def generators() -> list[torch.Generator]:
    return common.seeded_generators(0, range(2))


def archetypes(model: nn.Module, method: str, **settings: float) -> Tensor:
    return ascent.visualize_classes(model, [0, 1], method, generators(), **settings)


def everything(name: str, model: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor | Sequence[Tensor]]]:
    """Return all that depends on a network, of two images (2, 3, S, S): what -> function that computes it."""
    classes = [0, 1]
    found = {
        "2e": lambda: saliency.saliency_maps(model, images, classes),
        "2e smoothed": lambda: saliency.smoothed_saliency_maps(model, images, [0, None], generators(), 3),
        "2c plain": lambda: archetypes(model, "plain", steps=2),
        "2g": lambda: faithfulness.insertion_deletion(model, images, classes, images[:, 0], 2),
    }
    if name not in HAVE_NO_RECTIFIERS:
        found["2f"] = lambda: guided.guided_saliency_maps(model, images, classes)
        found["2f Grad-CAM"] = lambda: guided.guided_grad_cam_maps(model, images, classes)
    if name in HAVE_DROPOUT:
        found["2h"] = lambda: mc_dropout_logits(model, images, 3, generators())
        found["2h whole"] = lambda: mc_dropout_logits(model, images, 3, generators(), share=False)
    return found


def around_the_network(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """Return what is computed before and after the passes of any network."""
    # in three steps the images grow, and in the last two the statistics pull; the blur comes in the first two
    settings = {"steps": 3, "blur_every": 1, "contrast": 0.2}
    target = torch.tensor(1, device=FAKE)
    four, classes = torch.cat([images, images]), torch.tensor([0, 1, 2, 3], device=FAKE)
    return {
        "2c gaussian": lambda: archetypes(model, "gaussian", **settings),
        "2c natural": lambda: archetypes(model, "natural", **settings),
        "2e combined": lambda: saliency.combined_maps(model, images, [0, 1], generators(), 2),
        "2g baselines": lambda: faithfulness.baseline_maps(images, [0, 1], argparse.Namespace(seed=0)).values(),
        "2g pointing": lambda: faithfulness.grid_pointing(model, four, classes, saliency.saliency_maps),
        "2h disturbed": lambda: disturbed(images, generators()).values(),
        # numbers, which are read from the device
        "scores": lambda: (
            faithfulness_scores(model, images[0], target, {"plain": images[0, 0]}, generators()[0]) and []
        ),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_no_method_mixes_devices(name, monkeypatch):
    """All but 2g's randomisation and the measures of 2h, which NumPy computes: it takes no fake tensor."""
    model = common.load_model(name, "random")
    with fake_device(monkeypatch):
        model, images = moved(model), torch.rand(2, 3, model.input_size, model.input_size, device=FAKE)
        found = everything(name, model, images)
        if name == "timm/test_resnet":
            found |= around_the_network(model, images)
        for what, compute in found.items():
            results = compute()
            for result in [results] if isinstance(results, Tensor) else results:
                assert result.device.type == FAKE, what


# ------------------------------------------------------------------------------------------------
# With a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
# Largest difference from the CPU, as a fraction in the root mean square. Logits differ by rounding (float32 from
# float64: 1e-6 on the CPU). In a gradient a rectifier whose input is nearly 0 may open or close (0.006 there).
TOLERANCE = {"2e": 0.03, "2e smoothed": 0.03, "2f": 0.03, "2f Grad-CAM": 0.03, "2c plain": 0.03, "2g": 1e-3}
TOLERANCE |= {"2h": 1e-4, "2h whole": 1e-4}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("what", TOLERANCE)
@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet1_0"])
def test_a_gpu_computes_the_same(name, what):
    """As the CPU to rounding, and the same bytes twice, but for operations that are named."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    weights = None if name == "efficientnet_lite0" else "random"
    coarse = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    images, results = nn.functional.interpolate(coarse, (224, 224), mode="bilinear"), []
    for device in ("cpu", "cuda", "cuda"):
        model = common.load_model(name, weights, device)
        with common.record_nondeterminism(torch.device(device)) as operations:
            result = everything(name, model, images.to(device))[what]()
        result = result if isinstance(result, Tensor) else torch.stack(result)
        assert result.device.type == device
        results.append(result.cpu())
    expected, first, again = results
    assert (first - expected).norm() <= TOLERANCE[what] * expected.norm()
    assert torch.equal(first, again) or operations


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("what", TOLERANCE)
def test_memory_on_a_gpu_stays_flat(what):
    """After the first call, which may leave workspaces and what is kept with the network."""
    model = common.load_model("efficientnet_lite0", device="cuda")
    compute = everything("efficientnet_lite0", model, torch.rand(2, 3, 224, 224, device="cuda"))[what]
    allocated = []
    for _ in range(4):
        compute()
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1] == allocated[2] == allocated[3]
