"""Networks as tutorials have them, from a folder of pictures to every figure, by options alone."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import run_main
from PIL import Image
from torch import nn
from torchvision import transforms as T

from explain.basics.errors import UserError

NAMES = ["ant", "bee", "cat"]
NETWORKS = """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
            self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 3)

        def forward(self, x):
            x = F.relu(F.max_pool2d(self.conv1(x), 2))
            x = F.relu(F.max_pool2d(self.conv2(x), 2))
            x = x.view(-1, 320)
            x = F.dropout(F.relu(self.fc1(x)), training=self.training)
            return self.fc2(x)


    class Mnist(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
            self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
            self.fc1, self.fc2 = nn.Linear(2304, 32), nn.Linear(32, 3)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
            x = F.relu(self.fc1(torch.flatten(self.dropout1(x), 1)))
            return F.log_softmax(self.fc2(self.dropout2(x)), dim=1)


    def sequential():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1800, 3)
        )


    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.Dropout(0.2))
            self.embedding, self.classifier = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            embedding = self.embedding(self.features(x).mean((2, 3)))
            return embedding, self.classifier(embedding)
"""
NORMALIZE = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY = [T.Grayscale(), T.Resize(28), T.CenterCrop(28), T.ToTensor(), T.Normalize([0.1307], [0.3081])]
COLOUR = [T.Resize(32), T.CenterCrop(32), T.ToTensor(), NORMALIZE]
TIMM = [T.Resize(64), T.CenterCrop(64), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)]  # its pretrained_cfg's
TIMM_OPTIONS = ["--input-size", "64", "--resize", "64", "--interpolation", "bilinear"]
GREY_OPTIONS = ["--input-size", "28", "--resize", "28", "--mean", "0.1307", "--std", "0.3081"]
COLOUR_OPTIONS = ["--input-size", "32", "--resize", "32"]

# How each is trained and used in its tutorial: what makes the network, its transform, its --model, options, dropout
SHAPES = {
    "view on 28 x 28": ("LeNet", GREY, "nets.py:LeNet", GREY_OPTIONS, True),
    "log_softmax": ("Mnist", GREY, "nets.py:Mnist", GREY_OPTIONS, True),
    "Sequential with Flatten": ("sequential", COLOUR, "nets.py:sequential", COLOUR_OPTIONS, False),
    "resnet18 by fc": ("resnet18", COLOUR, "resnet18", COLOUR_OPTIONS, False),
    "timm": ("test_resnet", TIMM, "timm/test_resnet", TIMM_OPTIONS, False),
    "two heads": ("TwoHeads", COLOUR, "nets.py:TwoHeads", COLOUR_OPTIONS, True),
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
    optimizer = torch.optim.Adam(network.parameters(), 0.002)
    images, classes = zip(*data, strict=True)
    for _ in range(12):
        optimizer.zero_grad()
        output = network(torch.stack(images))
        logits = output[-1] if isinstance(output, tuple) else output
        nn.functional.cross_entropy(logits, torch.tensor(classes)).backward()
        optimizer.step()
    network.eval()


def build(kind: str, folder: Path) -> nn.Module:
    """Make a network as its tutorial does: of the file, by a new last layer, or with its number of classes."""
    torch.manual_seed(0)
    if kind == "resnet18":
        network = torchvision.models.resnet18()
        network.fc = nn.Linear(network.fc.in_features, 3)
        return network
    if kind == "test_resnet":
        return timm.create_model(kind, num_classes=3)
    variables: dict = {}
    exec((folder / "nets.py").read_text(), variables)
    return variables[kind]()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tutorials_network_through_all_exercises(shape, tmp_path, monkeypatch):
    """The accuracy is the one of a plain loop; where there is no dropout, 2h says so in a sentence."""
    kind, transform, model, options, has_dropout = SHAPES[shape]
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETWORKS))
    save_photos(tmp_path / "photos")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    network = build(kind, tmp_path)
    train(network, torchvision.datasets.ImageFolder(tmp_path / "photos", T.Compose(transform)))
    (tmp_path / "photos/cat/0.png").rename(tmp_path / "photos/bee/cat.png")  # a label that no network gets right
    data = torchvision.datasets.ImageFolder(tmp_path / "photos", T.Compose(transform))
    options = ["--model", model, *options, "--names", "names.txt", "--threads", "1", "--output", "output"]
    images, classes = torch.stack([image for image, _ in data]), torch.tensor(data.targets)
    if model.endswith(".pt2"):
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(network, (images[:2],), dynamic_shapes=shapes), tmp_path / model)
    else:
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        options += ["--weights", "weights.pth"]
    with torch.no_grad():
        output = network(images)
    logits = output[-1] if isinstance(output, tuple) else output
    right = int((logits.argmax(1) == classes).sum())
    assert 8 < right < len(data)

    for exercise, arguments in EXERCISES.items():
        if exercise == "2h_mc_dropout" and not has_dropout:
            with pytest.raises(UserError, match="has no dropout"):
                run_main(exercise, *arguments, *options, cwd=tmp_path, monkeypatch=monkeypatch)
            continue
        run_main(exercise, *arguments, *options, cwd=tmp_path, monkeypatch=monkeypatch)
        metrics = json.loads((tmp_path / "output" / exercise / "metrics.json").read_text())
        assert metrics["model"]["classes"] == 3 and metrics["model"]["names"] == "names.txt"
        assert metrics["figures"]
        if exercise == "2b_evaluate":
            assert metrics["results"]["top1_correct"] == right
            loss = float(nn.functional.cross_entropy(logits, classes))
            assert metrics["results"]["loss"] == pytest.approx(loss, rel=1e-4)
        if exercise == "2f_guided_saliency":
            assert "ok" in metrics["results"]["grad_cam_status"]
