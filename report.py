"""The report: every exercise, one after another in a single process.

Each exercise runs as if it were started alone, with the options that all exercises share. If an exercise fails (for
example 2h, for a network without dropout), the others still run, and the exit status is 1.

    python report.py                                           # all exercises, with their defaults
    python report.py --model mynet.py:Net --weights best.pth   # on your own network
    python report.py 2e_saliency 2f_guided_saliency            # two of them
"""

from __future__ import annotations

import gc
import runpy
import sys
import traceback

from explain.run.shell import ROOT, answer_early

from explain.basics.errors import UserError
from explain.run.command_line import EXERCISES, exercise_parser


def parse_options() -> list[str] | str:
    parser = exercise_parser(__doc__)
    choices = ["all", *EXERCISES]
    help_text = f"exercises to run: {', '.join(EXERCISES)}"
    parser.add_argument("exercises", nargs="*", choices=choices, default="all", metavar="EXERCISE", help=help_text)
    asked = parser.parse_args().exercises
    if asked != "all" and sys.argv[1 : 1 + len(asked)] != asked:
        raise UserError("give the exercises before the options")
    return asked


def main() -> None:
    asked = parse_options()
    shared = sys.argv[1:] if asked == "all" else sys.argv[1 + len(asked) :]
    failed = []
    for name in EXERCISES if "all" in asked else asked:
        print(f"\n{name}", flush=True)
        sys.argv = [f"{name}.py", *shared]
        try:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        except SystemExit as end:
            failed.append(name)
            print(end, file=sys.stderr)
        except Exception:  # a defect of one exercise does not stop the others
            failed.append(name)
            traceback.print_exc()
        gc.unfreeze()  # `shell.run` froze all objects, as if the process ended there
        gc.collect()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    answer_early(main)
