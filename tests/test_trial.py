"""A network is tried before it is believed: in the form in which it runs, twice, and beside other pictures."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import load_script, run_main, save_photo
from torch import nn

import common
from explain.basics.errors import UserError

NETWORKS = """
    import os
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.nn.utils import parametrizations, prune


    def net(conv=None):
        return nn.Sequential(
            conv or nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )
    def weight_norm(): return net(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)))
    def old_weight_norm(): return net(torch.nn.utils.weight_norm(nn.Conv2d(3, 6, 3)))
    def spectral_norm(): return net(parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)))
    def old_spectral_norm(): return net(torch.nn.utils.spectral_norm(nn.Conv2d(3, 6, 3)))
    def pruned(): return net(prune.l1_unstructured(nn.Conv2d(3, 6, 3), "weight", 0.5))


    class ReadsItsNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        def forward(self, x):
            x = self.norm(self.conv(x)).relu() * self.norm.weight.abs().mean()
            return self.fc(x.mean((2, 3)))


    class View(ReadsItsNorm):
        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 5400).view(-1, 6, 900).mean(2))


    class FunctionalDropout(ReadsItsNorm):
        def forward(self, x):
            return self.fc(F.dropout(self.conv(x).relu().mean((2, 3)), 0.5))
    class ModuleDropout(ReadsItsNorm):
        def forward(self, x):
            return self.fc(nn.Dropout(0.5)(self.conv(x).relu().mean((2, 3))))
    class BatchStatistics(ReadsItsNorm):
        def forward(self, x):
            return self.fc(F.batch_norm(self.conv(x), None, None, training=True).relu().mean((2, 3)))
    class NoStatistics(ReadsItsNorm):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(6, track_running_stats=False)


    class Logits(ReadsItsNorm):
        def forward(self, x):
            return self.fc(self.conv(x).relu().mean((2, 3)))
    class Squeezes(Logits):
        def forward(self, x): return super().forward(x).squeeze()
    class ShiftedDropout(Logits):
        def forward(self, x): return F.dropout(super().forward(x), 0.5) + 1000
    class Jitters(Logits):
        def forward(self, x): return super().forward(x + 1e-3 * torch.randn_like(x))
    def grey_that_fails():
        class Grey(nn.Module):
            def forward(self, x):
                if x.shape[1] == 3:
                    return F.conv2d(x, torch.ones(4, 1, 3, 3))
                raise KeyError("labels missing")
        return Grey()
    class TakesApart(Logits):
        def forward(self, x):
            x, y, z = x  # "too many dimensions", or values
            return super().forward(x)
    class LogSoftmax(Logits):
        def forward(self, x): return F.log_softmax(super().forward(x), dim=1)
    def softmax(): return nn.Sequential(Logits(), nn.Softmax(dim=1))
    class ByHand(Logits):
        def forward(self, x): return super().forward(x).softmax(1).log()

    class Several(Logits):
        def forward(self, x):
            features = self.conv(x).relu().mean((2, 3))  # (N, 6)
            return self.pack(features, self.fc(features))
    class Tuple(Several):
        def pack(self, features, logits): return features, logits
    class LogitsFirst(Several):
        def pack(self, features, logits): return logits, features
    class Exits(Several):
        def pack(self, features, logits): return [logits + 1, logits]
    class Named(Several):
        def pack(self, features, logits): return {"output": logits, "features": features}
    class KnowsItsNames(LogitsFirst):
        def __init__(self):
            super().__init__()
            self.classes = ["a", "b", "c", "d"]
    class SoftTuple(Several):
        def pack(self, features, logits): return features, logits.log_softmax(1)

    def four_channels(): return net(nn.Conv2d(4, 6, 3))
    class TwoArguments(Logits):
        def forward(self, x, y): return super().forward(x)
    class Fails(Logits):
        def forward(self, x): return {}["no such key"]
    def wanders():
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        return Logits()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder with nets.py, which is the working directory."""
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETWORKS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str, **settings) -> common.Classifier:
    return common.load_model(f"nets.py:{name}", input_size=32, **settings)


def as_written(name: str) -> nn.Module:
    """The network as its file makes it, in the state that `load` gives it."""
    variables: dict = {}
    exec(Path("nets.py").read_text(), variables)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return variables[name]().eval()


def assert_same_function(model: common.Classifier, network: nn.Module) -> None:
    """The same logits and gradients, of a batch in the memory format in which images come."""
    images, classes = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 3])
    leaf = images.clone().requires_grad_()
    logits = network((leaf - model.mean) / model.std)
    (expected,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), leaf)
    gradient, scores = common.class_score_gradient(model, images, classes)
    torch.testing.assert_close(common.predict_logits(model, images), logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------
# The form in which it runs


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "old_weight_norm", "spectral_norm", "old_spectral_norm", "pruned"])
def test_a_computed_weight_is_not_folded_and_the_other_batch_norm_is(own, name):
    """It was a traceback: there is no parameter to fold a batch norm into."""
    model = load(name)
    assert [type(m) for m in model.network][1:5:3] == [nn.BatchNorm2d, nn.Identity] and model.notes == []
    assert_same_function(model, as_written(name))


def test_a_step_that_the_network_does_not_bear_is_left_out_and_said(own):
    """A forward that reads its batch norm, and one whose view wants contiguous memory, were tracebacks."""
    model = load("ReadsItsNorm")
    (note,) = model.notes
    assert note.startswith("left out of the preparation: batch norms folded into convolutions (AttributeError: ")
    assert type(model.network.norm) is nn.BatchNorm2d
    assert_same_function(model, as_written("ReadsItsNorm"))
    model = load("View")
    (note,) = model.notes
    assert note.startswith("left out of the preparation: channels-last memory (RuntimeError: view size is not")
    assert_same_function(model, as_written("View"))
    assert load("Logits").notes == []


# ------------------------------------------------------------------------------------------------
# A function of each picture alone


@pytest.mark.parametrize("name", ["FunctionalDropout", "ModuleDropout", "ShiftedDropout", "Jitters"])
def test_a_random_network_is_refused_with_the_cure(own, name):
    """Two runs of 2b gave two accuracies, without a word."""
    with pytest.raises(
        UserError, match=r"gives other logits, by up to .*F.dropout\(x, p, self.training\).*--stochastic"
    ):
        load(name)


def exported(folder: Path, training: bool) -> str:
    network = as_written("net").train(training)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(network, (torch.rand(4, 3, 32, 32),), dynamic_shapes=shapes), folder / "n.pt2"
    )
    return str(folder / "n.pt2")


def test_a_network_that_looks_at_its_neighbours_is_refused(own):
    """A photo was class 2 in one batch and class 1 in another."""
    for name in ("BatchStatistics", "NoStatistics"):
        with pytest.raises(UserError, match="track_running_stats=True.*--stochastic"):
            load(name)
    with pytest.raises(UserError, match=r"n.pt2 gives an image other logits.*call eval\(\) before torch.export"):
        common.load_model(exported(own, training=True), input_size=32)
    assert common.load_model(exported(own, training=False), input_size=32).label.endswith("n.pt2")


@pytest.mark.parametrize(
    ("name", "kind"), [("FunctionalDropout", "random"), ("NoStatistics", "dependent on its batch")]
)
def test_stochastic_accepts_it_and_every_figure_says_so(own, monkeypatch, name, kind):
    for i in range(3):
        save_photo(own / f"photos/{i}.png", i)
    options = ["photos", "--model", f"nets.py:{name}", "--input-size", "32", "--stochastic", "--output", "output"]
    tables = []
    for _ in range(2):
        for exercise in ("2d_predict", "2e_saliency"):
            more = ["--copies", "2", "--scores", "1"] if exercise == "2e_saliency" else []
            run_main(exercise, *options, *more, "--fresh", cwd=own, monkeypatch=monkeypatch)
            metrics = json.loads((own / "output" / exercise / "metrics.json").read_text())
            assert all(kind in caption[0] for caption in metrics["captions"].values())
            assert any("not a function of the image alone" in note for note in metrics["model"]["notes"])
        tables.append((own / "output/2d_predict/predictions.csv").read_text())
    assert tables[0] == tables[1]  # the seed decides


def test_dropout_that_is_always_on_is_what_2h_refuses_too(own):
    """It switches dropout on by itself, and needs a network in which it is off."""
    with pytest.raises(UserError, match="which 2h switches on by itself"):
        load("FunctionalDropout")
    model = load("FunctionalDropout", stochastic=True)
    logits = load_script("2h_mc_dropout").mc_dropout_logits(model, torch.rand(1, 3, 32, 32), passes=20)
    assert logits.std(0).min() > 0


# ------------------------------------------------------------------------------------------------
# Which output is the logits


@pytest.mark.parametrize(("name", "ending"), [("LogSoftmax", "log-softmax"), ("softmax", "softmax")])
def test_the_logits_are_what_goes_into_a_softmax(own, name, ending):
    """ "Logit" 0.00 in place of 8.27, and archetypes that climb log p."""
    model = load(name)
    assert_same_function(model, as_written("Logits"))
    note = f"nets.py:{name}: it ends in a {ending}: its logits, which go into the {ending}, are explained"
    assert note in model.warnings
    assert model.label == f"nets.py:{name}, untrained, before its softmax"


def test_a_softmax_by_hand_is_noticed(own):
    model = load("ByHand")
    note = "nets.py:ByHand: it ends in a log-softmax: the class score is then a (log) probability"
    assert any(warning.startswith(note) for warning in model.warnings)
    assert_same_function(model, as_written("ByHand"))


def test_an_exported_log_softmax(own):
    shapes = ({0: torch.export.Dim("batch")},)
    network = as_written("LogSoftmax")
    torch.export.save(torch.export.export(network, (torch.rand(2, 3, 32, 32),), dynamic_shapes=shapes), "n.pt2")
    model = common.load_model("n.pt2", input_size=32)
    plain = as_written("Logits")
    plain.load_state_dict(network.state_dict())
    assert_same_function(model, plain)


@pytest.mark.parametrize(
    ("name", "classes", "key"),
    [
        ("Tuple", [], 1),  # the last
        ("LogitsFirst", [4], 0),  # as many columns as there are names
        ("LogitsFirst", [], 1),  # nothing tells
        ("KnowsItsNames", [], 0),
        ("Exits", [], 1),
        ("Named", [], "output"),
        ("Named", [6], "features"),
        ("SoftTuple", [], 1),
    ],
)
def test_the_output_that_is_explained(own, name, classes, key):
    model = load(name, classes=classes)
    assert f"its logits are taken from output {key!r}" in "".join(model.warnings)
    features = key in (1, "features") and (name, classes) in (("LogitsFirst", []), ("Named", [6]))
    assert len(model.categories) == (6 if features else 4)
    if not features:
        assert_same_function(model, as_written("Logits"))


def test_the_checkpoints_names_tell_the_output(own):
    """Dimension 53 of an embedding was explained."""
    content = {"model": as_written("LogitsFirst").state_dict(), "classes": ["a", "b", "c", "d"]}
    torch.save(content, "w.pth")
    assert len(load("LogitsFirst", weights="w.pth").categories) == 4


# ------------------------------------------------------------------------------------------------
# What cannot run


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("four_channels", "it takes 4 channels, and images have 3, or 1 if they are greyscale"),
        ("TwoArguments", "missing 1 required positional argument: 'y'.*its forward must take the images alone"),
        ("Fails", "KeyError: 'no such key'.: correct it"),
        ("grey_that_fails", r"images \(2, 1, 32, 32\) \(KeyError: 'labels missing'.: correct it"),
        ("TakesApart", "ValueError: not enough values to unpack"),
        ("Squeezes", r"returns a tensor of shape \(4,\) for 1 images"),
    ],
)
def test_the_sentence_names_what_happened(own, name, says):
    with pytest.raises(UserError, match=says) as caught:
        load(name)
    assert "--input-size" not in str(caught.value)


def test_a_file_that_changes_directory_and_default_type(own):
    """--weights, which is relative, was not found; images of 32 bits met constants of 64."""
    torch.save(as_written("Logits").state_dict(), "w.pth")
    model = load("wanders", weights="w.pth")
    assert Path.cwd() == own and torch.get_default_dtype() == torch.float32
    assert_same_function(model, as_written("Logits"))


def test_an_archive_with_bounds_names_them(own):
    shapes = ({0: torch.export.Dim("batch", min=3, max=8)},)
    torch.export.save(
        torch.export.export(as_written("net"), (torch.rand(4, 3, 32, 32),), dynamic_shapes=shapes), "n.pt2"
    )
    with pytest.raises(UserError, match="takes batches of 3 to 8 images: export it with a dynamic batch dimension"):
        common.load_model("n.pt2", input_size=32)
