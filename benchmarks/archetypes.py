"""How far archetypes are recognised, over seeds: a table for docs/archetypes.md from runs of 2c_class_visualization.py.

    python benchmarks/archetypes.py output/archetypes/*     # folders that were given as --output, one for each seed

Shares are the mean over the seeds, with each seed's own in brackets where there are several.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

SCRIPT = "2c_class_visualization"


def over_seeds(shares: Sequence[float]) -> str:
    """The mean of the shares, and each of them where they differ: `0.912 (0.901 0.912 0.923)`."""
    mean = f"{sum(shares) / len(shares):.3f}"
    return mean if len(set(shares)) == 1 else f"{mean} ({' '.join(f'{value:.3f}' for value in shares)})"


def table(runs: Sequence[dict]) -> list[str]:
    """The lines of a Markdown table, from the metrics of runs that differ in network, methods or seed."""
    found: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)  # explained and method -> seed -> results
    for run in runs:
        for kind, result in run["results"].items():
            if isinstance(result, dict) and "judges" in result:
                found[run["model"]["name"], kind][run["seed"]] = result
    judges = list(dict.fromkeys(judge for seeds in found.values() for r in seeds.values() for judge in r["judges"]))
    lines = ["| explained | images | seeds | p >= 0.9 | " + " | ".join(f"{j}: first; among five" for j in judges)]
    lines[0] += " | colours |"
    lines.append("|---" * (5 + len(judges)) + "|")
    for (model, kind), seeds in found.items():
        results = [seeds[seed] for seed in sorted(seeds)]
        own = [str(r.get("classes_with_probability_from_0.9", "")) for r in results]
        cells = [model, kind, " ".join(map(str, sorted(seeds))), " ".join(own)]
        for judge in judges:
            said = [r["judges"][judge] for r in results if judge in r["judges"]]
            cells.append("; ".join(over_seeds([s[k] for s in said]) for k in ("top1", "top5")) if said else "")
        cells.append(over_seeds([r["colours"]["distance_from_photos"] for r in results]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="output folders of finished runs")
    files = [folder / SCRIPT / "metrics.json" for folder in parser.parse_args().folders]
    if missing := [str(file) for file in files if not file.is_file()]:
        sys.exit(f"error: {missing[0]} is not there: run {SCRIPT}.py to its end first")
    print("\n".join(table([json.loads(file.read_text()) for file in files])))
