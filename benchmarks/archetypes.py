"""How far archetypes are recognised, over seeds: a table for docs/archetypes.md from runs of 2c_class_visualization.py.

python benchmarks/archetypes.py output/archetypes/*     # folders that were given as --output, one for each seed
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean


def table(runs: list[dict]) -> list[str]:
    """Return the lines of a Markdown table, from the metrics of runs with the same judges: means over the seeds."""
    found: dict[tuple[str, str], list] = defaultdict(list)  # explained and method -> seeds and results
    for run in sorted(runs, key=lambda run: run["seed"]):
        for kind, result in run["results"].items():
            if isinstance(result, dict) and "judges" in result:
                found[run["model"]["name"], kind].append((run["seed"], result))
    judges = [*runs[0]["results"]["judges"]]
    heads = ["explained", "images", "seeds", "p >= 0.9", *(f"{judge}: top-1, top-5" for judge in judges), "colours"]
    lines = [heads, ["---"] * len(heads)]
    for (model, kind), of_seeds in found.items():
        seeds, results = zip(*of_seeds, strict=True)
        line = [model, kind, " ".join(map(str, seeds))]
        line.append(" ".join(str(result.get("classes_with_probability_from_0.9", "")) for result in results))
        for judge in judges:
            shares = [mean(result["judges"][judge][key] for result in results) for key in ("top1", "top5")]
            line.append(", ".join(f"{share:.3f}" for share in shares))
        lines.append([*line, f"{mean(result['colours']['distance_from_photos'] for result in results):.3f}"])
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    files = [Path(folder, "2c_class_visualization", "metrics.json") for folder in sys.argv[1:]]
    print("\n".join(table([json.loads(file.read_text()) for file in files])))
