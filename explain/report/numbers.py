"""Numbers and names as a reader knows them, and the lines of the page's tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Numbers = dict[str, Any]


def label(kind: str) -> str:
    """Return a key, such as a kind of map, as a reader knows it."""
    return kind.replace("grad_cam", "Grad-CAM").replace("_", " ")


def number(value: Any, decimals: int = 3) -> str:
    """Return a number for a text or a table: a float with these decimals, an int with commas, "–" for None."""
    if not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.{decimals}f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def with_error(value: float | None, error: float | None) -> str:
    """Return a number ± its error, with at least three decimals, and with as many as show a digit of the error."""
    if not error:
        return number(value) + ("" if error is None else " ± 0")
    decimals = max(3, -math.floor(math.log10(error)))
    if decimals > 5:
        return f"{value:.2g} ± {error:.0e}"
    return f"{number(value, decimals)} ± {number(error, decimals)}"


def measured(numbers: Numbers, key: str) -> str:
    """Return a number with its standard error and its 95 % interval, if it has them."""
    text, interval = with_error(numbers.get(key), numbers.get(f"{key}_standard_error")), numbers.get(f"{key}_interval")
    return f"{text} ({number(interval[0])} to {number(interval[1])})" if interval else text


def by_label(lines: Numbers, order: Iterable[str] = ()) -> dict[str, Numbers]:
    """Return the entries that are not empty by their labels, those of `order` first."""
    return {label(kind): lines[kind] for kind in dict.fromkeys([*order, *lines]) if lines.get(kind)}


def known(results: Numbers, measures: Iterable[Sequence[str]]) -> dict[str, Numbers]:
    """Return the measures (key, meaning, better, yardstick) that results have; a yardstick may be another key."""
    lines = {}
    for key, meaning, better, yardstick in measures:
        if key in results:
            beside = f"{label(yardstick)}: {number(results[yardstick])}" if yardstick in results else yardstick
            lines[label(key)] = {"value": results[key], "meaning": meaning, "better": better, "yardstick": beside}
    return lines


def maps(results: Numbers) -> dict[str, Numbers]:
    """Return the measures of each kind of map, then of the random order, which has only a score."""
    return {
        label(kind): {
            "maps": results.get(f"{kind}_status", {}).get("ok"),
            "half_mass_area": results.get(f"mean_{kind}_half_mass_area"),
            "roughness": results.get(f"mean_{kind}_roughness"),
            "score": score.get("mean"),
            "score_standard_error": score.get("standard_error"),
            "maps_scored": score.get("images"),
        }
        for kind, score in (dict.fromkeys(results["kinds"], {}) | results["insertion_minus_deletion"]).items()
    }


def archetypes(results: Numbers) -> dict[str, Numbers]:
    """Return the numbers of the archetypes by method, from no prior to the strongest, and of the photos."""
    return {name: results[name] for name in ("plain", "gaussian", "natural", "photos") if results.get(name)}


def recognition(results: Numbers) -> dict[str, Numbers]:
    """Return the fractions of archetypes and photos that the network itself, then each judge, recognises."""
    return {
        f"{name}, by {network}": {"classes": kind["classes"], **numbers}
        for name, kind in archetypes(results).items()
        for network, numbers in {"the network itself": kind, **kind["judges"]}.items()
    }
