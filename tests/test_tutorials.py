"""Networks as tutorials have them, from a folder of pictures to every figure, by options alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import ROOT, as_written, save_exported, saved
from PIL import Image
from torch import nn
from torchvision import transforms as T

from explain.basics.errors import UserError

NAMES = ["ant", "bee", "cat"]
NORMALIZE = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY = [T.Grayscale(), T.Resize(28), T.CenterCrop(28), T.ToTensor(), T.Normalize([0.1307], [0.3081])]
COLOUR = [T.Resize(32), T.CenterCrop(32), T.ToTensor(), NORMALIZE]
TIMM = [T.Resize(64), T.CenterCrop(64), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)]  # its pretrained_cfg's
TIMM_OPTIONS = ["--input-size", "64", "--resize", "64", "--interpolation", "bilinear"]
GREY_OPTIONS = ["--input-size", "28", "--resize", "28", "--mean", "0.1307", "--std", "0.3081"]
COLOUR_OPTIONS = ["--input-size", "32", "--resize", "32"]

# How each is trained and used in its tutorial: what makes the network, its transform, its --model, options, dropout
SHAPES = {
    "view on 28 x 28": ("LeNet", GREY, "net.py:LeNet", GREY_OPTIONS, True),
    "log_softmax": ("Mnist", GREY, "net.py:Mnist", GREY_OPTIONS, True),
    "Sequential with Flatten": ("flat", COLOUR, "net.py:flat", COLOUR_OPTIONS, False),
    "timm": ("test_resnet", TIMM, "timm/test_resnet", TIMM_OPTIONS, False),
    "two heads": ("TwoHeads", COLOUR, "net.py:TwoHeads", COLOUR_OPTIONS, True),
    "exported": ("LeNet", GREY, "lenet.pt2", GREY_OPTIONS, False),
}
EXERCISES = {
    "2b_evaluate": ["photos"],
    "2c_class_visualization": ["--steps", "4", "--judge", "none", "--classes", "bee", "--dataset", "none"],
    "2d_predict": ["photos/ant"],
    "2e_saliency": ["photos/ant", "--copies", "2", "--scores", "1"],
    "2f_guided_saliency": ["photos/ant", "--scores", "1"],
    "2g_faithfulness": ["photos/ant", "--steps", "4", "--copies", "2", "--randomise", "1", "--stages", "2"],
    "2h_mc_dropout": ["photos/ant", "--passes", "5"],
}


def save_photos(folder: Path) -> None:
    """Eight pictures of each class, of its own brightness and stripes."""
    for number, name in enumerate(NAMES):
        for i in range(8):
            random = np.random.default_rng(100 * number + i)
            pixels = random.normal(60 + 70 * number, 25, (40, 36, 3))
            pixels[:: number + 2] *= 0.4
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def train(network: nn.Module, data: torchvision.datasets.ImageFolder) -> None:
    """Teach a network something, so that it is right about some pictures."""
    optimizer = torch.optim.Adam(network.train().parameters(), 0.002)
    images, classes = zip(*data, strict=True)
    for _ in range(12):
        optimizer.zero_grad()
        output = network(torch.stack(images))
        logits = output[-1] if isinstance(output, tuple) else output
        nn.functional.cross_entropy(logits, torch.tensor(classes)).backward()
        optimizer.step()
    network.eval()


def build(kind: str) -> nn.Module:
    """Make a network as its tutorial does: of the file, or with its number of classes."""
    return timm.create_model(kind, num_classes=3) if kind == "test_resnet" else as_written(kind)


def run_exercises(run: Callable, exercises: Iterable[str], options: list[str], has_dropout: bool) -> dict[str, dict]:
    """Run exercises on a network with three classes; return the metrics of each."""
    found = {}
    for exercise in exercises:
        if exercise == "2h_mc_dropout" and not has_dropout:
            with pytest.raises(UserError, match="has no dropout"):
                run(exercise, *EXERCISES[exercise], *options)
            continue
        found[exercise] = run(exercise, *EXERCISES[exercise], *options)
        assert found[exercise]["model"]["classes"] == 3 and found[exercise]["model"]["names"] == "names.txt"
        assert found[exercise]["figures"]
    return found


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tutorials_network_through_all_exercises(shape, own, run):
    """The accuracy is the one of a plain loop; where there is no dropout, 2h says so in a sentence."""
    kind, transform, model, options, has_dropout = SHAPES[shape]
    save_photos(own / "photos")
    (own / "names.txt").write_text("\n".join(NAMES))
    network = build(kind)
    train(network, torchvision.datasets.ImageFolder("photos", T.Compose(transform)))
    Path("photos/cat/0.png").rename("photos/bee/cat.png")  # a label that no network gets right
    data = torchvision.datasets.ImageFolder("photos", T.Compose(transform))
    options = ["--model", model, *options, "--names", "names.txt", "--threads", "1", "--output", "output"]
    images, classes = torch.stack([image for image, _ in data]), torch.tensor(data.targets)
    if model.endswith(".pt2"):
        save_exported(own / model, network, images[:2])
    else:
        options += ["--weights", saved(own / "weights.pth", network.state_dict())]
    with torch.no_grad():
        output = network(images)
    logits = output[-1] if isinstance(output, tuple) else output
    right = int((logits.argmax(1) == classes).sum())
    assert 8 < right < len(data)

    found = run_exercises(run, EXERCISES, options, has_dropout)
    assert found["2b_evaluate"]["results"]["top1_correct"] == right
    loss = float(nn.functional.cross_entropy(logits, classes))
    assert found["2b_evaluate"]["results"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert "ok" in found["2f_guided_saliency"]["results"]["grad_cam_status"]


@pytest.mark.usefixtures("undrawn")
def test_the_documented_network_from_training_to_figures(tmp_path, run, monkeypatch):
    """The page's training code is run as written, then exercises on what it saved."""
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path / "photos")
    section = (ROOT / "docs/own_network.md").read_text()
    variables: dict = {}
    exec(section.split("```python")[1].split("```")[0], variables)
    mine = re.search('MINE="(.*)"', section)[1].split() + ["--threads", "1", "--output", "output"]
    # what the network itself says of its photos, through the preprocessing that it was trained with
    net, data = variables["net"].eval(), variables["data"]
    with torch.inference_mode():
        right = sum(int(net(image[None]).argmax()) == target for image, target in data)
    assert right > 12  # of 24, 8 by chance
    run("process_data", "--folders", "photos")
    found = run_exercises(run, ["2b_evaluate", "2f_guided_saliency", "2h_mc_dropout"], mine, has_dropout=False)
    for metrics in found.values():
        assert "prefix 'module.' removed from all names" in metrics["model"]["notes"]
    assert found["2b_evaluate"]["results"]["top1_correct"] == right
    assert run("2b_evaluate", *mine)["results"]["top1_correct"] == right  # process_data's dataset gives the same
