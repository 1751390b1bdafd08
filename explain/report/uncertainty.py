"""The report of 2h: metrics, findings, tables and figures of the rows, which hold all that was computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from explain.basics.errors import UserError, quantity
from explain.methods import selective
from explain.methods.calibration import wilson_interval
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
    draw_file,
    draw_heading,
    draw_legend,
    file_name,
    measured_on,
    panel_grid,
    save_pictures,
    short,
)
from explain.report.page import finish
from explain.run.output import OutputFolder

SETTLING_SHOWN = 5  # images whose curves can be told apart
MEASURES = ("variance", "coefficient_of_variation", "agreement", "predictive_entropy", "mutual_information")


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, tables and metrics of the rows; those with a label judge what the others say.

    Raises UserError where none of the images that were asked for can be used.
    """
    options, passes = output.options, output.options.passes
    tested, labelled = ([row for row in rows if key in row] for key in ("leading", "label"))
    if not tested:
        raise UserError(f"none of the images can be used, the first because {skipped[0]['reason']}")
    ordered = by_uncertainty(tested)
    judged, judged_tables = selective.summary(labelled, options.seed)
    verdicts, lines = selective.describe_verdicts(judged), findings(ordered)
    judged_on = measured_on([row["label"] for row in labelled], output.classes)
    results = summary(tested, passes, len(model.categories)) | judged | (judged_on if labelled else {})
    save_pictures(output, tested[: options.show], photos, model)
    draw_figure(output, "mc_dropout", draw, ordered[: options.show], len(tested), photos, model, passes, verdicts)
    if len(ordered) > 1:
        draw_figure(output, "uncertainty", draw_order, ordered, model, passes)
    if len(ordered[0]["settling"]) > 1:
        sentence = enough_in_words(results["passes_enough"], passes, len(ordered))
        draw_figure(output, "settling", draw_settling, ordered[:SETTLING_SHOWN], sentence, model)
        lines.append(sentence)
    else:
        lines.append("settling.png is not drawn: it takes at least 4 passes")
    if any("auroc_interval" in measure for measure in judged.get("mistakes", {}).values()):
        draw_figure(output, "mistakes", draw_mistakes, labelled, judged_on["measured_on"], judged, model)
        lines.append(selective.verdict(judged["mistakes"]))
    elif labelled or not options.images:
        lines.append(verdicts)
    if judged.get("mistakes_under_shift"):
        disturbed = [row["label"] for row in labelled if "disturbed" in row]
        sample = measured_on(disturbed, output.classes)["measured_on"]
        sample += f", {quantity(options.passes_to_judge, 'pass')} each"
        draw_figure(output, "shift", draw_shift, judged["mistakes_under_shift"], len(disturbed), sample, model)
    all_tables = tables(tested, ordered, model.categories) | judged_tables
    finish(output, rows, skipped, results, all_tables, model, findings=lines)


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
    """Return the metrics, from sums over rows; a single image is not ranked."""
    keys = ("deterministic_probability", "mean_probability", "agreement", "deterministic_entropy")
    keys += ("predictive_entropy", "mutual_information")
    most_uncertain, *others = least_sure(rows) if len(rows) > 1 else [{"path": None}]
    return {
        "images": len(rows),
        "passes": passes,
        "passes_enough": passes_enough(by_uncertainty(rows), passes),
        "mean_and_single_pass_disagree": sum(row["class"] != row["deterministic_class"] for row in rows),
        "most_uncertain": most_uncertain["path"],
        "not_told_apart_from_most_uncertain": [row["path"] for row in others],
        "entropy_of_chance": float(np.log(classes)),
        **{f"mean_{key.removeprefix('mean_')}": sum(row[key] for row in rows) / len(rows) for key in keys},
    }


def passes_enough(ordered: list[dict], passes: int) -> dict[str, int | None]:
    """Return the number of passes after which two standard errors are within a tenth of each image's measures.

    And, as `order`, within the difference of each image from the next in order of mutual information. An error e after
    T passes is d after T (e / d)^2. None where no number is enough: d is 0. Nothing after a single pass.
    """
    if passes < 2:
        return {}

    def after(pairs: Iterable[tuple[float, float]]) -> int | None:  # errors, and what two of them are to be within
        needed = [passes * (2 * error / within) ** 2 if within else np.inf for error, within in pairs if error]
        most = max(needed, default=0)
        return max(2, int(np.ceil(most))) if np.isfinite(most) else None

    enough = {key: after((row[f"{key}_standard_error"], 0.1 * abs(row[key])) for row in ordered) for key in MEASURES}
    if len(ordered) > 1:
        key, error = "mutual_information", "mutual_information_standard_error"
        enough["order"] = after((np.hypot(a[error], b[error]), a[key] - b[key]) for a, b in pairwise(ordered))
    return enough


def enough_in_words(enough: dict[str, int | None], passes: int, images: int) -> str:
    """Return what `passes_enough` has found, in a sentence."""
    rounded = {key: np.inf if n is None else float(f"{n:.2g}") for key, n in enough.items()}
    about = {key: f"{n:,.0f}" if n < 1e6 else "over a million" for key, n in rounded.items()}
    order = f", {about['order']} for the order of the {images:,} images" if "order" in about else ""
    return (
        f"Enough passes, by two standard errors of these {passes:,}: about {about['variance']} for each variance to a "
        f"tenth of its value, {about['mutual_information']} for each mutual information{order}."
    )


def findings(ordered: list[dict]) -> list[str]:
    """Return the lines that the script prints of the least sure image, and of the surest if it can be told apart."""
    first, last = ordered[0], ordered[-1]
    if first is last:
        return [f"{file_name(first)}: mutual information {information(first)}"]
    others = [file_name(row) for row in least_sure(ordered)[1:]]
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    tail = f"; not told apart from it: {named}" if others else ""
    least = f"least sure by mutual information: {file_name(first)}, {information(first)}{tail}"
    surest = [f"surest by mutual information: {file_name(last)}, {information(last)}"]
    return [least, *surest[: len(others) < len(ordered) - 1]]


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


def information(row: dict) -> str:
    """Return an image's mutual information with its standard error."""
    return with_error(row["mutual_information"], row["mutual_information_standard_error"])


def with_error(value: float, error: float | None) -> str:
    """Return a number with its error, to as many decimals as the error's first digit needs, and three at least."""
    if not error:
        return f"{value:.3f}" + ("" if error is None else " ± 0")
    decimals = max(3, -int(np.floor(np.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}" if decimals < 6 else f"{value:.2g} ± {error:.0e}"


def draw(
    rows: list[dict], total: int, photos: Sequence[Path], model: Classifier, passes: int, verdicts: str
) -> tuple[Figure, list[str]]:
    """Draw each picture beside box plots of its leading classes over the passes."""
    figure, axes = panel_grid(len(rows), ["", ""], 1 if len(rows) == 1 else 2, text_lines=4, widths=[1, 1.5])
    for (left, right), row in zip(axes, rows, strict=True):
        draw_file(left, model, photos[row["index"]])
        variation = row["coefficient_of_variation"]
        numbers = f"MI {information(row)}, H {row['predictive_entropy']:.2f}, "
        numbers += "" if variation is None else f"CV {variation:.2f}, "
        draw_heading((left, right), short(file_name(row), 44), f"{numbers}agreement {row['agreement']:.2f}")
        for place, c in enumerate(row["leading"]):
            least, low, median, high, most = c["quantiles"]
            right.plot([least, most], [place, place], color=GREY, linewidth=0.8, zorder=1)
            right.plot([low, high], [place, place], color=SKY, linewidth=5, solid_capstyle="butt", zorder=2)
            right.plot(median, place, "|", color=BLUE, markersize=5, markeredgewidth=1.5, zorder=3)
            right.plot(c["mean"], place, "o", color=BLACK, markersize=2.5, zorder=4)
            right.plot(c["deterministic"], place, "|", color=RED, markersize=9, markeredgewidth=1.2, zorder=3)
            right.text(0, place - 0.22, short(model.categories[c["class"]], 15), in_layout=False)
            number = with_error(c["mean"], c["standard_deviation"])
            right.text(1, place - 0.22, number, ha="right", in_layout=False)
        right.set(xlim=(-0.03, 1.03), ylim=(len(row["leading"]) - 0.6, -0.75), yticks=[], xticks=[0, 0.5, 1])
        right.set_xlabel("probability", labelpad=1)
        right.spines["left"].set_visible(False)
    least_sure = "the least sure" if len(rows) == 1 else f"the {len(rows)} least sure"
    shown = f"{least_sure} of {total} pictures" if len(rows) < total else quantity(total, "picture")
    return figure, [
        f"{model.label}: {quantity(passes, 'pass')} with dropout on, {shown}",
        "Most likely classes with the mean ± standard deviation of their probability over passes. Thin line: least to "
        "largest; bar: quartiles, with the median; dot: mean; tall orange mark: the single pass without dropout. MI: "
        "mutual information (nats, ± standard error); H: predictive entropy (nats); CV: coefficient of variation of "
        "the first class; agreement: fraction of the passes that it wins. "
        + ("Least sure first, by MI. " if total > 1 else "")
        + f"Pictures: {model.view}.",
        verdicts,
    ]


def draw_order(rows: list[dict], model: Classifier, passes: int) -> tuple[Figure, list[str]]:
    """Draw mutual information and predictive entropy of all images, in order of mutual information."""
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    places, size = np.arange(1, len(rows) + 1), 3.5 if len(rows) <= 40 else 2.2
    for axes, key, label in (
        (above, "mutual_information", "mutual information: the passes disagree"),
        (below, "predictive_entropy", "predictive entropy: all uncertainty"),
    ):
        values = np.array([row[key] for row in rows])
        errors = np.array([row[f"{key}_standard_error"] or 0 for row in rows])
        axes.vlines(places, values - errors, values + errors, color=BLUE)  # one artist, however many images
        axes.plot(places, values, "o", markersize=size, color=BLUE, label=label)
        axes.set(ylim=(0, 1.3 * (values + errors).max() or 1), ylabel="nats")
    single = [row["deterministic_entropy"] for row in rows]
    below.plot(places, single, "_", markersize=2 * size, color=RED, label="entropy of the single pass")
    first, *others = least_sure(rows)
    indices = {row["index"] for row in others}
    together = [(place, row["mutual_information"]) for place, row in enumerate(rows, 1) if row["index"] in indices]
    if together:
        label = f"not told apart from {short(file_name(first), 20)}"
        above.plot(*zip(*together, strict=True), "o", color=BLUE, markersize=size, markerfacecolor="white", label=label)
    for axes in (above, below):
        axes.legend(loc="upper right")
    below.set(xlabel="images, least sure by mutual information first", xlim=(0.4, len(rows) + 0.6))
    if len(rows) <= 40:
        names = [short(file_name(row), 20) for row in rows]
        below.set_xticks(places, names, rotation=90 if len(rows) > 5 else 0)
    return figure, [
        f"{model.label}: how unsure it is of {quantity(len(rows), 'image')}, over {quantity(passes, 'pass')}",
        "Bars: one Monte Carlo standard error e. Two images are told apart where they differ by more than "
        f"2 √(e₁² + e₂²). Not told apart from the first by mutual information: {len(others) or 'none'} of the others."
        if passes > 1
        else "A single pass has no standard errors: no image can be told apart from another.",
    ]


def draw_settling(rows: list[dict], sentence: str, model: Classifier) -> tuple[Figure, list[str]]:
    """Draw how variance and mutual information settle with the number of passes."""
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.15 if len(rows) > 3 else 0.08))
    measures = (
        ("variance", "variance of the first class's probability"),
        ("mutual_information", "mutual information (nats)"),
    )
    for column, (key, label) in enumerate(measures):
        axes = figure.add_subplot(grid[0, column])
        for place, row in enumerate(rows):
            passes = np.array([s["passes"] for s in row["settling"]])
            values, errors = (np.array([s[k] for s in row["settling"]]) for k in (key, f"{key}_standard_error"))
            beside = 1.05 ** (place - (len(rows) - 1) / 2)  # or the bars would cover each other
            axes.errorbar(beside * passes, values, errors, fmt="o-", markersize=2.5, label=short(file_name(row), 28))
        axes.set(xscale="log", xlabel="passes", ylabel=label)
        axes.set_xticks(passes, [f"{n:,}" for n in passes], minor=False)
        axes.minorticks_off()
        axes.set_ylim(0)
    draw_legend(figure.add_subplot(grid[1, :]), axes, columns=3)
    return figure, [
        f"{model.label}: how many passes are enough?",
        f"Estimates from the first passes of {quantity(len(rows), 'image')}"
        f"{', the least sure first' if len(rows) > 1 else ''}; bars: one Monte Carlo standard error.",
        sentence,
    ]


COLOURS = dict(zip(selective.MEASURES, [*CYCLE[:5], BLACK, GREY, SKY], strict=True))


def draw_mistakes(rows: list[dict], sample: str, judged: dict, model: Classifier) -> tuple[Figure, list[str]]:
    """Draw the risk-coverage curves of all measures, and their AUROC for mistakes with its 95% interval."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    coverage = np.arange(1, len(rows) + 1) / len(rows)
    measures = judged["mistakes"]
    for place, (name, measure) in enumerate(measures.items()):
        sign, whose = selective.MEASURES[name]
        uncertainty = sign * np.array([row[name] for row in rows])
        mistakes = np.array([not row[whose]["right"] for row in rows])
        width = 2 if name == selective.BASELINE else 1
        left.plot(coverage, selective.risk_coverage(uncertainty, mistakes), color=COLOURS[name], linewidth=width)
        if "auroc_interval" in measure:
            errors = np.abs(np.array(measure["auroc_interval"])[:, None] - measure["auroc"])
            right.errorbar(measure["auroc"], place, xerr=errors, fmt="o", markersize=4, color=COLOURS[name])
        else:
            right.text(0.5, place, "too few mistakes, or right answers", ha="center", va="bottom")
    left.set(xlabel="coverage: share of the images, surest first", ylabel="risk: share of mistakes among them", ylim=0)
    right.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(measures)), [selective.in_words(name) for name in measures])
    right.set(xlabel="AUROC for mistakes (dashed: chance)", ylim=(len(measures) - 0.5, -0.5))
    scores = []
    for whose, prediction in (("mean", "mean of the passes"), ("single", "single pass")):
        of, wrong = judged["predictions"][whose], sum(not row[whose]["right"] for row in rows)
        error = of["expected_calibration_error"]
        scores.append(
            f"{prediction}: {quantity(wrong, 'mistake')}, loss {of['loss']:.3f}, calibration error {error:.3f}"
        )
    return figure, [
        f"{model.label}: {selective.verdict(measures)}",
        f"{sample}, {quantity(rows[0]['passes'], 'pass')} each; {'; '.join(scores)}. Bars: 95 % bootstrap intervals "
        "over images; lines in the colours of the dots, the single pass's probability thick.",
    ]


def draw_shift(shift: dict[str, dict], images: int, sample: str, model: Classifier) -> tuple[Figure, list[str]]:
    """Draw accuracy and confidence under each disturbance, and AUROC for mistakes of the measures of `SHOWN`."""
    measures = [
        name for name in selective.SHOWN if any(of.get(name, {}).get("auroc") is not None for of in shift.values())
    ]
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    grid = figure.add_gridspec(2, 1 + bool(measures), height_ratios=(1, 0.14))
    panels = [figure.add_subplot(grid[0, column]) for column in range(1 + bool(measures))]
    places = np.arange(len(shift))
    accuracy, confidence = (np.array([of[key] for of in shift.values()]) for key in ("accuracy", "confidence"))
    bounds = [wilson_interval(a * images, images) for a in accuracy[:-1]] + [(accuracy[-1],) * 2]  # pooled: without
    errors = np.abs(np.array(bounds).T - accuracy)
    panels[0].errorbar(places - 0.1, accuracy, errors, fmt="o", markersize=4, color=BLUE, label="accuracy")
    panels[0].plot(places + 0.1, confidence, "s", markersize=4, color=RED, label="confidence")
    panels[0].set(ylim=(0, 1), ylabel="mean over images")
    panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for n, name in enumerate(measures):
        known = [of.get(name, {}) for of in shift.values()]
        values = np.array([np.nan if of.get("auroc") is None else of["auroc"] for of in known])
        errors = np.array([of.get("auroc_standard_error") or 0 for of in known])
        style = dict(markersize=3, color=COLOURS[name], label=selective.in_words(name))
        panels[1].errorbar(places + 0.16 * (n - 1.5), values, errors, fmt="os^D"[n], **style)
    if measures:
        panels[1].axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
        panels[1].set(ylabel="AUROC for mistakes", xlim=panels[0].get_xlim())
        draw_legend(figure.add_subplot(grid[1, :]), panels[1], columns=2)
    wrong = [of["mutual_information"]["mistakes"] for of in shift.values()]
    labels = [f"{name.replace('_', ' ')} ({count})" for name, count in zip(shift, wrong, strict=True)]
    for axes in panels:
        axes.set_xticks(places, labels, rotation=60, ha="right")
    few = f"fewer than {selective.FEWEST} mistakes or right answers"
    return figure, [
        f"{model.label}: does it know that it errs on disturbed pictures?",
        f"{sample}, as they are (none) and under each disturbance, with the number of mistakes; pooled: all "
        "disturbances together, without bars, since each image is in it several times. Accuracy, confidence and "
        "mistakes are those of the mean over passes; bars: 95 % interval of the accuracy.",
        f"AUROC: bars of one standard error, dashed: chance; left out with {few}. The other measures are in "
        "measures_under_shift.csv."
        if measures
        else f"AUROC is not drawn, since there are {few} under each disturbance.",
    ]
