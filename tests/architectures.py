"""Check plain and guided gradients on every classification architecture of torchvision, in float64.

The plain gradient is compared with central finite differences, the guided gradient with the independent
implementation in reference.py and with captum, and the logits with and without the guided mode.

    PYTHONPATH=. python tests/architectures.py resnet18 vgg11   # prints the named architectures
    make architectures                                          # all, also written to docs/architectures.md: 20 minutes
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import captum
import captum.attr
import torch
import torchvision
from conftest import ROOT, load_script
from reference import guided_gradient as reference_gradient
from torch import nn
from tqdm import tqdm

import common

PIXELS = 6  # pixels at which the gradient is compared with finite differences
STEPS = (1e-7, 1e-9, 1e-10)  # of a pixel value; the best counts: kinks spoil large steps, rounding small ones
NAMES = torchvision.models.list_models(module=torchvision.models)

guided = load_script("2f_guided_saliency")


def build(name: str) -> tuple[nn.Module, int]:
    """Return the network with seeded random weights, and the side in pixels of a small input that it accepts.

    The statistics of its batch norms come from one batch: with those of a new network (mean 0, variance 1) the
    signal vanishes in deep networks, and there would be nothing to compare.
    """
    torch.manual_seed(0)
    size = 96
    settings = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        size = 112 if name.endswith("14") else 128 if name.endswith("32") else 96
        settings["image_size"] = size
    elif name == "maxvit_t":
        size = 224
    model = torchvision.models.get_model(name, num_classes=20, **settings).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # the heads of vision transformers start at zero
            nn.init.normal_(parameter, std=0.02)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(random_images(16, size))
    return model.eval().requires_grad_(False), size


def random_images(count: int, size: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return images (N, 3, size, size) in [0, 1], blotched: to a deep network all images of pure noise look alike."""
    noise = torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)
    blotches = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return 0.3 * noise + 0.7 * nn.functional.interpolate(blotches, (size, size), mode="bilinear")


def guided_gradient(model: nn.Module, images: torch.Tensor, classes: torch.Tensor):
    """The guided gradient (N, 3, H, W) itself, of which the maps are made, and what the rule met."""
    guided.refuse_opaque(model)
    with guided.guided_rectifiers() as rule:
        gradient, _ = common.class_score_gradient(model, images, classes)
    return gradient, rule


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the norm of a - b over the norm of b."""
    return float((a - b).norm() / b.norm())


def check(name: str) -> dict:
    """Return all comparisons for one architecture, as relative differences."""
    model, size = build(name)
    generator = torch.Generator().manual_seed(1)
    image = random_images(1, size, generator)
    with torch.no_grad():
        logits = model(image)
    classes = logits.argmax(1)  # SqueezeNet's last rectifier sets others to 0, with no gradient
    plain, _ = common.class_score_gradient(model, image, classes)

    places = plain.abs().flatten().topk(PIXELS).indices  # rounding matters least where it is largest
    exact = plain.view(-1)[places]
    errors = []  # of the worst pixel, for each step
    ups = torch.zeros(PIXELS, *image.shape[1:], dtype=image.dtype)
    ups.view(PIXELS, -1)[torch.arange(PIXELS), places] = 1
    with torch.no_grad():
        for length in STEPS:
            above, below = model(torch.cat([image + length * ups, image - length * ups]))[:, classes[0]].chunk(2)
            errors.append(float((((above - below) / (2 * length) - exact) / exact).abs().max()))
    found = {"name": name, "finite_difference": min(errors)}
    try:
        gradient, seen = guided_gradient(model, image, classes)
    except common.UserError as error:
        assert "has none" in str(error)
        return {**found, "rectifiers": 0, "others": str(error).split("(")[1].split(")")[0]}
    with guided.guided_rectifiers():
        leaf = image.clone().requires_grad_()
        guided_logits = model(leaf * 1)
        torch.autograd.grad(guided_logits.sum(), leaf)
    found["logits_equal"] = bool(torch.equal(guided_logits, logits))
    found["rectifiers"] = sum(seen.rectifiers.values())
    found["others"] = ", ".join(f"{n} {kind}" for kind, n in seen.others.items())
    found["reference"] = relative(gradient, reference_gradient(model, image, classes))
    found["plain"] = relative(plain, gradient)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = captum.attr.GuidedBackprop(model).attribute(image.clone().requires_grad_(), target=classes)
        found["captum"] = relative(theirs, gradient)
        found["captum_is_plain"] = relative(theirs, plain) < 1e-9
    except Exception as error:  # any failure of captum is a result
        found["captum"] = f"{type(error).__name__}"
    return found


def verdict(row: dict) -> str:
    """Return the comparison with captum in words."""
    if isinstance(row.get("captum"), str):
        return f"fails ({row['captum']})"
    if row["captum"] < 1e-9:
        return "the same"
    return "the plain gradient" if row["captum_is_plain"] else f"differs by {row['captum']:.1g}"


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| architecture | rectifiers guided | other activations | plain vs. finite difference | guided vs. reference "
        "| logits equal | plain vs. guided | captum |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row['name']} | {row['rectifiers']} | {row['others']} | {row['finite_difference']:.0e} |"
        if row["rectifiers"]:
            lines.append(
                f"{start} {row['reference']:.0e} | {'yes' if row['logits_equal'] else 'no'} "
                f"| {row['plain']:.2g} | {verdict(row)} |"
            )
        else:
            lines.append(f"{start} error: no rectifiers | | | |")
    return "\n".join(lines) + "\n"


HEAD = """# Gradients on every architecture

Plain gradients are correct on all {count} classification architectures of torchvision {torchvision}, and guided
gradients on all of these that have rectifiers. Plain gradients agree with finite differences and guided gradients with
an independent implementation; guided backpropagation changes no logit. A network without rectifiers has no guided
gradient: asking for one raises an error that names the network's activations.

`make architectures` checks this in 20 minutes and writes this page, unless a check fails. The networks have seeded
random weights and run in float64 on inputs of a reduced size (PyTorch {torch}, captum {captum}). All numbers except the
counts are relative differences.

- *plain vs. finite difference*: the gradient of a class logit against central differences, at the worst of the
  {pixels} pixels with the largest gradient. The difference comes from rounding and from the kinks of the rectifiers.
- *guided vs. reference*: the guided gradient against that of an implementation that replaces each call of a rectifier
  by a function whose backward pass is the guided rule written out (`tests/reference.py`).
- *logits equal*: whether the logits with and without guided backpropagation are the same, bit for bit.
- *plain vs. guided*: the plain gradient against the guided one. A large difference shows that the guided rule has an
  effect.
- *captum*: whether captum's GuidedBackprop returns the same guided gradient, the plain gradient instead, or something
  else.

"""


def main() -> None:
    names = NAMES if "--all" in sys.argv else sys.argv[1:]
    rows = []
    for name in tqdm(names, disable=None):
        rows.append(check(name))
        print(table(rows).splitlines()[-1], flush=True)
    text = table(rows)
    bad = [row["name"] for row in rows if row["finite_difference"] > 1e-3]
    bad += [row["name"] for row in rows if row["rectifiers"] and (row["reference"] > 1e-9 or not row["logits_equal"])]
    if bad:
        sys.exit(f"wrong: {', '.join(bad)}; nothing was written")
    if "--all" in sys.argv:
        head = HEAD.format(
            count=len(rows),
            pixels=PIXELS,
            torch=torch.__version__.split("+")[0],
            torchvision=torchvision.__version__.split("+")[0],
            captum=captum.__version__,
        )
        Path(ROOT, "docs", "architectures.md").write_text(head + text)


if __name__ == "__main__":
    main()
