"""The user's own network: checkpoints as training loops save them, Python files, preprocessing, names of classes."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import NETWORKS, save_photo, saved, table_of
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torchvision.transforms.functional import resize, to_tensor

import common
from explain.basics.errors import UserError
from explain.networks import checkpoints
from explain.networks import classifier as networks
from explain.networks.checkpoints import other_sizes, read_state_dict, split_key

NET = "timm/test_resnet"  # 0.5 million parameters


@pytest.fixture(scope="module")
def state():
    """The state dict of NET with ten classes."""
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=10).state_dict()


# ------------------------------------------------------------------------------------------------
# Checkpoints


# What training scripts put beside the weights
BESIDE = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1")),
    "windows": pathlib.PureWindowsPath("C:/runs"),
    "numbers": [np.float64(0.5), np.int64(3), np.bool_(True)],
}


@pytest.mark.parametrize("key", [*checkpoints.KEYS, "teacher"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.my."])
def test_checkpoints_as_training_loops_save_them(tmp_path, state, key, prefix):
    """Loading needs no architecture that takes time: a toy network's names, in each form and in half precision."""
    toy = {name: state[name].half() for name in list(state)[:4]} | {"n": torch.tensor(3)}
    content = {"epoch": 3, key: {prefix + n: t for n, t in toy.items()}, "optimizer": {"state": {0: {"step": 1}}}}
    read = read_state_dict(Path(saved(tmp_path / "a.pth", {**content, **BESIDE})))
    beside = ", ".join(["epoch", "optimizer", *BESIDE])
    assert read.notes == (f"weights under {key!r}; not used: {beside}", "4 tensors converted from float16 to float32")
    found, notes, left = checkpoints.fit_names(read.state, toy)
    assert notes == ((f"prefix {prefix!r} removed from all names",) if prefix else ()) and left == ()
    assert list(found) == list(toy)
    for name, tensor in toy.items():
        assert torch.equal(found[name], tensor) and found[name].dtype in (torch.float32, torch.int64)


class Tiny(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 1), nn.Linear(width, 2)


def under(prefix: str, module: nn.Module) -> dict:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def test_what_lies_beside_the_weights_is_left_out_and_listed():
    """One entry outside the common prefix, and nothing fitted."""
    net, other = Tiny(), Tiny()
    swa = torch.optim.swa_utils.AveragedModel(net).state_dict()
    lightning = {"criterion.weight": torch.ones(2), **under("model.", net), "accuracy.tp": torch.zeros(2)}
    average = {**under("ema.", other), **under("model.", net)}
    prefix, several = "prefix 'model.' removed from 4 names", "all names are found under 'ema.' too"
    files = {  # state dict -> notes, sentence on the rest
        "swa": (swa, ["prefix 'module.' removed from 4 names"], "1 item of the weights left out: n_averaged (1)"),
        "lightning": (lightning, [prefix], "2 items of the weights left out: criterion (1), accuracy (1)"),
        "bare": ({**under("", net), "criterion.weight": torch.ones(2), "epoch": 3}, [], "criterion (1), epoch (1)"),
        "average": (average, [prefix, several], "4 items of the weights left out: ema (4)"),
    }
    for name, (state, notes, left) in files.items():
        found, said, (rest,) = checkpoints.fit_names(state, net.state_dict())
        assert list(said) == notes and rest.endswith(left), name
        assert found.keys() == net.state_dict().keys() and torch.equal(found["fc.weight"], net.fc.weight), name


def test_of_several_prefixes_the_shapes_decide_first():
    """A student beside its larger teacher, both with the same names; then the shorter prefix, then the alphabet."""
    student, teacher = Tiny(2), Tiny(5)
    both = {**under("student.", student), **under("teacher.", teacher)}
    for net, taken in ((student, "student."), (teacher, "teacher.")):
        assert checkpoints.fit_names(both, net.state_dict())[1][0] == f"prefix {taken!r} removed from 4 names"
    own = {"m.a.weight": torch.ones(1), "m.a.bias": torch.ones(1)}
    assert checkpoints.fit_names(own, own) == (own, (), ())  # a prefix of the network's own
    twins = {**under("b.", student), **under("a.", student), **under("an.", student)}
    said = checkpoints.fit_names(twins, student.state_dict())[1]
    assert said == ("prefix 'a.' removed from 4 names", "all names are found under 'b.', 'an.' too")


def test_a_larger_network_does_not_pass_for_a_smaller_one(tmp_path):
    """resnet34 has all of resnet18's names, with the same shapes."""
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="0 tensors missing, 96 extra, .*such as layer1.2.conv1.weight"):
        common.load_model("resnet18", str(tmp_path / "a.pth"))
    three = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)).state_dict()
    two = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UserError, match="2 extra, .* such as 2.weight"):
        checkpoints.load_state(two, checkpoints.fit_names(three, two.state_dict())[0], tmp_path, "two")


def test_what_wrappers_put_into_the_middle_of_names():
    net = Tiny()
    state = {
        f"_fsdp_wrapped_module.{name.replace('conv.', 'conv._checkpoint_wrapped_module._orig_mod.')}": tensor
        for name, tensor in net.state_dict().items()
    }
    found, notes, left = checkpoints.fit_names({f"net.{k}": v for k, v in state.items()}, net.state_dict())
    assert found.keys() == net.state_dict().keys() and left == ()
    wrappers = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
    assert notes == (*(f"{w!r} removed from names" for w in wrappers), "prefix 'net.' removed from all names")


def test_pruned_weights_are_multiplied_by_their_masks():
    net = Tiny()
    net.fc.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    own = Tiny().state_dict()
    prune.l1_unstructured(net.fc, "weight", amount=2)
    found, notes, left = checkpoints.fit_names(under("module.", net), own)
    assert found["fc.weight"].tolist() == [[0, 0], [3, 4]] and found.keys() == own.keys() and left == ()
    assert notes == ("1 pruned weight multiplied by the mask", "prefix 'module.' removed from all names")
    assert checkpoints.fit_names(net.state_dict(), net.state_dict())[1] == ()  # a network that is pruned itself
    claims = {**net.state_dict(), "fc.weight_mask": torch.ones(1).expand(1 << 42)}
    assert checkpoints.fit_names(claims, own)[0].keys() == claims.keys()  # for load_state to refuse


class Keeps(nn.Module):
    """A module whose state dict has an entry that is no tensor."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.fc, self.kept = nn.Linear(3, 2), {"scale": torch.tensor(scale), "unit": "m"}

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = {"scale": state["scale"] * 1, "unit": state["unit"]}

    def forward(self, x):
        return self.fc(x.mean((2, 3))) * self.kept["scale"]


def test_entries_that_are_no_tensors_are_loaded_where_the_network_has_them(tmp_path):
    read = read_state_dict(Path(saved(tmp_path / "a.pth", {"model": under("module.", Keeps(5.0)), "epoch": 3})))
    assert read.notes == ("weights under 'model'; not used: epoch",)
    net = Keeps()
    found, _, left = checkpoints.fit_names(read.state, net.state_dict())
    checkpoints.load_state(net, found, tmp_path, "net")
    assert net.kept["scale"] == 5 and left == ()
    assert other_sizes(net, found, 2) == {}
    digests = [networks._digest(net)]
    net.kept["scale"] += 1
    digests.append(networks._digest(net))
    assert digests[0] != digests[1] and digests[0].endswith(" (of the tensors)")
    net.kept["object"] = object()
    assert networks._digest(net).endswith(" (of the tensors)")
    for wrong, says in ((3, "does not fit net .'int' object is not subscriptable"), (None, "1 tensors missing")):
        state = {**net.state_dict(), "_extra_state": wrong}
        state = state if wrong else {name: value for name, value in state.items() if value is not None}
        with pytest.raises(UserError, match=says):
            checkpoints.load_state(net, state, tmp_path, "net")


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated, but its files are around
def test_quantised_layers_are_loaded(tmp_path):
    """Their packed weights are a tuple."""
    quantise = torch.ao.quantization.quantize_dynamic
    torch.manual_seed(0)
    nets = [quantise(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), {nn.Linear}, dtype=torch.qint8) for _ in range(2)]
    read = read_state_dict(Path(saved(tmp_path / "a.pth", nets[0].state_dict())))
    images = torch.rand(2, 3, 2, 2)
    expected = nets[0](images)
    assert not torch.equal(nets[1](images), expected)
    found, _, left = checkpoints.fit_names(read.state, nets[1].state_dict())
    checkpoints.load_state(nets[1], found, tmp_path, "net")
    assert torch.equal(nets[1](images), expected) and left == ()
    assert networks._digest(nets[1]) == networks._digest(nets[0])


def test_a_checkpoint_through_data_parallel_and_another_number_of_classes(tmp_path, state):
    content = {"epoch": 3, "model": {f"module.{k}": v for k, v in state.items()}, "classes": list("abcdefghij")}
    model = common.load_model(NET, saved(tmp_path / "a.pth", content))
    assert model.categories == [f"class {i}" for i in range(10)] and model.checkpoint_names == list("abcdefghij")
    assert torch.equal(model.network.fc.weight, state["fc.weight"])
    assert model.notes == ["weights under 'model'; not used: epoch, classes", "prefix 'module.' removed from all names"]
    assert "is assumed to be timm's pretrained_cfg" in model.warnings[0]


def test_one_of_several_state_dicts_is_chosen_by_its_key(tmp_path, state):
    other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    path = saved(tmp_path / "a.pth", {"model": state, "model_ema": other})
    assert read_state_dict(Path(path)).notes == ("weights under 'model'; not used: model_ema",)
    model = common.load_model(NET, f"{path}:model_ema")
    assert torch.equal(model.network.fc.bias, other["fc.bias"]) and model.weights == "a.pth:model_ema"
    with pytest.raises(UserError, match="no state dict under 'best': choose from model, model_ema"):
        common.load_model(NET, f"{path}:best")
    saved(tmp_path / "b.pth", {"student": state, "teacher": other})
    with pytest.raises(UserError, match="several state dicts: give --weights .*b.pth:KEY, with KEY one of student"):
        read_state_dict(tmp_path / "b.pth")
    saved(tmp_path / "c:model", state)  # a file whose own name has a colon
    assert split_key(str(tmp_path / "c:model")) == (tmp_path / "c:model", None)


def test_any_other_type_is_refused_by_its_name(tmp_path):
    path = Path(saved(tmp_path / "a.pth", {"state_dict": {"a": torch.ones(2)}, "model": nn.Linear(2, 2)}))
    kind = "torch.nn.modules.linear.Linear"
    with pytest.raises(UserError, match=f"holds a {kind}, which only code can make.*: save model.state_dict") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_shards_of_safetensors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    read = read_state_dict(index)
    assert list(read.state) == ["a", "b"]
    save_file({"b": torch.ones(2)}, tmp_path / "2.safetensors")
    assert read_state_dict(index).sha256 != read.sha256
    for name in ("../1.safetensors", "3.safetensors", "1.pth"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UserError, match="not a .safetensors file beside it"):
            read_state_dict(index)
    index.write_text("{")
    with pytest.raises(UserError, match="cannot be loaded as data"):
        read_state_dict(index)


TORCHVISION = torchvision.models.list_models(module=torchvision.models)


ALL = [f"timm/{name}" for name in timm.list_models()]
ALL += [name for name in TORCHVISION if not name.startswith("regnet_")]  # these compute their widths with tensors


SOME = ["resnet18", "squeezenet1_1", "vit_b_16", "densenet121", "googlenet"]


@pytest.mark.filterwarnings("ignore")  # of timm about its own older names
@pytest.mark.parametrize("names", [SOME, pytest.param(ALL, marks=pytest.mark.long)], ids=["some", "all"])
def test_classes_and_channels_are_read_from_the_shapes(names):
    """But for encoders, which have no classifier, and two networks whose input is colours' frequencies."""
    wrong = []
    for name in names:
        make = timm.create_model if name.startswith("timm/") else torchvision.models.get_model
        make = partial(make, name.removeprefix("timm/"))
        settings = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("meta"):
            network, other = (make(num_classes=classes, **settings) for classes in (1000, 7))
            if name.startswith("timm/"):
                with suppress(TypeError, AssertionError):
                    other = make(num_classes=7, in_chans=1)
            else:
                other = networks._of_one_channel(other)
        if other_sizes(network, other.state_dict(), 1000) != {"num_classes": 7, "in_chans": 1}:
            wrong.append(name)
    assert all(name.endswith("_enc") or name.startswith("timm/csatv2") for name in wrong), wrong


@pytest.mark.parametrize("name", [NET, "squeezenet1_1"])
def test_a_network_of_one_channel_reads_grey_pictures(tmp_path, name):
    if name == NET:
        network = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    else:
        network = networks._of_one_channel(torchvision.models.get_model(name, num_classes=3))
    model = common.load_model(name, saved(tmp_path / "a.pth", network.state_dict()))
    pixels = model.preprocess(common.read_image(save_photo(tmp_path / "a.png")))
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    with torch.inference_mode():
        expected = network.eval()((pixels[None, :1] - model.mean) / model.std)
        torch.testing.assert_close(model(pixels[None]), expected, rtol=1e-4, atol=1e-5)
    assert model.mean.shape == (1, 1, 1) and len(model.categories) == 3


# ------------------------------------------------------------------------------------------------
# Networks in the user's own file, and their preprocessing


def test_a_network_of_the_users_own_file(own):
    model = common.load_model("net.py:three", input_size=32)
    images = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model.network((images - model.mean) / model.std))
    assert model.categories == [f"class {i}" for i in range(4)] and model.weights == "those of net.py:three, untrained"
    untrained, assumed = model.warnings
    assert "assumed to be ImageNet's usual, except for input_size: resize 37, mean (0.485, 0.456, 0.406)" in assumed
    assert "4 of 4 parameters (such as conv.weight) differ" in untrained and "give --weights FILE" in untrained
    assert common.load_model("net.py:named", input_size=32).categories == ["a", "b", "c", "d"]
    assert common.load_model("net.py:Net", input_size=32).channels == 3
    assert common.load_model("net.py:grey", input_size=32).channels == 1
    assert len(common.load_model("net.py:one", input_size=32).categories) == 2
    half = common.load_model("net.py:half", input_size=32)
    assert half.network.fc.weight.dtype == torch.float32
    assert half.notes == ["weights converted from float16 to float32"]


TRAINED = """
from net import *
calls, MADE = [], Net()

def seeded():
    torch.manual_seed(3)
    return Net()
def loads():
    net = Net(); net.load_state_dict(torch.load("w.pth")); return net
def new_head():
    net = loads(); net.fc = nn.Linear(6, 4); return net
def lazy(): return nn.Sequential(nn.LazyConv2d(4, 3, stride=16), nn.Flatten(), nn.LazyLinear(4))
def made(): return MADE
def once():
    calls.append(1)
    if len(calls) > 1:
        raise RuntimeError("busy")
    return Net()
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Net", "4 of 4 parameters .such as conv.weight. differ when it is called again, so they are untrained: give"),
        ("made", "4 of 4 parameters .such as conv.weight. differ"),  # when the file is imported
        ("new_head", "2 of 4 parameters .such as fc.weight. differ"),
        ("lazy", "4 of 4 parameters .such as 0.weight. differ"),
        ("once", "whether its weights are trained is unknown, since a second call fails: .*RuntimeError: busy"),
        ("seeded", None),
        ("loads", None),
    ],
)
def test_a_forgotten_weights_file_is_noticed(own, name, says):
    """The maps of random numbers were titled as those of a trained network."""
    (own / "trained.py").write_text(TRAINED)
    saved(own / "w.pth", common.load_model("net.py:Net", input_size=32).network.state_dict())
    state = torch.get_rng_state()
    model = common.load_model(f"trained.py:{name}", input_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    untrained = bool(says) and name != "once"
    assert model.label == f"trained.py:{name}" + (", untrained" if untrained else "")
    assert model.weights == f"those of trained.py:{name}" + (", untrained" if untrained else "")
    said = [warning for warning in model.warnings if "assumed" not in warning]
    assert len(said) == bool(says) and all(re.match(f"trained.py:{name}: {says}", sentence) for sentence in said)
    if name == "Net":  # with weights nothing is called twice
        assert common.load_model("trained.py:Net", "w.pth", input_size=32).label == "trained.py:Net, w.pth"


@pytest.mark.usefixtures("photos", "undrawn")
def test_untrained_weights_are_said_in_figures_and_metrics(run):
    metrics = run("2d_predict", *FAST, "photos")
    assert metrics["captions"]["predictions.png"][0].startswith("net.py:three, untrained: ")
    assert metrics["model"]["weights"] == "those of net.py:three, untrained"
    assert any("so they are untrained" in note for note in metrics["model"]["notes"])


def test_its_weights_come_from_a_checkpoint(own):
    torch.manual_seed(5)
    network = common.load_model("net.py:Net", input_size=32).network
    state = {f"module.{k}": torch.full_like(v, 0.25) for k, v in network.state_dict().items()}
    model = common.load_model("net.py:three", saved(own / "w.pth", {"net": state}), input_size=32)
    assert model.network.fc.weight.eq(0.25).all() and model.weights == "w.pth"
    code = model.sha256
    (own / "net.py").write_text(NETWORKS + "\n# another\n")
    assert common.load_model("net.py:three", str(own / "w.pth"), input_size=32).sha256 != code


def test_lazy_modules_get_their_sizes_from_the_weights_or_the_first_pass(own):
    lazy = "nn.Sequential(nn.LazyConv2d(5, 3, stride=16), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4))"
    (own / "lazy.py").write_text(f"from torch import nn\ndef make(): return {lazy}\n")
    assert common.load_model("lazy.py:make", input_size=32).network[3].in_features == 20
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 4))
    state = {f"module.{k}": torch.full_like(v, 0.25) for k, v in plain.state_dict().items()}
    network = common.load_model("lazy.py:make", saved(own / "w.pth", state), input_size=32).network
    assert network[3].in_features == 20 and network[3].weight.eq(0.25).all()
    wrong = {**state, "module.3.bias": torch.zeros(5), "module.3.weight": torch.zeros(5, 20, dtype=torch.long)}
    with pytest.raises(UserError, match="0 tensors missing, 0 extra, 1 of another shape or kind, such as 3.weight"):
        common.load_model("lazy.py:make", saved(own / "w.pth", wrong), input_size=32)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net.py", "names no function: give FILE.py:FUNCTION"),
        ("none.py:three", "none.py is not a file"),
        ("net.py:four", "no function 'four': choose from Net, three, grey"),
        ("net.py:number", "no function 'number'"),
        ("net.py:fails", "cannot be called .ZeroDivisionError: division by zero, line \\d+"),
        ("net.py:needs", "cannot be called .TypeError: .*without arguments"),
        ("net.py:leaves", "cannot be called .SystemExit"),
        ("net.py:nothing", "returns a int: it must return a torch.nn.Module"),
        ("net.py:square", r"cannot run on images \(2, 3, 224, 224\) \(RuntimeError: .*: give its --input-size"),
        ("bad.py:three", "bad.py cannot be imported .SyntaxError.*line 1"),
        ("imports.py:three", "imports.py cannot be imported .ModuleNotFoundError: No module named 'nowhere', line 2"),
    ],
)
def test_wrong_files_are_one_sentence(own, name, says):
    (own / "bad.py").write_text("def three(:\n")
    (own / "imports.py").write_text("import torch\nimport nowhere\n")
    with pytest.raises(UserError, match=says) as caught:
        common.load_model(name)
    assert "\n" not in str(caught.value)


def test_preprocessing_by_options(own):
    image = Image.fromarray(np.arange(48 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 60, 3))
    given = {"input_size": 16, "resize": 24, "mean": [0.5], "std": [0.25], "interpolation": "bicubic"}
    model = common.load_model("net.py:three", **given)
    assert not any("assumed" in warning for warning in model.warnings)
    expected = to_tensor(resize(image, 24, torchvision.transforms.InterpolationMode.BICUBIC))[:, 4:20, 7:23]
    torch.testing.assert_close(model.preprocess(image), expected)
    assert model.mean.flatten().tolist() == [0.5] and model.std.flatten().tolist() == [0.25]
    source = "ImageNet's usual, except for input_size, interpolation, mean, resize, std"
    assert model.preprocessing == {**given, "squash": False, "source": source}
    assert common.load_model(NET, "random", input_size=80).preprocess(image).shape == (3, 80, 80)
    with pytest.raises(UserError, match="random is for networks of a library: omit it"):
        common.load_model("net.py:three", "random")
    with pytest.raises(UserError, match="--resize 10 is less than the input size of 16"):
        common.load_model("net.py:three", input_size=16, resize=10)
    with pytest.raises(UserError, match="--mean takes one value for all channels, or three: not 2"):
        common.load_model("net.py:three", mean=[1, 2])


def test_preprocessing_that_the_network_carries(own):
    (own / "carries.py").write_text(
        "import timm, torchvision\n"
        "def timms(): return timm.create_model('test_resnet')\n"
        "def torchvisions():\n"
        "    net = timms(); del net.pretrained_cfg\n"
        "    net.weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2\n"
        "    return net\n"
    )
    config = timm.get_pretrained_cfg("test_resnet")
    model = common.load_model("carries.py:timms")
    assert model.input_size == config.input_size[-1] and model.preprocessing["mean"] == config.mean
    model = common.load_model("carries.py:torchvisions")
    assert (model.preprocessing["resize"], model.preprocessing["input_size"]) == (232, 224)
    assert not any("assumed" in warning for warning in model.warnings)


HALVES = Image.fromarray(np.repeat(np.uint8([0, 255]), 16)[None, :, None].repeat(16, 0).repeat(3, 2))  # 32 x 16


def test_squash_resizes_both_sides(own):
    """By hand: an image of 2:1, black and white, keeps both halves; at a larger --resize a part is cropped."""
    given = {"mean": [0.5], "std": [0.5], "interpolation": "nearest"}
    model = common.load_model("net.py:three", input_size=8, squash=True, **given)
    assert model.preprocess(HALVES)[0].tolist() == [[0] * 4 + [1] * 4] * 8
    assert model.cropped((32, 16)) == 0 and model.view == "squashed to a square, as the network sees it"
    model = common.load_model("net.py:three", input_size=8, resize=16, squash=True, **given)
    assert model.preprocess(HALVES)[0].tolist() == [[0] * 4 + [1] * 4] * 8
    assert model.cropped((32, 16)) == 0.75  # 8 x 8 of 16 x 16 pixels
    model = common.load_model("net.py:three", input_size=8, resize=16, **given)
    assert model.cropped((32, 16)) == 0.875  # 8 x 8 of 32 x 16
    assert model.cropped((16, 64)) == 1 - 8 * 8 / (16 * 64)


VIT = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
CROPPED = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
HUB = [  # what differs in preprocessor_config.json; input size, resize, squash
    ({"size": {"height": 32, "width": 32}}, 32, 32, True),
    ({"size": 32}, 32, 32, True),  # older
    ({**CROPPED, "size": {"shortest_edge": 40}}, 32, 40, False),
    ({**CROPPED, "size": {"height": 40, "width": 40}}, 32, 40, True),
    ({"size": {"shortest_edge": 32}, "crop_pct": 0.8}, 32, 40, False),  # ConvNeXt
    ({"size": 384, "crop_pct": 0.8}, 384, 384, True),
]


@pytest.mark.parametrize(("config", "input_size", "resize", "squash"), HUB)
def test_preprocessing_that_lies_beside_the_weights(own, config, input_size, resize, squash):
    """As the Hugging Face hub has it: a ViT there is trained on squashed images."""
    (own / "hub").mkdir()
    (own / "hub/preprocessor_config.json").write_text(json.dumps({**VIT, **config}))
    path = saved(own / "hub/w.pth", common.load_model("net.py:three", input_size=32).network.state_dict())
    model = common.load_model("net.py:three", path)
    found = model.preprocessing
    assert (found["input_size"], found["resize"], found["squash"]) == (input_size, resize, squash)
    assert (found["mean"], found["std"], found["interpolation"]) == ([0.5] * 3, [0.25] * 3, "bilinear")
    (note,) = model.warnings  # nothing is left to be assumed
    assert note.startswith("preprocessing from preprocessor_config.json beside the weights: ")
    assert f"input_size {input_size}" in note and "not understood" not in note
    given = common.load_model("net.py:three", path, input_size=16, mean=[0.25])
    assert given.preprocessing["resize"] == 16 * resize // input_size and given.preprocessing["mean"] == [0.25]


def test_what_is_not_understood_beside_the_weights_is_said(own):
    path = saved(own / "w.pth", common.load_model("net.py:three", input_size=32).network.state_dict())
    unknown = {**VIT, "size": {"longest_edge": 32}, "resample": 1, "rescale_factor": 1, "image_std": [0, 1, 1]}
    (own / "preprocessor_config.json").write_text(json.dumps(unknown))
    model = common.load_model("net.py:three", path)
    assert (model.preprocessing["input_size"], model.preprocessing["squash"]) == (224, False)
    says = "not understood: size {'longest_edge': 32}, resample 1, rescale_factor 1, image_std [0, 1, 1]"
    assert says in model.warnings[-1]
    for damaged in ("{", "[]", '{"image_mean": 3}'):
        (own / "preprocessor_config.json").write_text(damaged)
        with pytest.raises(UserError, match="preprocessor_config.json cannot be read .*: correct or remove it"):
            common.load_model("net.py:three", path)


def test_timm_networks_are_tested_as_published(tmp_path):
    """This one was trained with 224 px and a crop of 0.875, and is published with 256 px and 0.95."""
    name = "mobilenetv4_conv_small_050"
    model = common.load_model(f"timm/{name}", "random")
    assert (model.input_size, model.preprocessing["resize"]) == (256, 269)  # 256 / 0.95, rounded down
    assert model.preprocess(HALVES).shape == (3, 256, 256)
    (note,) = model.warnings
    assert "256 px, crop 0.95; trained with 224 px, crop 0.875 (--input-size 224)" in note
    trained = common.load_model(f"timm/{name}", "random", input_size=224)
    assert trained.preprocessing["resize"] == 256 and trained.warnings == []
    own = timm.create_model(name, num_classes=7)  # somebody else's training
    model = common.load_model(f"timm/{name}", saved(tmp_path / "a.pth", own.state_dict()))
    assert (model.input_size, model.preprocessing["resize"]) == (224, 256)


def test_timms_squash_survives_another_size(monkeypatch):
    network = timm.create_model("test_resnet")
    network.pretrained_cfg = {**network.pretrained_cfg, "crop_mode": "squash", "crop_pct": 1.0}
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
    for options, size in (({}, 160), ({"input_size": 80}, 80)):
        model = common.load_model(NET, "random", **options)
        assert model.preprocessing["squash"] and model.preprocessing["resize"] == size
        assert "images are squashed to a square, as timm's pretrained_cfg says" in model.warnings
        row = model.preprocess(HALVES)[0, 0]
        assert row.shape == (size,) and row[: size // 4].max() < 0.1 and row[-size // 4 :].min() > 0.9


# ------------------------------------------------------------------------------------------------
# The names of the classes


@pytest.fixture
def photos(own):
    """Two photos, and a dataset with one test image and names for four classes."""
    for i in range(2):
        save_photo(own / f"photos/{i}.png", i, (40, 36))
    save_photo(own / "dataset/DL_data/test_images/a.png", 3, (40, 36))
    (own / "dataset/DL_data/synset_words.txt").write_text("".join(f"n0000000{i} {n}\n" for i, n in enumerate(STRANGE)))
    return own


STRANGE = ["绿蛇 🐍", "عنكبوت", r"$5 and $6 \frac{", "<b>größte</b> _^"]
FAST = ["--model", "net.py:three", "--input-size", "32", "--threads", "1", "--output", "output"]


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # fonts are another matter
@pytest.mark.usefixtures("undrawn")
def test_the_order_in_which_names_are_looked_for(photos, run):
    """--names, the checkpoint, the dataset, the network's own, numbers."""

    def names(*arguments):
        source = run("2d_predict", *FAST, *arguments)["model"]["names"]
        return {row["name"] for row in table_of(photos / "output/2d_predict/predictions.csv")}, source

    assert names() == ({*STRANGE}, "dataset/DL_data/synset_words.txt")
    state = common.load_model("net.py:Net", input_size=32).network.state_dict()
    (photos / "mine.json").write_text('{"p": 0, "q": 1, "r": 2, "s": 3}')
    saved(photos / "w.pth", {"model": state, "idx_to_class": {0: "w", 1: "x", 2: "y", 3: "z"}})
    assert names("--weights", "w.pth") == ({*"wxyz"}, "the checkpoint")
    assert names("--weights", "w.pth", "--names", "mine.json") == ({*"pqrs"}, "mine.json")
    # images given as arguments have nothing to do with the dataset
    assert names("photos") == ({f"class {i}" for i in range(4)}, "numbers")
    assert names("photos", "--model", "net.py:named") == ({*"abcd"}, "the network")
    (photos / "dataset/DL_data/synset_words.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="synset_words.txt has 2 names and net.py:three has 4 classes: give --names"):
        names()
    assert names("--names", "mine.json")[1] == "mine.json" and names("--weights", "w.pth")[1] == "the checkpoint"
    for count in (3, 5):
        (photos / "mine.txt").write_text("name\n" * count)
        with pytest.raises(UserError, match=f"mine.txt has {count} names and net.py:three has 4 classes: give 4"):
            names("--names", "mine.txt")
    with pytest.raises(UserError, match="none.txt is not a file"):
        names("--names", "none.txt")


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # fonts are another matter
def test_names_in_any_script_and_with_any_sign_through_exercises(photos, run):
    """As texts of the figures, as options and in tables."""
    for i in range(4):
        save_photo(photos / f"dataset/DL_data_p/{i}/{i}.png", i, (40, 36))
    for name, more in {
        "2b_evaluate": [],
        "2c_class_visualization": ["--judge", "none", "--steps", "2", "--methods", "plain"],
        "2f_guided_saliency": ["--classes", STRANGE[2]],
    }.items():
        assert run(name, *FAST, *more)["model"]["names"].endswith("synset_words.txt")
        tables = (photos / "output" / name).glob("*.csv")
        assert any(label in table.read_text() for table in tables for label in STRANGE)
