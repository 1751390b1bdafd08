"""The whole report: every exercise, one after another in a single process.

Each exercise runs as if started alone, with the options that all exercises share. If an exercise fails (a network
without dropout has no 2h), the others go on; the exit status is then 1.

    python report.py                                           # all exercises, with their defaults
    python report.py --model mynet.py:Net --weights best.pth   # on your own network
    python report.py 2e_saliency 2f_guided_saliency            # two of them
"""

from __future__ import annotations

import runpy
import sys

from explain.run.shell import ROOT, answer_early

from explain.run.command_line import exercise_parser

EXERCISES = ["2b_evaluate", "2c_class_visualization", "2d_predict", "2e_saliency", "2f_guided_saliency"]
EXERCISES += ["2g_faithfulness", "2h_mc_dropout"]


def parse_options() -> list[str]:
    parser = exercise_parser(__doc__)
    choices = ["all", *EXERCISES]
    help_text = f"exercises to run: {', '.join(EXERCISES)}"
    parser.add_argument("exercises", nargs="*", choices=choices, default="all", metavar="EXERCISE", help=help_text)
    asked = parser.parse_args().exercises
    return EXERCISES if "all" in asked else asked


def main() -> None:
    exercises = parse_options()
    shared = [word for word in sys.argv[1:] if word not in ("all", *EXERCISES)]
    failed = []
    for name in exercises:
        print(f"\n{name}", flush=True)
        sys.argv = [f"{name}.py", *shared]
        try:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        except SystemExit as end:
            failed.append(name)
            print(end, file=sys.stderr)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    answer_early(main)
