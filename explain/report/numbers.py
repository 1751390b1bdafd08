"""Numbers of metrics.json and rows.jsonl as the page writes them, and the lines of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from explain.report.figures import label

Numbers = dict[str, Any]


def number(value: Any, decimals: int = 3) -> str:
    """Return a number for a text or a table: a float with these decimals, an int with commas, "–" for None."""
    if not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.{decimals}f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def measured(numbers: Numbers, key: str) -> str:
    """Return a number, with its standard error and its 95 % interval where it has them.

    A fourth and a fifth decimal are added where the error would be 0.000 without them.
    """
    error, interval = numbers.get(f"{key}_standard_error"), numbers.get(f"{key}_interval")
    decimals = next((d for d in (3, 4, 5) if error and round(error, d)), 3)
    text = number(numbers.get(key), decimals) + ("" if error is None else f" ± {number(error, decimals)}")
    return f"{text} ({number(interval[0])} to {number(interval[1])})" if interval else text


def by_label(lines: Numbers, order: Iterable[str] = ()) -> dict[str, Numbers]:
    """Return numbers by readable names, those of `order` first; empty ones are left out."""
    return {label(kind): lines[kind] for kind in dict.fromkeys([*order, *lines]) if lines.get(kind)}


def known(results: Numbers, measures: Iterable[Sequence[str]]) -> dict[str, Numbers]:
    """Return those measures (key, meaning, better, yardstick) that results have; a yardstick may be another key."""
    lines = {}
    for key, meaning, better, yardstick in measures:
        if key in results:
            beside = f"{label(yardstick)}: {number(results[yardstick])}" if yardstick in results else yardstick
            lines[label(key)] = {"value": results[key], "meaning": meaning, "better": better, "yardstick": beside}
    return lines


def maps(results: Numbers) -> dict[str, Numbers]:
    """Return the measures of each kind of map, then of the random order, which has a score alone."""
    lines = {}
    for kind in dict.fromkeys([*results["kinds"], *results["insertion_minus_deletion"]]):
        score = results["insertion_minus_deletion"].get(kind, {})
        lines[label(kind)] = {
            "maps": results.get(f"{kind}_status", {}).get("ok"),
            "half_mass_area": results.get(f"mean_{kind}_half_mass_area"),
            "roughness": results.get(f"mean_{kind}_roughness"),
            "score": score.get("mean"),
            "score_standard_error": score.get("standard_error"),
            "maps_scored": score.get("images"),
        }
    return lines


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
