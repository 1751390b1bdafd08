"""A network is tried before it is believed: in the form in which it runs, twice, and beside other pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import as_written, load_script, save_exported, save_photo, saved
from torch import nn

import common
from explain.basics.errors import UserError


def load(name: str, **settings) -> common.Classifier:
    return common.load_model(f"net.py:{name}", input_size=32, **settings)


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
    assert load("Net").notes == []


# ------------------------------------------------------------------------------------------------
# A function of each picture alone


@pytest.mark.parametrize("name", ["Dropout", "ShiftedDropout", "Jitters"])
def test_a_random_network_is_refused_with_the_cure(own, name):
    """Two runs of 2b gave two accuracies, without a word."""
    with pytest.raises(
        UserError, match=r"gives logits that differ by up to .*F.dropout\(x, p, self.training\).*--stochastic"
    ):
        load(name)


def test_a_network_that_looks_at_its_neighbours_is_refused(own):
    """A photo was class 2 in one batch and class 1 in another."""
    for name in ("BatchStatistics", "no_statistics"):
        with pytest.raises(UserError, match="track_running_stats=True.*--stochastic"):
            load(name)
    archive = save_exported(own / "n.pt2", as_written("sequence").train(), torch.rand(4, 3, 32, 32))
    with pytest.raises(UserError, match=r"n.pt2 gives an image logits in a batch.*call eval\(\) before torch.export"):
        common.load_model(archive, input_size=32)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("name", "kind"), [("Dropout", "random"), ("no_statistics", "dependent on its batch")])
def test_stochastic_accepts_it_and_every_figure_says_so(own, run, name, kind):
    for i in range(3):
        save_photo(own / f"photos/{i}.png", i)
    options = ["photos", "--model", f"net.py:{name}", "--input-size", "32", "--stochastic", "--output", "output"]
    options += ["--threads", "1"]
    runs = [("2d_predict", []), ("2d_predict", ["--fresh"]), ("2e_saliency", ["--copies", "2", "--scores", "1"])]
    tables = []
    for exercise, more in runs:
        metrics = run(exercise, *options, *more)
        assert all(kind in caption[0] for caption in metrics["captions"].values())
        assert any("not a function of the image alone" in note for note in metrics["model"]["notes"])
        tables.append((own / "output/2d_predict/predictions.csv").read_text())
    assert tables[0] == tables[1]  # the seed decides


def test_dropout_that_is_always_on_is_a_networks_own_spread(own):
    model = load("Dropout", stochastic=True)
    logits = load_script("2h_mc_dropout").mc_dropout_logits(model, torch.rand(1, 3, 32, 32), passes=20)
    assert logits.std(0).min() > 0


# ------------------------------------------------------------------------------------------------
# Which output is the logits


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LogSoftmax", "a log-softmax: its logits, which go into the log-softmax, are explained"),
        ("softmax", "a softmax: its logits, which go into the softmax, are explained"),
        ("ByHand", "a log-softmax: the class score is then a (log) probability"),
        ("sigmoid", "a sigmoid: the class score is then a (log) probability"),
        ("binary", "a sigmoid: the class score is then a (log) probability"),
    ],
)
def test_the_logits_are_what_goes_into_a_softmax(own, name, says):
    """ "Logit" 0.00 in place of 8.27, and archetypes that climb log p. One by hand, or a sigmoid, is only noticed."""
    model, is_found = load(name), "softmax" in name.lower()
    if name != "binary":  # whose one logit stands for two classes
        assert_same_function(model, as_written("Net" if is_found else name))
    assert any(f"it ends in {says}" in warning for warning in model.warnings)
    assert model.label == f"net.py:{name}, untrained" + (", before its softmax" if is_found else "")


@pytest.mark.parametrize(
    ("name", "classes", "key"),
    [
        ("pair", [], 1),  # the last
        ("logits_first", [4], 0),  # as many columns as there are names
        ("logits_first", [], 1),  # nothing tells
        ("knows_its_names", [], 0),
        ("exits", [], 1),
        ("by_name", [], "output"),
        ("by_name", [6], "features"),
        ("soft_pair", [], 1),
    ],
)
def test_the_output_that_is_explained(own, name, classes, key):
    model = load(name, classes=classes)
    assert f"its logits are taken from output {key!r}" in "".join(model.warnings)
    features = key in (1, "features") and (name, classes) in (("logits_first", []), ("by_name", [6]))
    assert len(model.categories) == (6 if features else 4)
    if not features:
        assert_same_function(model, as_written("Net"))


def test_the_checkpoints_names_tell_the_output(own):
    """Dimension 53 of an embedding was explained."""
    content = {"model": as_written("logits_first").state_dict(), "classes": ["a", "b", "c", "d"]}
    assert len(load("logits_first", weights=saved(own / "w.pth", content)).categories) == 4


# ------------------------------------------------------------------------------------------------
# What cannot run


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("four_channels", "it takes 4 channels, and images have 3, or 1 if they are greyscale"),
        ("TwoArguments", "missing 1 required positional argument: 'y'.*its forward must take the images alone"),
        ("Fails", "KeyError: 'no such key'.: correct it"),
        ("GreyThatFails", r"images \(2, 1, 32, 32\) \(KeyError: 'labels missing'.: correct it"),
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
    torch.save(as_written("Net").state_dict(), "w.pth")
    model = load("wanders", weights="w.pth")
    assert Path.cwd() == own and torch.get_default_dtype() == torch.float32
    assert_same_function(model, as_written("Net"))


def test_an_archive_of_torch_export(own):
    """It is explained as the network that was exported, before its softmax; the dropout is gone."""
    images, network = torch.rand(3, 3, 32, 32), as_written("LogSoftmax")
    model = common.load_model(save_exported(own / "n.pt2", network, images), input_size=32)
    plain = as_written("Net")
    plain.load_state_dict(network.state_dict())
    assert_same_function(model, plain)
    with pytest.raises(UserError, match="no dropout"):
        load_script("2h_mc_dropout").mc_dropout_logits(model, images, 2)
    torch.export.save(torch.export.export(network, (images,)), own / "fixed.pt2")
    save_exported(own / "bounds.pt2", network, images, min=3, max=8)
    (own / "bad.pt2").write_text("x")
    for name, says in {
        "fixed": "does not take batches of any size: export it with a dynamic batch dimension",
        "bounds": "does not take batches of any size",
        "bad": "is not an archive of torch.export",
        "none": "none.pt2 is not a file",
    }.items():
        with pytest.raises(UserError, match=says):
            common.load_model(f"{name}.pt2", input_size=32)
