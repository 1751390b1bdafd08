"""Numbers of metrics.json and rows.jsonl as the page writes them, and the lines of its tables."""

from __future__ import annotations

from typing import Any

from explain.report.figures import label

Numbers = dict[str, Any]


def number(value: Any) -> str:
    """Return a number as it stands in a text: a float with three decimals, an int with commas."""
    if not isinstance(value, (int, float)):
        return "none" if value is None else str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def measured(numbers: Numbers, key: str, error_key: str = "") -> str:
    """Return a number, with its standard error and its 95 % interval where it has them."""
    error, interval = numbers.get(error_key or f"{key}_standard_error"), numbers.get(f"{key}_interval")
    text = number(numbers.get(key)) + ("" if error is None else f" ± {number(error)}")
    return f"{text} ({number(interval[0])} to {number(interval[1])})" if interval else text


def words(key: str) -> str:
    """Return a key as a reader knows it."""
    return key.replace("_", " ")


def by_label(lines: Numbers, results: Numbers) -> dict[str, Numbers]:
    """Return numbers by readable names, maps in the order of the exercise, then baselines; empty ones are left out."""
    order = dict.fromkeys([*results.get("kinds", []), *results.get("baselines", []), *lines])
    return {label(kind): lines[kind] for kind in order if lines.get(kind)}


def most_faithful(results: Numbers) -> str:
    """Return the kind of map that has the highest insertion less deletion, other than baselines."""
    known = [kind for kind in results["kinds"] if kind in results["maps"]]
    return max(known, key=lambda kind: results["maps"][kind]["insertion_minus_deletion"])


def archetypes(results: Numbers) -> dict[str, Numbers]:
    """Return the numbers of archetypes by each method, from no prior to the strongest, and of photos."""
    return {name: results[name] for name in ("plain", "gaussian", "natural", "photos") if results.get(name)}


def recognition(results: Numbers) -> dict[str, Numbers]:
    """Return what the network itself, then each judge, recognises of archetypes and photos."""
    return {
        f"{name}, by {network}": {"classes": kind["classes"], **numbers}
        for name, kind in archetypes(results).items()
        for network, numbers in {"the network itself": kind, **kind["judges"]}.items()
    }


def of_archetype(row: Numbers) -> list[str]:
    """Return what the network itself, then each judge, says of an archetype."""
    networks = {"own": row, **row["judges"]}
    return [f"{network}: {number(of['probability'])} (rank {of['rank']})" for network, of in networks.items()]


def of_photo(lines: list[dict[str, str]], c: int) -> list[str]:
    """Return what the network itself, then each judge, says of the photo of a class: from archetypes.csv."""
    line = next((line for line in lines if line["class"] == str(c)), {})
    names = {key: key.removeprefix("photo_probability").removeprefix("_by_") or "own" for key in line}
    return [
        f"{names[key]}: {float(line[key]):.3f}" for key in line if key.startswith("photo_probability") and line[key]
    ]
