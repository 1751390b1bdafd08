"""The command line of every script: one name, one meaning and one default for an option, wherever it is."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import Any, NoReturn

from explain.basics.errors import UserError
from explain.basics.options import above_0, at_least_0, whole_number
from explain.data.pictures import WHITE
from explain.networks.preprocessing import INTERPOLATIONS
from explain.run.output import EXECUTION_OPTIONS
from explain.run.rows import shard

positive, whole = whole_number(1), whole_number(0)
seed = whole_number(0, (1 << 31) - 1)  # an image's index is added to a multiple of it

# One name, one meaning, one default in every script that has them.
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "images": dict(nargs="*", metavar="IMAGE", help="image files or folders instead of the dataset's test images"),
    "--classes": dict(
        nargs="+",
        metavar="CLASS",
        help="class to explain, by id or name: one for all images, one for each, or several for one image (default: "
        "each image's most likely class)",
    ),
    "--limit": dict(
        type=positive,
        metavar="N",
        help="use only N images: the first ones, or of labelled images N spread over the classes, in a random order "
        "(--seed) with each class before any second image of one",
    ),
    "--strict": dict(action="store_true", help="stop at an image that cannot be read instead of skipping it"),
    "--dataset": dict(default="dataset", metavar="DIR", help="folder that contains DL_data and DL_data_p"),
    "--output": dict(
        metavar="DIR",
        help="write results to DIR/<name of the script>/ (default: output; output/pictures where images are given, so "
        "that the report stays as it is)",
    ),
    "--model": dict(
        default="efficientnet_lite0",
        metavar="NAME",
        help="efficientnet_lite0 or efficientnet_lite2 (installed with their weights), a torchvision model (vgg16, "
        "resnet50, ...), timm/NAME, or FILE.py:FUNCTION, which returns your own network",
    ),
    "--weights": dict(
        metavar="FILE",
        help="state dict or checkpoint instead of the published weights, FILE:KEY where it holds several; `random`: an "
        "untrained network",
    ),
    "--names": dict(
        metavar="FILE",
        help="names of the classes: one a line, synset_words.txt, or JSON (default: the checkpoint's, the dataset's, "
        "the network's own)",
    ),
    "--input-size": dict(type=positive, metavar="S", help="side of the network's input, in pixels"),
    "--resize": dict(type=positive, metavar="N", help="shorter side of a picture before centre-cropping, in pixels"),
    "--mean": dict(
        type=at_least_0, nargs="+", metavar="X", help="mean of the training images' pixel values, 0 to 1, by channel"
    ),
    "--std": dict(type=above_0, nargs="+", metavar="X", help="their standard deviation, by channel"),
    "--interpolation": dict(choices=list(INTERPOLATIONS), help="interpolation of the resizing"),
    "--squash": dict(
        action="store_true",
        default=None,
        help="resize both sides of a picture, without keeping their ratio, to --resize (default: to --input-size)",
    ),
    "--white": dict(
        type=whole_number(1, WHITE),
        metavar="N",
        help=f"value that becomes white in 16-bit pictures, such as 4095 for 12 bits in 16 (default: {WHITE})",
    ),
    "--device": dict(default="auto", help="cpu, cuda, mps, ...; auto uses an accelerator if there is one"),
    "--tf32": dict(
        action="store_true",
        help="let an NVIDIA GPU round the inputs of convolutions and matrix products to TF32, 10 bits after the point "
        "instead of 23: faster, but the last digits of every result differ from a CPU's",
    ),
    "--threads": dict(
        type=positive,
        metavar="N",
        help="threads that compute; the last bits of a result depend on their number, so give all shards the same one; "
        "OMP_NUM_THREADS, which torchrun sets, is ignored (default: the number of cores)",
    ),
    "--batch-size": dict(default=16, type=positive, metavar="N", help="images per forward pass"),
    "--prefetch": dict(
        type=whole,
        metavar="N",
        help="batches read ahead while others are explained (default: 0 on the CPU, which has both to do, 2 elsewhere)",
    ),
    "--seed": dict(default=0, type=seed, metavar="N", help="seed of the random generators, one per image or class"),
    "--show": dict(default=12, type=positive, metavar="N", help="maximum number of pictures in a figure"),
    "--scores": dict(
        default=12,
        type=whole,
        metavar="N",
        help="score the maps of the first N images: does the class's probability follow the pixels that a map names? "
        "(0: none)",
    ),
    "--whole": dict(
        action="store_true",
        help="show the network whole pictures, fitted into its square input with grey around them, not central crops",
    ),
    "--stochastic": dict(
        action="store_true",
        help="accept a network whose answers change from run to run or with the other pictures of a batch; every "
        "figure says so",
    ),
    "--no-title": dict(action="store_true", help="write a figure's title and caption to <figure>.txt, not into it"),
    "--pdf": dict(action="store_true", help="save figures as PDF too"),
    "--shard": dict(
        type=shard,
        metavar="I/N",
        help="process only the images whose index modulo N is I; the last shard to finish writes the summary "
        "(default: RANK and WORLD_SIZE of the environment, else all images)",
    ),
    "--fresh": dict(action="store_true", help="discard existing results and start over"),
}
EXERCISE_OPTIONS = ("--dataset", "--output", "--model", "--weights", "--device", "--tf32", "--threads", "--batch-size")
EXERCISE_OPTIONS += ("--seed", "--names", "--input-size", "--resize", "--mean", "--std", "--interpolation")
EXERCISE_OPTIONS += (
    "--stochastic",
    "--squash",
    "--whole",
    "--white",
    "--show",
    "--no-title",
    "--pdf",
    "--shard",
    "--fresh",
)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, *arguments: Any) -> argparse.Namespace:
        options = super().parse_args(*arguments)
        options.command = self._command(options)
        return options

    def _command(self, options: argparse.Namespace) -> str:
        """Return the command line with all options that are not at their defaults, but those of a single run."""
        words = []
        for action in self._actions:
            value = getattr(options, action.dest, self.get_default(action.dest))
            if value == self.get_default(action.dest) or action.dest in EXECUTION_OPTIONS:
                continue
            values = [] if value is True else value if isinstance(value, list) else [value]
            if isinstance(action, argparse._AppendAction):
                words += [word for item in values for word in (action.option_strings[0], str(item))]
            elif action.option_strings:
                words += [action.option_strings[-1], *map(str, values)]
            else:
                words = [*map(str, values), *words]  # before an option that takes several values
        return shlex.join(["python", self.prog, *words])

    def error(self, message: str) -> NoReturn:
        message = re.sub("^argument (.+): must ", r"\1 must ", message)
        raise UserError(f"{message}; `python {self.prog} --help` explains the options")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        if isinstance(action.default, list) and not silent:
            return f"{action.help} (default: {' '.join(action.default)})"
        return action.help if silent else super()._get_help_string(action)


def option_parser(doc: str, *names: str) -> argparse.ArgumentParser:
    """Return a parser with the script's docstring as its description and the named ones of SHARED_OPTIONS."""
    parser = _Parser(description=doc, formatter_class=_HelpFormatter)
    for name in names:
        parser.add_argument(name, **SHARED_OPTIONS[name])
    return parser


def exercise_parser(doc: str, *names: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all exercises have, after the named ones of SHARED_OPTIONS."""
    return option_parser(doc, *names, *EXERCISE_OPTIONS)
