"""The report of 2h: metrics, findings, tables and figures of the rows, which hold all that was computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from explain.basics.errors import UserError, quantity
from explain.methods import selective
from explain.networks.classifier import Classifier
from explain.report.figures import (
    BLACK,
    BLUE,
    CYCLE,
    GREY,
    RED,
    SKY,
    WIDTH,
    draw_figure,
    draw_heading,
    draw_legend,
    draw_picture,
    file_name,
    measured_on,
    panel_grid,
    save_pictures,
    short,
)
from explain.report.page import finish
from explain.run.output import OutputFolder

SETTLING_SHOWN = 5  # images whose curves can be told apart


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, tables and metrics of the rows; those with a label judge what the others say.

    Raises UserError where all are labelled: none of the images that were asked for can be used.
    """
    options = output.options
    tested, labelled = ([row for row in rows if ("label" in row) == known] for known in (False, True))
    if not tested:
        raise UserError(f"none of the images can be used, the first because {skipped[0]['reason']}")
    ordered = by_uncertainty(tested)
    rounded = mean_rounding([row["bfloat16"] for row in rows if "bfloat16" in row])
    judged, judged_tables = selective.judge(labelled, options.seed)
    judged_on = measured_on([row["label"] for row in labelled], output.classes)
    verdicts, lines = selective.describe_verdicts(judged), findings(ordered)
    of_rounding = rounding_in_words(rounded)
    save_pictures(output, tested[: options.show], photos, model)
    draw_figure(
        output,
        "mc_dropout",
        draw,
        ordered[: options.show],
        len(tested),
        photos,
        model,
        options.passes,
        [verdicts, *of_rounding],
    )
    draw_figure(output, "uncertainty", draw_order, ordered, model, options.passes)
    if options.passes > 1:
        draw_figure(output, "settling", draw_settling, ordered[:SETTLING_SHOWN], model)
    if judged and any("auroc_interval" in measure for measure in judged["mistakes"].values()):
        arguments = labelled, judged_on["measured_on"], judged["mistakes"], judged["predictions"], model
        draw_figure(output, "mistakes", draw_mistakes, *arguments)
        lines.append(selective.verdict(judged["mistakes"]))
    elif not options.images:
        lines.append(verdicts)
    if judged.get("mistakes_under_shift"):
        disturbed = measured_on([row["label"] for row in labelled if "disturbed" in row], output.classes)
        draw_figure(output, "shift", draw_shift, judged["mistakes_under_shift"], disturbed["measured_on"], model)
    results = summary(tested, options.passes, len(model.categories)) | judged
    results |= {"bfloat16": rounded} if rounded else {}
    results |= judged_on if labelled else {}
    all_tables = tables(tested, ordered, model.categories) | judged_tables
    finish(output, rows, skipped, results, all_tables, model, findings=lines + of_rounding)


def by_uncertainty(rows: list[dict]) -> list[dict]:
    """Return the rows in order of mutual information, the least sure image first."""
    return sorted(rows, key=lambda row: (-row["mutual_information"], row["index"]))


def least_sure(rows: list[dict]) -> list[dict]:
    """Return the image with the largest mutual information, then those that cannot be told apart from it.

    That is, whose difference is below twice its standard error, by the errors of both.
    """
    first, *rest = by_uncertainty(rows)
    key = "mutual_information_standard_error"

    def is_apart(row: dict) -> bool:
        difference = first["mutual_information"] - row["mutual_information"]
        return row[key] is not None and difference > 2 * np.hypot(first[key], row[key])

    return [first, *(row for row in rest if not is_apart(row))]


def summary(rows: list[dict], passes: int, classes: int) -> dict:
    """Return the metrics, from sums over rows."""
    keys = ("deterministic_probability", "mean_probability", "agreement", "deterministic_entropy")
    keys += ("predictive_entropy", "mutual_information")
    most_uncertain, *others = least_sure(rows)
    return {
        "images": len(rows),
        "passes": passes,
        "mean_and_single_pass_disagree": sum(row["class"] != row["deterministic_class"] for row in rows),
        "most_uncertain": most_uncertain["path"],
        "not_told_apart_from_most_uncertain": [row["path"] for row in others],
        "entropy_of_chance": float(np.log(classes)),
        **{f"mean_{key.removeprefix('mean_')}": sum(row[key] for row in rows) / len(rows) for key in keys},
    }


def rounding(rounded: Tensor, full: Tensor) -> dict[str, float]:
    """Return what rounding changes in the mean probability of an image's first class, and the mean's standard error.

    From the logits (T, classes) of the same passes with rounded factors and in full precision.
    """
    p, exact = (logits.double().softmax(1).cpu().numpy() for logits in (rounded, full))
    first = exact.mean(0).argmax()
    change = p[:, first].mean() - exact[:, first].mean()
    return {"change": float(change), "standard_error": float(exact[:, first].std(ddof=1) / np.sqrt(len(exact)))}


def mean_rounding(compared: list[dict]) -> dict:
    """Return the root mean square over images of what `rounding` has found; nothing where it was not asked for."""
    if not compared:
        return {}
    return {"images": len(compared)} | {
        key: float(np.sqrt(np.mean([row[key] ** 2 for row in compared]))) for key in compared[0]
    }


def rounding_in_words(rounded: dict) -> list[str]:
    """Return what is said of `mean_rounding`."""
    if not rounded:
        return []
    change, error, images = rounded["change"], rounded["standard_error"], quantity(rounded["images"], "image")
    place = "within" if change <= error else "BEYOND"
    return [
        f"Products after dropout in bfloat16 change the first class's mean by {change:.1g}, {place} its Monte Carlo "
        f"standard error of {error:.1g} (root mean squares over {images})."
    ]


def findings(ordered: list[dict]) -> list[str]:
    """Return what is said of the least sure and the surest image."""
    others = [file_name(row) for row in least_sure(ordered)[1:]]
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    tail = f"; not told apart from it: {named}" if others else ""
    lines = [f"least sure: {file_name(ordered[0])}, {information(ordered[0])}{tail}"]
    return lines + ([f"surest: {file_name(ordered[-1])}, {information(ordered[-1])}"] if len(ordered) > 1 else [])


def tables(rows: list[dict], ordered: list[dict], categories: Sequence[str]) -> dict[str, list[dict]]:
    """Return the tables by their file names: the images in order of uncertainty, and the leading classes of each."""
    images = [
        {"order": order, "name": categories[row["class"]], "deterministic_name": categories[row["deterministic_class"]]}
        | row
        for order, row in enumerate(ordered, start=1)
    ]
    quantiles = ("min", "quartile_1", "median", "quartile_3", "max")
    classes = [
        {"index": row["index"], "path": row["path"], "name": categories[c["class"]], **c}
        | dict(zip(quantiles, c["quantiles"], strict=True))
        for row in rows
        for c in row["leading"]
    ]
    return {"uncertainty.csv": images, "leading_classes.csv": classes}


def information(row: dict, name: str = "mutual information") -> str:
    """Return an image's mutual information with its standard error, in words."""
    error = row["mutual_information_standard_error"]
    return f"{name} {row['mutual_information']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def draw(
    rows: list[dict], total: int, photos: Sequence[Path], model: Classifier, passes: int, notes: list[str]
) -> tuple[Figure, list[str]]:
    """Draw each picture beside box plots of its leading classes over the passes."""
    figure, axes = panel_grid(len(rows), ["", ""], 1 if len(rows) == 1 else 2, text_lines=4, widths=[1, 1.5])
    for (left, right), row in zip(axes, rows, strict=True):
        draw_picture(left, model, photos[row["index"]])
        numbers = f"H {row['predictive_entropy']:.2f}, CV {row['coefficient_of_variation'] or 0:.2f}"
        draw_heading(
            (left, right),
            short(file_name(row), 44),
            f"{information(row, 'MI')}, {numbers}, {row['agreement']:.0%} agree",
        )
        for place, c in enumerate(row["leading"]):
            least, low, median, high, most = c["quantiles"]
            right.plot([least, most], [place, place], color=GREY, linewidth=0.8, zorder=1)
            right.plot([low, high], [place, place], color=SKY, linewidth=5, solid_capstyle="butt", zorder=2)
            right.plot(median, place, "|", color=BLUE, markersize=5, markeredgewidth=1.5, zorder=3)
            right.plot(c["mean"], place, "o", color=BLACK, markersize=2.5, zorder=4)
            right.plot(c["deterministic"], place, "|", color=RED, markersize=9, markeredgewidth=1.2, zorder=3)
            number = f"{c['mean']:.3f}" + ("" if (sd := c["standard_deviation"]) is None else f" ± {sd:.3f}")
            right.text(0, place - 0.22, short(model.categories[c["class"]], 15), in_layout=False)
            right.text(1, place - 0.22, number, ha="right", in_layout=False)
        right.set(xlim=(-0.03, 1.03), ylim=(len(row["leading"]) - 0.6, -0.75), yticks=[], xticks=[0, 0.5, 1])
        right.set_xlabel("probability", labelpad=1)
        right.spines["left"].set_visible(False)
    shown = f"the {len(rows)} least sure of {total} pictures" if len(rows) < total else quantity(total, "picture")
    return figure, [
        f"{model.label}: {passes:,} passes with dropout on, {shown}",
        "Most likely classes with the mean ± standard deviation of their probability over passes. Thin line: least to "
        "largest; bar: quartiles, with the median; dot: mean; red: the single pass without dropout. MI: mutual "
        "information (nats, ± standard error); H: predictive entropy (nats); CV: coefficient of variation of the first "
        f"class. Least sure first, by MI. Pictures: {model.view}.",
        *notes,
    ]


def draw_order(rows: list[dict], model: Classifier, passes: int) -> tuple[Figure, list[str]]:
    """Draw mutual information and predictive entropy of all images, in order of mutual information."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    places = np.arange(1, len(rows) + 1)
    panels = (
        (above, "mutual_information", BLUE, "mutual information: the passes disagree"),
        (below, "predictive_entropy", BLUE, "predictive entropy: all uncertainty"),
    )
    for axes, key, colour, label in panels:
        values = np.array([row[key] for row in rows])
        errors = 2 * np.array([row[f"{key}_standard_error"] or 0 for row in rows])
        if len(rows) <= 40:
            axes.errorbar(places, values, errors, fmt="o", markersize=3, color=colour, label=label)
        else:  # one artist for all images: one for each would take minutes and gigabytes for 50,000
            axes.plot(places, values, color=colour, label=label)
            axes.fill_between(places, values - errors, values + errors, color=colour, alpha=0.3, linewidth=0)
        axes.set_ylim(0, 1.3 * (values + errors).max() or 1)
        axes.set_ylabel("nats")
    single = [row["deterministic_entropy"] for row in rows]
    below.plot(places, single, "_" if len(rows) <= 40 else ",", color=RED, label="entropy of the single pass")
    for axes in (above, below):
        axes.legend(loc="upper right")
    below.set_xlabel("images, least sure first")
    if len(rows) <= 40:
        names = [short(file_name(row), 20) for row in rows]
        below.set_xticks(places, names, rotation=90 if len(rows) > 5 else 0)
    return figure, [
        f"{model.label}: how unsure it is of {quantity(len(rows), 'image')}, over {passes:,} passes",
        "Bars: two Monte Carlo standard errors. Images whose bars overlap cannot be put in order.",
    ]


def draw_settling(rows: list[dict], model: Classifier) -> tuple[Figure, list[str]]:
    """Draw how variance and mutual information settle with the number of passes."""
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    panels = figure.subplots(1, 2)
    measures = ("variance", "mutual_information")
    for axes, key, unit in zip(panels, measures, ("", " (nats)"), strict=True):
        for row in rows:
            known = [s for s in row["settling"] if s[f"{key}_standard_error"] is not None]
            passes = [s["passes"] for s in known]
            values, errors = (np.array([s[k] for s in known]) for k in (key, f"{key}_standard_error"))
            axes.plot(passes, values, "o-", markersize=2.5, label=short(file_name(row), 20))
            axes.fill_between(passes, values - errors, values + errors, alpha=0.2, linewidth=0)
        axes.set(xscale="log", xlabel="passes", ylabel=f"{key.replace('_', ' ')}{unit}")
        axes.set_xticks(passes, [f"{n:,}" for n in passes], minor=False)
        axes.minorticks_off()
        axes.set_ylim(0)
    axes.legend(loc="lower right")
    return figure, [
        f"{model.label}: how many passes are enough?",
        f"Estimates from the first passes of {'each' if len(rows) > 1 else 'one'} of "
        f"{quantity(len(rows), 'image')}, the least sure first; band: one Monte Carlo standard error.",
    ]


COLOURS = dict(zip(selective.MEASURES, [*CYCLE[:4], CYCLE[4], BLACK, GREY, SKY], strict=True))


def draw_mistakes(
    rows: list[dict], sample: str, judged: dict[str, dict], predictions: dict[str, dict], model: Classifier
) -> tuple[Figure, list[str]]:
    """Draw the risk-coverage curves of all measures, and their AUROC for mistakes with its 95% interval."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    coverage = np.arange(1, len(rows) + 1) / len(rows)
    for name in judged:
        sign, whose = selective.MEASURES[name]
        uncertainty = sign * np.array([row[name] for row in rows])
        mistakes = np.array([not row[whose]["right"] for row in rows])
        width = 2 if name == selective.BASELINE else 1
        left.plot(coverage, selective.risk_coverage(uncertainty, mistakes), color=COLOURS[name], linewidth=width)
    left.set(xlabel="coverage: share of the images, surest first", ylabel="risk: share of mistakes among them", ylim=0)
    for place, (name, measure) in enumerate(judged.items()):
        if measure["auroc"] is not None:
            errors = np.abs(np.array(measure["auroc_interval"])[:, None] - measure["auroc"])
            right.errorbar(measure["auroc"], place, xerr=errors, fmt="o", markersize=4, color=COLOURS[name])
    right.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(judged)), [selective.in_words(name) for name in judged])
    right.set(xlabel="AUROC for mistakes (dashed: a coin's)", ylim=(len(judged) - 0.5, -0.5))
    mean, single = predictions["mean"], predictions["single"]
    return figure, [
        f"{model.label}: {selective.verdict(judged)}",
        f"{sample}. Bars: 95 % bootstrap intervals over images; lines in the colours "
        "of the dots, the single pass's probability thick. "
        f"Mean of the passes: accuracy {mean['accuracy']:.3f}, loss {mean['loss']:.3f}, calibration error "
        f"{mean['expected_calibration_error']:.3f}; single pass: {single['accuracy']:.3f}, {single['loss']:.3f}, "
        f"{single['expected_calibration_error']:.3f}.",
    ]


def draw_shift(shift: dict[str, dict], sample: str, model: Classifier) -> tuple[Figure, list[str]]:
    """Draw accuracy and confidence under each disturbance, and each measure's AUROC for mistakes."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.22))
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    places = range(len(shift))
    for key, marker, colour in (("accuracy", "o", BLUE), ("confidence", "s", RED)):
        left.plot(places, [of_one[key] for of_one in shift.values()], marker, color=colour, markersize=4, label=key)
    left.set(ylim=(0, 1))
    left.legend(loc="lower left")
    for name in selective.MEASURES:
        values = [(of_one.get(name) or {}).get("auroc") for of_one in shift.values()]
        known = [np.nan if value is None else value for value in values]
        style = dict(color=COLOURS[name], linewidth=2 if name == selective.BASELINE else 1)
        right.plot(places, known, "o-", markersize=2.5, label=selective.in_words(name), **style)
    right.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    right.set(ylabel="AUROC for mistakes", ylim=(0.2, 1.02))
    for axes in (left, right):
        axes.set_xticks(places, [name.replace("_", " ") for name in shift], rotation=60, ha="right")
    draw_legend(figure.add_subplot(grid[1, :]), right, columns=3)
    return figure, [
        f"{model.label}: does it know that it errs on disturbed pictures?",
        f"{sample}, each as it is (none) and under every disturbance; pooled: "
        "all disturbances together. Nothing is said where fewer than five are wrong, or right. Dashed: a coin's.",
    ]
