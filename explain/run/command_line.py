"""The options of all scripts: each has the same name, meaning and default wherever it occurs.

Nothing slow is imported here, since scripts parse their options before they import torch.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

from explain.basics.errors import UserError
from explain.basics.options import COPIES, INTERPOLATIONS, NOISE, WHITE, above_0, at_least_0, integer, shard

EXERCISES = ("2b_evaluate", "2c_class_visualization", "2d_predict", "2e_saliency", "2f_guided_saliency")
EXERCISES += ("2g_faithfulness", "2h_mc_dropout")
positive, not_negative = integer(1), integer(0)
seed = integer(0, (1 << 31) - 1)  # an image's index is added to a multiple of it

# no result depends on them: they say which process computes a row, and when it reads files
EXECUTION_OPTIONS = ("shard", "fresh", "command", "prefetch")
# no row depends on them (--names: it depends on the names themselves)
DRAWING_OPTIONS = ("show", "output", "no_title", "pdf", "names")
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "images": dict(
        nargs="*",
        metavar="IMAGE",
        help="image files or folders to use instead of the dataset's images; by default their results go to "
        "output/pictures, so that the report in output stays as it is",
    ),
    "--classes": dict(
        nargs="+",
        metavar="CLASS",
        help="class to explain, by id or name: one for all images, one for each, or several for one image (default: "
        "each image's most likely class)",
    ),
    "--limit": dict(
        type=positive,
        metavar="N",
        help="use only N images: the first N or, if they are labelled, N chosen at random (--seed), with one image of "
        "every class before a second of any class",
    ),
    "--strict": dict(action="store_true", help="stop at an image that cannot be read, instead of skipping it"),
    "--dataset": dict(default="dataset", metavar="DIR", help="folder that contains DL_data and DL_data_p"),
    "--output": dict(metavar="DIR", help="write results to DIR/<name of the script>/ (default: output)"),
    "--model": dict(
        default="efficientnet_lite0",
        metavar="NAME",
        help="efficientnet_lite0 or efficientnet_lite2 (installed with their weights), a torchvision model (vgg16, "
        "resnet50, ...), timm/NAME, or FILE.py:FUNCTION, which returns your own network",
    ),
    "--weights": dict(
        metavar="FILE",
        help="state dict or checkpoint (FILE:KEY if it holds several state dicts) to load instead of the published "
        "weights; `random`: an untrained network",
    ),
    "--names": dict(
        metavar="FILE",
        help="file of class names: one name per line, lines as in synset_words.txt, or JSON (default: the names in "
        "the checkpoint, the dataset, or the network)",
    ),
    "--input-size": dict(type=positive, metavar="S", help="side of the network's input, in pixels"),
    "--resize": dict(type=positive, metavar="N", help="shorter side of an image before centre-cropping, in pixels"),
    "--mean": dict(
        type=at_least_0, nargs="+", metavar="X", help="mean pixel values (0 to 1) of the training images, by channel"
    ),
    "--std": dict(
        type=above_0, nargs="+", metavar="X", help="standard deviations of the training images' pixels, by channel"
    ),
    "--interpolation": dict(choices=INTERPOLATIONS, help="interpolation used for resizing"),
    "--squash": dict(
        action="store_true",
        default=None,
        help="resize both sides of an image to --resize (without it, to --input-size), changing its aspect ratio",
    ),
    "--white": dict(
        type=integer(1, WHITE),
        metavar="N",
        help=f"value of white in 16-bit images, for example 4095 for 12-bit data (default: {WHITE})",
    ),
    "--device": dict(default="auto", help="cpu, cuda, mps, ...; auto uses an accelerator if there is one"),
    "--tf32": dict(
        action="store_true",
        help="let an NVIDIA GPU round the inputs of convolutions and matrix products to TF32 (10 bits of mantissa "
        "instead of 23), which is faster, but the last digits of every result then differ from a CPU's",
    ),
    "--threads": dict(
        type=positive,
        metavar="N",
        help="number of computing threads (OMP_NUM_THREADS is ignored); the last digits of a result depend on it, so "
        "give all shards the same number (default: the number of cores)",
    ),
    "--batch-size": dict(default=16, type=positive, metavar="N", help="images per forward pass"),
    "--prefetch": dict(
        type=not_negative, metavar="N", help="number of batches to read ahead (default: 0 on a CPU, 2 elsewhere)"
    ),
    "--copies": dict(
        default=COPIES,
        type=not_negative,
        metavar="N",
        help="number of noisy copies averaged for a smoothed map; 0 leaves out all maps made from copies",
    ),
    "--noise": dict(
        default=NOISE,
        type=at_least_0,
        metavar="SD",
        help="standard deviation of the noise added to these copies, in pixel values (0 to 1)",
    ),
    "--seed": dict(default=0, type=seed, metavar="N", help="seed of all random numbers"),
    "--show": dict(default=12, type=positive, metavar="N", help="maximum number of images (2c: classes) in a figure"),
    "--scores": dict(
        default=12,
        type=not_negative,
        metavar="N",
        help="number of images whose maps get a faithfulness score (insertion minus deletion, as in 2g)",
    ),
    "--whole": dict(
        action="store_true",
        help="fit the whole image into the network's input, with grey around it, instead of its centre crop",
    ),
    "--stochastic": dict(
        action="store_true",
        help="accept a network whose outputs are random, or depend on the other images in the batch; every figure "
        "then says so",
    ),
    "--no-title": dict(action="store_true", help="write titles and captions to <figure>.txt, not into the figure"),
    "--pdf": dict(action="store_true", help="also save figures as PDF"),
    "--shard": dict(
        type=shard,
        metavar="I/N",
        help="process only the images whose index modulo N is I; the last shard to finish writes the summary "
        "(default: RANK and WORLD_SIZE from the environment if set, otherwise all images)",
    ),
    "--fresh": dict(action="store_true", help="discard existing results and start over"),
}
# The groups of --help; other shared options are rarely needed, and options that a script adds belong to the method
GROUPS = {
    "what to explain": ("images", "--classes", "--limit", "--dataset"),
    "the network": ("--model", "--weights", "--names", "--input-size", "--resize", "--whole"),
    "the method": ("--scores", "--copies", "--noise"),
    "the output": ("--output", "--show", "--no-title", "--pdf", "--fresh"),
    "rarely needed": (),
}
NOT_IN_ALL = ("images", "--classes", "--limit", "--scores", "--copies", "--noise", "--strict", "--prefetch")


def dataset_of(options: argparse.Namespace) -> Path | None:
    """Return the folder of the dataset that a run uses; None if images or a folder were given as arguments."""
    given = getattr(options, "images", None) or getattr(options, "folder", None)
    return Path(options.dataset) if hasattr(options, "dataset") and not given else None


class _Parser(argparse.ArgumentParser):
    """A parser whose help begins with the question and the commands of a script's docstring, then groups of options."""

    def __init__(self, doc: str):
        question, *paragraphs = doc.strip().split("\n\n")
        commands = [paragraph for paragraph in paragraphs if paragraph.startswith("    python")]
        rest = [paragraph for paragraph in paragraphs if paragraph not in commands]
        super().__init__(
            usage="python %(prog)s [options]",
            description="\n\n".join([question, *commands]),
            epilog="\n\n".join(rest),
            formatter_class=_HelpFormatter,
            add_help=False,
        )
        self.groups = {name: self.add_argument_group(name) for name in GROUPS}
        self.groups["rarely needed"].add_argument("-h", "--help", action="help", help="show this help")

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        others = "rarely needed" if names[0] in SHARED_OPTIONS else "the method"
        group = next((group for group, members in GROUPS.items() if names[0] in members), others)
        if not names[0].startswith("-"):
            group = "what to explain"
            self.usage += f" [{settings['metavar']}{' ...' * (settings.get('nargs') == '*')}]"
        return self.groups[group].add_argument(*names, **settings)

    def parse_args(self, *arguments: Any) -> argparse.Namespace:
        """Parse the arguments; add `command`, which repeats the run, and the default of --output."""
        options = super().parse_args(*arguments)
        chosen = {"command": self._command(options)}
        if getattr(options, "output", "") is None:
            chosen["output"] = "output" if dataset_of(options) else "output/pictures"
        return argparse.Namespace(**vars(options) | chosen)

    def _command(self, options: argparse.Namespace) -> str:
        """Return the command line with every option that is not at its default, except EXECUTION_OPTIONS."""
        words = []
        for action in self._actions:
            value = getattr(options, action.dest, action.default)
            if value == action.default or action.dest in EXECUTION_OPTIONS:
                continue
            values = [] if value is True else [*map(str, value)] if isinstance(value, list) else [str(value)]
            if isinstance(action, argparse._AppendAction):
                words += [word for item in values for word in (action.option_strings[0], item)]
            elif action.option_strings:
                words += [action.option_strings[-1], *values]
            else:
                words = [*values, *words]  # before an option that takes several values
        return shlex.join(["python", self.prog, *words])

    def error(self, message: str) -> NoReturn:
        message = re.sub("^argument (.+): must ", r"\1 must ", message)
        raise UserError(f"{message}; `python {self.prog} --help` explains the options")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(action.default)})"
        return super()._get_help_string(action)


def option_parser(doc: str, *names: str) -> argparse.ArgumentParser:
    """Return a parser with the named SHARED_OPTIONS, whose help explains the script by its docstring."""
    parser = _Parser(doc)
    for name, settings in SHARED_OPTIONS.items():
        if name in names:
            parser.add_argument(name, **settings)
    return parser


def exercise_parser(doc: str, *names: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all exercises have, and those of NOT_IN_ALL that are named."""
    return option_parser(doc, *names, *(name for name in SHARED_OPTIONS if name not in NOT_IN_ALL))
