"""The command line of every script: one name, one meaning and one default for an option, wherever it is.

Imports nothing that takes seconds: scripts parse their options before they import torch.
"""

from __future__ import annotations

import argparse
import re
import shlex
from typing import Any, NoReturn

from explain.basics.errors import UserError
from explain.basics.options import COPIES, INTERPOLATIONS, NOISE, WHITE, above_0, at_least_0, shard, whole_number

EXERCISES = ("2b_evaluate", "2c_class_visualization", "2d_predict", "2e_saliency", "2f_guided_saliency")
EXERCISES += ("2g_faithfulness", "2h_mc_dropout")
positive, whole = whole_number(1), whole_number(0)
seed = whole_number(0, (1 << 31) - 1)  # an image's index is added to a multiple of it

# they decide who computes and when files are read, or only say what the others do: no part of the result
EXECUTION_OPTIONS = ("shard", "fresh", "command", "prefetch")
# no row depends on them (--names: on the names themselves)
DRAWING_OPTIONS = ("show", "output", "no_title", "pdf", "names")
# One name, one meaning, one default in every script that has them.
SHARED_OPTIONS: dict[str, dict[str, Any]] = {
    "images": dict(nargs="*", metavar="IMAGE", help="image files or folders to use instead of the dataset's images"),
    "--classes": dict(
        nargs="+",
        metavar="CLASS",
        help="class to explain, by id or name: one for all images, one for each, or several for one image (default: "
        "each image's most likely class)",
    ),
    "--limit": dict(
        type=positive,
        metavar="N",
        help="use only N images: the first N, or N labelled images in a random order (--seed) that takes one of every "
        "class before a second one of any",
    ),
    "--strict": dict(action="store_true", help="stop at an image that cannot be read instead of skipping it"),
    "--dataset": dict(default="dataset", metavar="DIR", help="folder that contains DL_data and DL_data_p"),
    "--output": dict(
        metavar="DIR",
        help="write results to DIR/<name of the script>/ (default: output, or output/pictures if you give images, so "
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
        help="state dict or checkpoint (FILE:KEY if it holds several) instead of the published weights; `random`: an "
        "untrained network",
    ),
    "--names": dict(
        metavar="FILE",
        help="class names: one per line, synset_words.txt, or JSON (default: those of the checkpoint, the dataset, or "
        "the network)",
    ),
    "--input-size": dict(type=positive, metavar="S", help="side of the network's input, in pixels"),
    "--resize": dict(type=positive, metavar="N", help="shorter side of an image before centre-cropping, in pixels"),
    "--mean": dict(
        type=at_least_0, nargs="+", metavar="X", help="mean of the training images' pixel values, 0 to 1, by channel"
    ),
    "--std": dict(
        type=above_0, nargs="+", metavar="X", help="standard deviation of the training images' pixel values, by channel"
    ),
    "--interpolation": dict(choices=INTERPOLATIONS, help="interpolation of the resizing"),
    "--squash": dict(
        action="store_true",
        default=None,
        help="resize both sides of an image to --resize, without keeping their ratio (default: --input-size)",
    ),
    "--white": dict(
        type=whole_number(1, WHITE),
        metavar="N",
        help=f"value of white in 16-bit images, such as 4095 for 12-bit data (default: {WHITE})",
    ),
    "--device": dict(default="auto", help="cpu, cuda, mps, ...; auto uses an accelerator if there is one"),
    "--tf32": dict(
        action="store_true",
        help="let an NVIDIA GPU round the inputs of convolutions and matrix products to TF32, 10 bits of mantissa "
        "instead of 23: faster, but the last digits of every result differ from a CPU's",
    ),
    "--threads": dict(
        type=positive,
        metavar="N",
        help="number of computing threads; the last bits of a result depend on it, so give all shards the same; "
        "OMP_NUM_THREADS, which torchrun sets, is ignored (default: the number of cores)",
    ),
    "--batch-size": dict(default=16, type=positive, metavar="N", help="images per forward pass"),
    "--prefetch": dict(
        type=whole,
        metavar="N",
        help="batches to read ahead while another is explained (default: 0 on a CPU, 2 elsewhere)",
    ),
    "--copies": dict(
        default=COPIES, type=whole, metavar="N", help="noisy copies for the smoothed map (0: no such map)"
    ),
    "--noise": dict(
        default=NOISE, type=at_least_0, metavar="SD", help="standard deviation of the copies' noise, in pixel values"
    ),
    "--seed": dict(default=0, type=seed, metavar="N", help="seed of the random generators, one per image or class"),
    "--show": dict(default=12, type=positive, metavar="N", help="maximum number of images in a figure"),
    "--scores": dict(
        default=12,
        type=whole,
        metavar="N",
        help="number of images whose maps get a faithfulness score, insertion minus deletion, as in 2g (0: none)",
    ),
    "--whole": dict(
        action="store_true",
        help="show the network whole images, with grey around them, instead of their central crops",
    ),
    "--stochastic": dict(
        action="store_true",
        help="accept a network whose answers change from run to run, or with the other images of a batch; every "
        "figure says so",
    ),
    "--no-title": dict(action="store_true", help="write titles and captions to <figure>.txt, not into figures"),
    "--pdf": dict(action="store_true", help="save figures as PDF, too"),
    "--shard": dict(
        type=shard,
        metavar="I/N",
        help="process only the images whose index modulo N is I; the last shard to finish writes the summary "
        "(default: RANK and WORLD_SIZE of the environment, else all images)",
    ),
    "--fresh": dict(action="store_true", help="discard existing results and start over"),
}
# The groups of --help, in its order; an option that a script defines itself belongs to the method.
GROUPS = {
    "what to explain": ("images", "--classes", "--limit", "--dataset"),
    "the network": ("--model", "--weights", "--names", "--input-size", "--resize", "--whole"),
    "the method": ("--scores", "--copies", "--noise"),
    "the output": ("--output", "--show", "--no-title", "--pdf", "--fresh"),
    "rarely needed": ("--mean", "--std", "--interpolation", "--squash", "--white", "--stochastic", "--strict", "--seed")
    + ("--device", "--tf32", "--threads", "--batch-size", "--prefetch", "--shard"),
}
NOT_IN_ALL = ("images", "--classes", "--limit", "--scores", "--copies", "--noise", "--strict", "--prefetch")


class _Parser(argparse.ArgumentParser):
    """Has its options in groups, and in its help first the question and the commands of a script's docstring."""

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
        group = next((group for group, members in GROUPS.items() if names[0] in members), "the method")
        if not names[0].startswith("-"):
            group = "what to explain"
            self.usage += f" [{settings['metavar']}{' ...' * (settings.get('nargs') == '*')}]"
        return self.groups[group].add_argument(*names, **settings)

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
    """Return a parser with the named ones of SHARED_OPTIONS; its help explains the script by its docstring."""
    parser = _Parser(doc)
    for name in (name for members in GROUPS.values() for name in members if name in names):
        parser.add_argument(name, **SHARED_OPTIONS[name])
    return parser


def exercise_parser(doc: str, *names: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all exercises have, and the named ones of NOT_IN_ALL."""
    return option_parser(doc, *names, *(name for name in SHARED_OPTIONS if name not in NOT_IN_ALL))
