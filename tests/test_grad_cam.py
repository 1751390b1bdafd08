"""Grad-CAM: by hand, and its layer found whatever the network is called."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import load_script
from torch import nn

import common

grad_cam_maps = load_script("2f_guided_saliency").grad_cam_maps


def features(model, images):
    return common.forward_pass(model, images, 0).features


def test_class_activation_maps_by_hand(images):
    """Mean over places, then a linear layer: Grad-CAM is the class activation map over the number of places."""
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 6, 2, stride=2), nn.Linear(6, 4)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    classes = torch.tensor([0, 1, 2, 3, 0])
    places = F.relu(conv(images)).detach()  # (5, 6, 4, 4)
    coarse = torch.einsum("nc,nchw->nhw", head.weight.detach()[classes] / 16, places).clamp(min=0)
    expected = F.interpolate(coarse[:, None], size=(8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(grad_cam_maps(net, images, classes), expected)
    assert expected.max() > 0 and features(net, images).shape == (5, 6, 4, 4)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (torchvision.models.squeezenet1_0, (1000, 13, 13)),  # its classifier is a convolution
        (torchvision.models.densenet121, (1024, 7, 7)),  # the last rectifier is a function
        (torchvision.models.swin_t, (768, 7, 7)),  # from channels last, by a permutation
        (lambda **_: timm.create_model("test_resnet"), (96, 7, 7)),
        (lambda **_: timm.create_model("test_vit", img_size=224), None),
        (lambda **_: timm.create_model("swin_tiny_patch4_window7_224"), None),  # channels last to the end
        (lambda **_: timm.create_model("mixer_s32_224"), None),  # tokens without attention
        (lambda **_: nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 3)), None),
    ],
)
def test_the_layer_is_found_by_running(build, shape):
    model = build(weights=None) if "torchvision" in build.__module__ else build()
    model = model.requires_grad_(False).eval()
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = features(model, images)
    assert (None if found is None else tuple(found.shape[1:])) == shape


class SecondHead(nn.Module):
    """Logits from pooled features, and a mask whose convolutions run after them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4))
        self.head, self.mask = nn.Linear(16, 5), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        pooled = self.features(x)  # (N, 4, 2, 2)
        return {"logits": self.head(pooled.flatten(1)), "mask": self.mask(pooled)}


def test_a_head_that_runs_later_does_not_take_the_layer(images):
    """It was the mask's layer, without a gradient; and the pooled one in place of the convolution before the mean."""
    net = SecondHead()
    places = F.relu(net.features[0](images)).detach()
    torch.testing.assert_close(features(net, images).detach(), places)
    # the logit is a weighted sum of means over 4 x 4 places: a gradient of weight / 16 at each place, meaned over all
    weights = net.head.weight.detach().view(5, 4, 4).mean(2) / 16  # (classes, channels)
    expected = (weights[:, :, None, None] * places).sum(1).clamp(min=0)
    torch.testing.assert_close(grad_cam_maps(net, images, torch.tensor([0, 1, 2, 3, 4])), expected)


@pytest.mark.parametrize(
    "after",
    [nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.ReLU(), nn.Hardtanh(-9, 9)],
    ids=lambda module: type(module).__name__,
)
def test_pooled_places_stay_pooled_whatever_follows(after, images):
    """A dropout after the mean made its coarse places the layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(4), after, nn.Flatten(), nn.Linear(16, 5)).eval()
    assert features(net, images).shape == (5, 4, 8, 8)
    deeper = nn.Sequential(net[0], net[1], nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(24, 5)).eval()
    assert features(deeper, images).shape == (5, 6, 2, 2)  # a convolution after it has places of its own


def test_a_mean_over_flattened_places_is_no_token_mixer(images):
    class Flattened(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.conv(x).flatten(2).mean(2))

    net = Flattened()
    assert features(net, images).shape == (5, 5, 6, 6) and grad_cam_maps(net, images, 0).shape == (5, 8, 8)


def test_wide_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wide = torch.rand(2, 3, 20, 33)
    assert features(net, wide).shape == (2, 4, 9, 16) and grad_cam_maps(net, wide, [0, 3]).shape == (2, 20, 33)


def test_a_pass_without_features_has_the_same_gradient(toy, images):
    with_features, without = (common.forward_pass(toy, images, 1, features=asked) for asked in (True, False))
    assert without.features is None and with_features.features is not None
    assert torch.equal(without.gradient(), with_features.gradient())
