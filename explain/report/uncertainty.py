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
from explain.report import figures, verdicts
from explain.report.numbers import label as in_words
from explain.report.numbers import measured, number, with_error
from explain.report.page import finish
from explain.run.output import OutputFolder

SETTLING_SHOWN = 5  # images whose curves can be told apart
SPREADS = ("variance", "coefficient_of_variation", "agreement", "predictive_entropy", "mutual_information")


def write(
    rows: list[dict], skipped: list[dict], photos: Sequence[Path], model: Classifier, output: OutputFolder
) -> None:
    """Write figures, tables and metrics of the rows; those with a label judge the measures of uncertainty.

    Raises UserError if none of the requested images can be used.
    """
    options, passes = output.options, output.options.passes
    tested, labelled = ([row for row in rows if key in row] for key in ("leading", "label"))
    if not tested:
        raise UserError(f"none of the images can be used, the first because {skipped[0]['reason']}")
    ordered = sorted(tested, key=lambda row: (-row["mutual_information"], row["index"]))  # the least sure image first
    judged, judged_tables = selective.summary(labelled, options.seed)
    said, lines = verdicts.find_mistakes(judged), findings(ordered)
    judged_on = figures.measured_on([row["label"] for row in labelled], output.classes)
    results = summary(tested, ordered, passes, len(model.categories)) | judged | (judged_on if labelled else {})
    figures.save_images(output, tested[: options.show], photos, model)
    shown = ordered[: options.show]
    figures.draw_figure(output, "mc_dropout", draw, shown, len(tested), photos, model, passes, said)
    if len(ordered) > 1:
        figures.draw_figure(output, "uncertainty", draw_order, ordered, model, passes)
    if len(ordered[0]["settling"]) > 1:
        sentence = enough_in_words(results["passes_enough"], passes)
        figures.draw_figure(output, "settling", draw_settling, ordered[:SETTLING_SHOWN], sentence, model)
        lines.append(sentence)
    else:
        lines.append("settling.png is not drawn: it needs at least 4 passes")
    if any("auroc_interval" in measure for measure in judged.get("mistakes", {}).values()):
        figures.draw_figure(output, "mistakes", draw_mistakes, labelled, judged_on["measured_on"], judged, model)
        lines.append(verdicts.best_measure(judged["mistakes"]))
    elif labelled or not options.images:
        lines.append(said)
    if judged.get("mistakes_under_shift"):
        disturbed = [row["label"] for row in labelled if "disturbed" in row]
        sample = figures.measured_on(disturbed, output.classes)["measured_on"]
        sample += f", {quantity(options.passes_to_judge, 'pass')} each"
        shift = judged["mistakes_under_shift"]
        figures.draw_figure(output, "shift", draw_shift, shift, len(disturbed), sample, model)
    all_tables = tables(tested, ordered, model.categories) | judged_tables
    finish(output, rows, skipped, results, all_tables, model, findings=lines)


def least_sure(ordered: list[dict]) -> list[dict]:
    """Return the image with the largest mutual information, then those that cannot be told apart from it.

    Their difference is at most twice its standard error, which follows from the errors of both.
    """
    first, key = ordered[0], "mutual_information"

    def is_apart(row: dict) -> bool:
        errors = [of[f"{key}_standard_error"] for of in (first, row)]
        return None not in errors and first[key] - row[key] > 2 * np.hypot(*errors)

    return [first, *(row for row in ordered[1:] if not is_apart(row))]


def summary(rows: list[dict], ordered: list[dict], passes: int, classes: int) -> dict:
    """Return the metrics, from sums over rows; a single image has no rank."""
    keys = ("deterministic_probability", "mean_probability", "agreement", "deterministic_entropy")
    keys += ("predictive_entropy", "mutual_information")
    most_uncertain, *others = least_sure(ordered) if len(rows) > 1 else [{"path": None}]
    return {
        "images": len(rows),
        "passes": passes,
        "passes_enough": passes_enough(ordered, passes),
        "mean_and_single_pass_disagree": sum(row["class"] != row["deterministic_class"] for row in rows),
        "most_uncertain": most_uncertain["path"],
        "not_told_apart_from_most_uncertain": [row["path"] for row in others],
        "entropy_of_chance": float(np.log(classes)),
        **{f"mean_{key.removeprefix('mean_')}": sum(row[key] for row in rows) / len(rows) for key in keys},
    }


def passes_enough(ordered: list[dict], passes: int) -> dict[str, int | None]:
    """Return the number of passes after which two standard errors are within a tenth of each measure of every image.

    `order` is the number after which they are within the difference of each image from the next in order of mutual
    information. An error e after T passes is d after T (e / d)^2 passes; None if d is 0, since no number is enough. A
    single pass has no errors: the dict is empty.
    """
    if passes < 2:
        return {}

    def after(pairs: Iterable[tuple[float, float]]) -> int | None:  # errors, and the bounds of two of them
        needed = [passes * (2 * error / within) ** 2 if within else np.inf for error, within in pairs if error]
        most = max(needed, default=0)
        return max(2, int(np.ceil(most))) if np.isfinite(most) else None

    enough = {key: after((row[f"{key}_standard_error"], 0.1 * abs(row[key])) for row in ordered) for key in SPREADS}
    if len(ordered) > 1:
        key, error = "mutual_information", "mutual_information_standard_error"
        enough["order"] = after((np.hypot(a[error], b[error]), a[key] - b[key]) for a, b in pairwise(ordered))
    return enough


def enough_in_words(enough: dict[str, int | None], passes: int) -> str:
    """Return the result of `passes_enough` as a sentence."""
    rounded = {key: np.inf if n is None else float(f"{n:.2g}") for key, n in enough.items()}
    about = {key: f"about {n:,.0f}" if n < 1e6 else "more than a million" for key, n in rounded.items()}
    limits = {"variance": "a tenth of each variance", "mutual_information": "a tenth of each mutual information"}
    limits["order"] = "each difference in mutual information between successive images"
    found = [f"below {limit} after {about[key]}" for key, limit in limits.items() if key in about]
    return (
        f"By an estimate from these {passes:,} passes, twice the standard error is {', '.join(found[:-1])} and "
        f"{found[-1]} passes."
    )


def findings(ordered: list[dict]) -> list[str]:
    """Return the lines that the script prints: the least sure image, and the surest if it can be told apart."""
    names = [figures.file_name(row) for row in ordered]
    values = [measured(row, "mutual_information") for row in ordered]
    if len(ordered) == 1:
        return [f"{names[0]}: mutual information {values[0]}"]
    others = [figures.file_name(row) for row in least_sure(ordered)[1:]]
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    tail = f"; cannot be told apart from it: {named}" if others else ""
    least = f"least sure (largest mutual information): {names[0]}, {values[0]}{tail}"
    surest = f"surest (smallest mutual information): {names[-1]}, {values[-1]}"
    return [least, surest][: 1 + (len(others) < len(ordered) - 1)]


def tables(rows: list[dict], ordered: list[dict], categories: Sequence[str]) -> dict[str, list[dict]]:
    """Return the tables by file name: the images in order of uncertainty, and the leading classes of each image."""
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


def draw(
    rows: list[dict], total: int, photos: Sequence[Path], model: Classifier, passes: int, said: str
) -> figures.Drawing:
    """Draw each image beside box plots of its leading classes over the passes."""

    def heading(row: dict) -> str:
        entropies = f"MI {measured(row, 'mutual_information')}, H {row['predictive_entropy']:.2f}"
        return f"{entropies}, CV {number(row['coefficient_of_variation'], 2)}, agreement {row['agreement']:.2f}"

    figure, panels = figures.images_and_probabilities(rows, photos, model, heading)
    for axes, row in zip(panels, rows, strict=True):
        for place, c in enumerate(row["leading"]):
            least, low, median, high, most = c["quantiles"]
            axes.plot([least, most], [place, place], color=figures.GREY, linewidth=0.8, zorder=1)
            axes.plot([low, high], [place, place], color=figures.SKY, linewidth=5, solid_capstyle="butt", zorder=2)
            axes.plot(median, place, "|", color=figures.BLUE, markersize=5, markeredgewidth=1.5, zorder=3)
            axes.plot(c["mean"], place, "o", color=figures.BLACK, markersize=2.5, zorder=4)
            axes.plot(c["deterministic"], place, "|", color=figures.RED, markersize=9, markeredgewidth=1.2, zorder=3)
            axes.text(0, place - 0.22, figures.short(model.categories[c["class"]], 15), in_layout=False)
            mean = with_error(c["mean"], c["standard_deviation"])
            axes.text(1, place - 0.22, mean, ha="right", in_layout=False)
        axes.set_ylim(len(row["leading"]) - 0.6, -0.75)
    order = ", the largest MI first," if total > 1 else ""
    return figure, [
        f"{model.label}: {quantity(passes, 'pass')} with dropout on, {figures.some_of(len(rows), total, 'image')}",
        f"Each image ({model.view}){order} beside its most likely classes, with mean ± standard deviation of the "
        "probability over passes: range (line), quartiles and median (bar), mean (dot), pass without dropout (orange).",
        "MI: mutual information ± standard error, H: predictive entropy, both in nats; CV: coefficient of variation of "
        "the probability of the winning class, the one with the largest mean; agreement: share of the passes in which "
        "that class is the most likely.",
        said,
    ]


def draw_order(rows: list[dict], model: Classifier, passes: int) -> figures.Drawing:
    """Draw mutual information and predictive entropy of all images, in order of mutual information."""
    figure = Figure(figsize=(figures.WIDTH, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    places, size = np.arange(1, len(rows) + 1), 3.5 if len(rows) <= 40 else 2.2
    for axes, key in ((above, "mutual_information"), (below, "predictive_entropy")):
        values = np.array([row[key] for row in rows])
        errors = np.array([row[f"{key}_standard_error"] or 0 for row in rows])
        axes.vlines(places, values - errors, values + errors, color=figures.BLUE)  # one artist for all images
        axes.plot(places, values, "o", markersize=size, color=figures.BLUE, label=in_words(key))
        top = 1.3 * (values + errors).max() or 1
        axes.set(ylim=(-0.03 * top, top), ylabel="nats")  # room for half a marker at 0
    single = [row["deterministic_entropy"] for row in rows]
    below.plot(places, single, "_", markersize=2 * size, color=figures.RED, label="entropy without dropout")
    _, *others = least_sure(rows)
    indices = {row["index"] for row in others}
    together = [(place, row["mutual_information"]) for place, row in enumerate(rows, 1) if row["index"] in indices]
    if together:
        style = dict(color=figures.BLUE, markersize=size, markerfacecolor="white")
        style["label"] = f"cannot be told apart from {figures.short(figures.file_names(rows)[0], 24)}"
        above.plot(*zip(*together, strict=True), "o", **style)
    for axes in (above, below):
        axes.legend(loc="upper right")
    figure.align_ylabels()
    below.set(xlabel="images, largest mutual information first", xlim=(0.4, len(rows) + 0.6))
    if len(rows) <= 40:
        names = [figures.short(name, 20) for name in figures.file_names(rows)]
        below.set_xticks(places, names, rotation=90 if len(rows) > 5 else 0)
    told_apart = f"{len(others)} of the other images cannot" if others else "All other images can"
    told_apart += " be told apart from the first: the difference in mutual information is "
    told_apart += f"{'at most' if others else 'more than'} twice its standard error."
    return figure, [
        f"{model.label}: its uncertainty about {quantity(len(rows), 'image')}, over {quantity(passes, 'pass')}",
        "Above: mutual information, the part of the uncertainty due to disagreement between the passes; below: "
        "predictive entropy, the total uncertainty; both with one Monte Carlo standard error.",
        told_apart if passes > 1 else "A single pass has no standard errors, so no two images can be told apart.",
    ]


def draw_settling(rows: list[dict], sentence: str, model: Classifier) -> figures.Drawing:
    """Draw how variance and mutual information settle with the number of passes."""
    figure, panels, below = figures.panels_and_legend(2, 2.7, legend_lines=-(-len(rows) // 3))
    labels = ("variance of the winning class's probability", "mutual information (nats)")
    names = [figures.short(name, 28) for name in figures.file_names(rows)]
    for axes, key, label in zip(panels, ("variance", "mutual_information"), labels, strict=True):
        for place, (row, name) in enumerate(zip(rows, names, strict=True)):
            passes = np.array([s["passes"] for s in row["settling"]])
            values, errors = (np.array([s[k] for s in row["settling"]]) for k in (key, f"{key}_standard_error"))
            beside = 1.05 ** (place - (len(rows) - 1) / 2)  # keeps the bars from covering each other
            axes.errorbar(beside * passes, values, errors, fmt="o-", markersize=2.5, label=name)
        axes.set(xscale="log", xlabel="passes", ylabel=label)
        axes.set_xticks(passes, [f"{n:,}" for n in passes], minor=False)
        axes.minorticks_off()
        axes.set_ylim(0)
    figures.draw_legend(below, panels[0], columns=3)
    images = f"the {len(rows)} images that the network is least sure of" if len(rows) > 1 else "the image"
    return figure, [
        f"{model.label}: how many passes are enough?",
        f"Variance (left) and mutual information (right) after increasing numbers of passes, with one Monte Carlo "
        f"standard error, for {images}.",
        sentence,
    ]


COLOURS = dict(zip(selective.MEASURES, [*figures.CYCLE[:5], figures.BLACK, figures.GREY, figures.SKY], strict=True))


def draw_mistakes(rows: list[dict], sample: str, judged: dict, model: Classifier) -> figures.Drawing:
    """Draw the risk-coverage curves of all measures, and their AUROC for mistakes with its 95 % interval."""
    figure = Figure(figsize=(figures.WIDTH, 3.2), layout="constrained")
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
            right.text(0.5, place, "too few mistakes or right answers", ha="center", va="bottom")
    left.set(
        xlabel="coverage: share of the images, surest first",
        ylabel="risk: share of mistakes among these images",
        ylim=0,
    )
    right.axvline(0.5, color=figures.GREY, linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(measures)), [verdicts.measure(name) for name in measures])
    right.set(xlabel="AUROC for mistakes", ylim=(len(measures) - 0.5, -0.5))
    scores = [f"Measured on {sample}, {quantity(rows[0]['passes'], 'pass')} each"]
    for whose, prediction in (("mean", "mean of the passes"), ("single", "single pass")):
        of, wrong = judged["predictions"][whose], sum(not row[whose]["right"] for row in rows)
        error = of["expected_calibration_error"]
        scores.append(
            f"{prediction}: {quantity(wrong, 'mistake')}, loss {of['loss']:.3f}, calibration error {error:.3f}"
        )
    return figure, [
        f"{model.label}: {verdicts.best_measure(measures)}",
        "Left: risk against coverage for each measure (thick line: the single pass's probability); right, in the same "
        "colours: AUROC with a 95 % bootstrap interval (dashed: chance level).",
        f"{'; '.join(scores)}.",
    ]


def draw_shift(shift: dict[str, dict], images: int, sample: str, model: Classifier) -> figures.Drawing:
    """Draw accuracy and confidence under each disturbance, and the main measures' AUROC for mistakes."""
    measures = [
        name for name in selective.SHOWN if any(of.get(name, {}).get("auroc") is not None for of in shift.values())
    ]
    figure, panels, below = figures.panels_and_legend(1 + bool(measures), 3.2, legend_lines=2 * bool(measures))
    places = np.arange(len(shift))
    accuracy, confidence = (np.array([of[key] for of in shift.values()]) for key in ("accuracy", "confidence"))
    bounds = [wilson_interval(a * images, images) for a in accuracy[:-1]] + [(accuracy[-1],) * 2]  # not of pooled ones
    errors = np.abs(np.array(bounds).T - accuracy)
    panels[0].errorbar(places - 0.1, accuracy, errors, fmt="o", markersize=4, color=figures.BLUE, label="accuracy")
    panels[0].plot(places + 0.1, confidence, "s", markersize=4, color=figures.RED, label="confidence")
    panels[0].set(ylim=(-0.03, 1.03), ylabel="mean over images")
    panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for n, name in enumerate(measures):
        known = [of.get(name, {}) for of in shift.values()]
        values = np.array([np.nan if of.get("auroc") is None else of["auroc"] for of in known])
        errors = np.array([of.get("auroc_standard_error") or 0 for of in known])
        style = dict(markersize=3, color=COLOURS[name], label=verdicts.measure(name))
        panels[1].errorbar(places + 0.16 * (n - 1.5), values, errors, fmt="os^D"[n], **style)
    few = f"where there are fewer than {selective.FEWEST} mistakes or fewer than {selective.FEWEST} right answers"
    if measures:
        panels[1].axhline(0.5, color=figures.GREY, linewidth=0.8, linestyle="--")
        panels[1].set(ylabel="AUROC for mistakes", xlim=panels[0].get_xlim())
        figures.draw_legend(below, panels[1], columns=2)
    else:
        below.remove()
    wrong = [of["mutual_information"]["mistakes"] for of in shift.values()]
    labels = [f"{in_words(name)} ({count})" for name, count in zip(shift, wrong, strict=True)]
    for axes in panels:
        axes.set_xticks(places, labels, rotation=60, ha="right")
    aurocs = f"right: AUROC with one standard error (dashed: chance level), omitted {few}"
    return figure, [
        f"{model.label}: does it know when it errs on disturbed images?",
        ("Left: accuracy" if measures else "Accuracy")
        + " (with its 95 % interval) and confidence of the mean over passes; "
        + (f"{aurocs}." if measures else f"no AUROC is shown, since it is not measured {few}."),
        "Horizontal axis: no disturbance (none), each disturbance, and all disturbances together (pooled), with the "
        "number of mistakes in brackets.",
        f"Measured on {sample}; measures_under_shift.csv has all measures.",
    ]
