"""Insertion and deletion against networks whose most important pixels are known, and another implementation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import common
from explain.methods import faithfulness


class Weights(nn.Module):
    """Two classes: the logit of the first is the sum of pixels times weights (H, W), that of the second is 0."""

    def __init__(self, weights: torch.Tensor):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x):
        score = (x * self.weights).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture
def white_pixels():
    """Images of a black field whose blurred copies are near black, and the weights of a network that sees them."""
    weights = torch.zeros(20, 20)
    weights[3, 4], weights[12, 15] = 4.0, 2.0
    image = (weights > 0).float().expand(1, 3, 20, 20)
    return image, weights


def test_a_blurred_copy_is_scipys_where_the_border_is_far():
    image = torch.zeros(1, 1, 41, 31, dtype=torch.float64)
    image[0, 0, 20, 15] = 1
    expected = gaussian_filter(image[0, 0].numpy(), 2.0, truncate=7)
    np.testing.assert_allclose(faithfulness.blurred(image, 2.0)[0, 0].numpy(), expected, atol=1e-7)
    flat = torch.full((2, 3, 9, 7), 0.3)
    torch.testing.assert_close(faithfulness.blurred(flat), flat)  # the border does not darken


def test_ranks_follow_values_and_ties_are_in_random_order():
    values = torch.tensor([[[0.0, 3.0], [1.0, 2.0]]])
    assert faithfulness.pixel_ranks(values).tolist() == [[[3, 0], [2, 1]]]
    constant = faithfulness.pixel_ranks(torch.ones(2, 30, 30))
    assert torch.equal(constant[0], constant[1]) and constant[0].flatten().sort().values.tolist() == [*range(900)]
    assert abs(np.corrcoef(constant[0].flatten(), np.arange(900))[0, 1]) < 0.1  # no order from the top to the bottom


def test_known_pixels_by_hand(white_pixels):
    """The two pixels that the network reads come first: both curves move in their steps, and in no other."""
    image, weights = white_pixels
    model, c, steps = Weights(weights), torch.tensor([0]), 200  # two pixels a step
    insertion, deletion = faithfulness.insertion_deletion_curves(model, image, c, weights[None], steps)[:, 0]
    copy = faithfulness.blurred(image)
    p_image, p_copy = (model(x).softmax(1)[0, 0].item() for x in (image, copy))
    # the black pixels that come later have weight 0: a step, then flat
    torch.testing.assert_close(insertion, torch.tensor([p_copy] + [p_image] * steps), atol=1e-6, rtol=0)
    torch.testing.assert_close(deletion, torch.tensor([p_image] + [p_copy] * steps), atol=1e-6, rtol=0)
    areas = faithfulness.insertion_deletion(model, image, c, weights[None], steps)
    first = (p_image - p_copy) / (2 * steps)  # of the trapezoid of the first step
    assert [float(a) for a in areas] == pytest.approx([p_image - first, p_copy + first], abs=1e-6)


def test_no_order_beats_that_of_the_weights(white_pixels):
    image, weights = white_pixels
    model, c = Weights(weights), torch.tensor([0])

    def worth(saliency):
        insertion, deletion = faithfulness.insertion_deletion(model, image, c, saliency[None], 20)
        return float(insertion - deletion)

    generators = common.seeded_generators(0, range(20))
    others = [worth(faithfulness.random_maps(image, [g])[0]) for g in generators]
    assert worth(weights) > max(others) and worth(-weights) < min(others)
    assert worth(-weights) == pytest.approx(-worth(weights), abs=1e-6)  # the same steps, the other way round


def test_a_constant_map_is_a_random_order(white_pixels):
    """Neither better nor worse than chance over many pictures, whatever the constant."""
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.rand(40, 3, 16, 16, generator=generator), torch.randn(16, 16, generator=generator)
    classes = torch.zeros(40, dtype=torch.long)
    model = Weights(weights / 10)
    ones, zeros = (
        torch.stack(faithfulness.insertion_deletion(model, images, classes, maps, 16))
        for maps in (torch.ones(40, 16, 16), torch.zeros(40, 16, 16))
    )
    assert torch.equal(ones, zeros)
    right = faithfulness.insertion_deletion(model, images, classes, weights * (images - 0.5).mean(1), 16)
    assert abs(float((ones[0] - ones[1]).mean())) < 0.2 * float((right[0] - right[1]).mean())


def independent(model, image, c, saliency, steps):
    """Petsiuk et al. 2018, algorithm 1, one picture at a time, in numpy."""
    blurred = image.numpy().copy()
    for axis, side in ((1, image.shape[1]), (2, image.shape[2])):
        offsets = np.arange(side)[:, None] - np.arange(side)
        kernel = np.exp(-0.5 * (offsets / faithfulness.BLUR_PX) ** 2)
        blurred = np.moveaxis(np.tensordot(kernel / kernel.sum(1, keepdims=True), blurred, (1, axis)), 0, axis)
    order = np.argsort(-saliency.numpy().ravel())
    areas = []
    for start, end in ((blurred, image.numpy()), (image.numpy(), blurred)):
        p = []
        for k in range(steps + 1):
            picture = start.reshape(3, -1).copy()
            moved = order[: len(order) * k // steps]
            picture[:, moved] = end.reshape(3, -1)[:, moved]
            x = torch.from_numpy(picture.reshape(image.shape)).float()[None]
            p.append(model(x).softmax(1)[0, c].item())
        areas.append(sum((a + b) / 2 for a, b in zip(p, p[1:], strict=False)) / steps)
    return areas


@pytest.mark.parametrize("steps", [3, 4, 28])
def test_an_independent_implementation_agrees(steps, toy):
    """Also where the pictures do not fill the last pass."""
    toy.eval()
    generator = torch.Generator().manual_seed(3)
    images, maps = torch.rand(2, 3, 13, 11, generator=generator), torch.rand(2, 13, 11, generator=generator)
    classes = torch.tensor([2, 0])
    insertion, deletion = faithfulness.insertion_deletion(toy, images, classes, maps, steps)
    for n in range(2):
        expected = independent(toy, images[n], int(classes[n]), maps[n], steps)
        assert [float(insertion[n]), float(deletion[n])] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("saliency", "says"),
    [
        (torch.full((5, 8, 8), torch.nan), "320 values are not finite"),
        (torch.zeros(5, 4, 4), r"their shape is \(5, 4, 4\)"),
        (torch.zeros(2, 5, 4, 8), r"their shape is \(2, 5, 4, 8\)"),
        (np.zeros((5, 8, 8), object), "this ndarray of object cannot be made into a tensor of real"),
        (np.full((5, 8, 8), "a"), "this ndarray of <U1 cannot be made into a tensor"),
        (torch.zeros(5, 8, 8, dtype=torch.complex64), "this Tensor of torch.complex64 cannot be made into a tensor"),
        ([torch.zeros(8, 8), torch.zeros(4, 8)], "this list cannot be made into a tensor"),
        (None, "this NoneType cannot be made into a tensor"),
    ],
)
def test_maps_that_have_no_order(saliency, says, toy, images):
    with pytest.raises(common.UserError, match=says):
        faithfulness.insertion_deletion(toy, images, torch.zeros(5, dtype=torch.long), saliency)


def test_maps_may_be_arrays(toy, images):
    saliency = images.mean(1)
    expected = faithfulness.insertion_deletion(toy, images, [0, 1, 2, 3, 0], saliency, 4)
    array = saliency.numpy()
    fixed = array.copy()
    fixed.flags.writeable = False
    flipped = array[:, ::-1, ::-1].copy()[:, ::-1, ::-1]  # negative strides
    others = [flipped, array.astype(">f4"), fixed, [*saliency], [*array]]
    warnings.simplefilter("error")
    for other in (array, saliency.double().numpy(), saliency.tolist(), *others):
        found = faithfulness.insertion_deletion(toy, images, np.array([0, 1, 2, 3, 0]), other, np.int64(4))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(common.UserError, match="classes must be whole numbers, not None"):
        faithfulness.insertion_deletion(toy, images, [0, 1, 2, 3, None], saliency)
    with pytest.raises(common.UserError, match="no images to draw curves for"):
        faithfulness.insertion_deletion(toy, images[:0], [], saliency[:0])


def test_baselines_by_hand():
    step = torch.zeros(1, 3, 5, 6)
    step[..., 3:] = 1  # one vertical edge
    edges = faithfulness.edge_maps(step)[0]
    assert edges.tolist() == [[0, 0, 4, 4, 0, 0]] * 5
    middle = faithfulness.middle_maps(torch.zeros(2, 3, 5, 7))
    assert middle.shape == (2, 5, 7) and middle[0].argmax() == 17 and torch.equal(middle[0], middle[0].flip(0, 1))
    detail = faithfulness.detail_maps(torch.full((1, 3, 6, 6), 0.5))
    assert detail.abs().max() < 1e-6
    one, other = faithfulness.random_maps(step.expand(2, -1, -1, -1), common.seeded_generators(0, [0, 1]))
    assert not torch.equal(one, other) and one.min() >= 0 and one.max() < 1


def test_the_worth_of_a_pictures_maps(white_pixels):
    image, weights = white_pixels
    maps = {"right": weights, "empty": 0 * weights, "broken": weights * torch.nan}
    found = faithfulness.faithfulness_scores(
        Weights(weights), image[0], torch.tensor(0), maps, torch.Generator().manual_seed(0)
    )
    assert found["empty_insertion_minus_deletion"] is None and found["broken_insertion_minus_deletion"] is None
    insertion, deletion = faithfulness.insertion_deletion(Weights(weights), image, torch.tensor([0]), weights[None])
    assert found["right_insertion_minus_deletion"] == pytest.approx(float(insertion - deletion), abs=1e-6)
    assert found["right_insertion_minus_deletion"] > found["random_insertion_minus_deletion"]
    means = faithfulness.summarise_scores([found, found | {"right_insertion_minus_deletion": 0.0}, {}])
    assert means["right"]["images"] == 2 and means["empty"] == {"mean": None, "standard_error": None, "images": 0}
    a = found["right_insertion_minus_deletion"]
    assert means["right"]["mean"] == pytest.approx(a / 2) and means["right"]["standard_error"] == pytest.approx(a / 2)


def test_seven_points_give_the_areas_of_polynomials():
    """Gauss-Lobatto quadrature with n points is exact up to degree 2n - 3; equal steps are the trapezoid rule."""
    fractions, weights = faithfulness.curve_points()
    assert len(fractions) == 7 and (fractions[0], fractions[-1]) == (0, 1)
    for degree in range(12):
        assert float(fractions**degree @ weights) == pytest.approx(1 / (degree + 1), abs=1e-14)
    assert abs(float(fractions**12 @ weights) - 1 / 13) > 1e-9
    values = torch.tensor([3.0, 1, 4, 1, 5], dtype=torch.float64)
    fractions, weights = faithfulness.curve_points(4)
    assert fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert float(values @ weights) == float(torch.trapezoid(values, dx=0.25))


@pytest.mark.parametrize("steps", [None, 3, 1])
def test_kinds_of_maps_share_the_ends_of_their_curves(toy, images, steps):
    """Together they give what each gives alone."""
    classes, maps = torch.tensor([0, 1, 2, 3, 0]), torch.stack([images.mean(1), images[:, 0], -images[:, 1]])
    together = faithfulness.insertion_deletion_curves(toy, images, classes, maps, steps)
    alone = [faithfulness.insertion_deletion_curves(toy, images, classes, own, steps) for own in maps]
    torch.testing.assert_close(together, torch.stack(alone, 1), atol=1e-6, rtol=0)
    one = faithfulness.insertion_deletion_curves(toy, images[2:3], classes[2:3], maps[:, 2:3], steps)
    assert torch.equal(one, together[:, :, 2:3])  # whatever its company
