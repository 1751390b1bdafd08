"""The report of 2c: how far archetypes are recognised, in metrics, tables and figures of the rows."""

from __future__ import annotations

import itertools
import math
import statistics
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from explain.basics.errors import quantity
from explain.data.image_files import read_image
from explain.methods.ascent import GROW_AT, growing_sides
from explain.methods.ascent_settings import Settings
from explain.methods.priors import PHOTO_COLOURS, grey_distance_limit
from explain.networks.classifier import Classifier
from explain.report import figures
from explain.report.page import finish
from explain.run.output import OutputFolder

SURE = 0.9  # probability at which metrics.json counts an archetype as recognised by its own network
COLUMNS = ("class", "name", "method", "path", "logit", "probability", "rank", "starts", "zero_gradient_steps")


def describe(settings: Settings) -> str:
    """Return a description of an ascent with these settings, for captions and metrics."""
    blurs = settings.blurs() or {0: (0, 0)}
    sigmas = dict.fromkeys(f"{blurs[step][0]:.2g}" for step in (min(blurs), max(blurs)))
    parts = {
        f"gradient ascent, {quantity(settings.steps, 'step')}": True,
        "low frequencies favoured": settings.precondition,
        "random zoom": (settings.zoom_from, settings.zoom_to) != (1, 1),
        "random rotation": settings.rotation_degrees,
        "random noise": settings.noise,
        f"Gaussian blur every {quantity(settings.blur_every, 'step')} until step {max(blurs) + 1} "
        f"(standard deviation {' to '.join(sigmas)} px)": any(sigma for sigma, _ in blurs.values()),
        "channel statistics pulled towards those of photos": settings.statistics,
    }
    return ", ".join(part for part, is_on in parts.items() if is_on)


def recognition(measures: Sequence[dict], classes: int) -> dict[str, float]:
    """Return how well a network of this many classes recognises images, from its measures of each image's class."""
    top5 = {"top5": sum(m["rank"] <= 5 for m in measures) / len(measures)}
    return {
        "top1": sum(m["rank"] == 1 for m in measures) / len(measures),
        **(top5 if classes > 5 else {}),  # among five classes it would always be 1
        "mean_probability": sum(m["probability"] for m in measures) / len(measures),
        "median_rank": statistics.median(m["rank"] for m in measures),
    }


def summarise(rows: Sequence[dict], reference: dict[str, list[float]], classes: int) -> dict[str, Any]:
    """Return the recognition of images by all networks, and the distance of their mean colours from a reference."""
    own = {key: np.mean([row[key] for row in rows], 0) for key in ("mean", "spread")}
    difference = np.concatenate([own[key] - reference[key] for key in own])
    return {
        "classes": len(rows),
        **recognition(rows, classes),
        "judges": {judge: recognition([row["judges"][judge] for row in rows], classes) for judge in rows[0]["judges"]},
        "colours": {key: value.tolist() for key, value in own.items()}
        | {"distance_from_photos": float(np.sqrt(np.mean(difference**2)))},
    }


def summarise_ascents(rows: Sequence[dict], description: str, model: Classifier) -> dict[str, Any]:
    """Return the settings and the course of the ascents of one method, and their own network's probabilities."""
    settings = rows[0]["settings"]
    return {
        "description": description,
        "settings": settings,
        "grey_distance_limit": grey_distance_limit(model, settings["max_grey_distance"]),
        "mean_logit": sum(row["logit"] for row in rows) / len(rows),
        "starts_drawn_again": sum(row["starts"] - 1 for row in rows),
        "steps_without_gradient": sum(row["zero_gradient_steps"] for row in rows),
        f"classes_with_probability_from_{SURE}": sum(row["probability"] >= SURE for row in rows),
        "least_probability": min(row["probability"] for row in rows),
    }


def table_line(row: dict, photo: dict) -> dict:
    """Return an archetype's line in the tables, with the judges' measures and the geometric mean of their ranks."""
    line = {"steps": row["settings"]["steps"], **{key: row[key] for key in COLUMNS}}
    line |= {"photo": photo.get("photo"), "photo_probability": photo.get("probability")}
    for judge, measures in row["judges"].items():
        line[f"photo_probability_by_{judge}"] = photo["judges"][judge]["probability"] if photo else None
        line |= {f"{key}_by_{judge}": measures[key] for key in ("probability", "rank")}
    ranks = [measures["rank"] for measures in row["judges"].values()]
    return line | ({"mean_rank": math.prod(ranks) ** (1 / len(ranks))} if ranks else {})


def write(
    rows: list[dict],
    photos: dict[int, dict],
    skipped: list[dict],
    model: Classifier,
    judge_networks: dict[str, Classifier],
    settings: dict[str, Settings],
    output: OutputFolder,
) -> None:
    """Write metrics, tables and figures of the rows, the archetypes and the photos of their classes."""
    descriptions = {method: describe(of) for method, of in settings.items()}
    reference = PHOTO_COLOURS
    if photos:
        reference = {key: np.mean([photo[key] for photo in photos.values()], 0) for key in reference}
    for c in [*photos][: output.options.show]:
        figures.save_image(output, f"photos/{c}.jpg", photos[c]["path"], model)
    results: dict[str, Any] = {"chance_probability": 1 / len(model.categories)}
    results["judges"] = {name: {"weights": j.weights, "sha256": j.sha256} for name, j in judge_networks.items()}
    results["photos"] = summarise(list(photos.values()), reference, len(model.categories)) if photos else None
    for method, description in descriptions.items():
        own = [row for row in rows if row["method"] == method]
        results[method] = summarise(own, reference, len(model.categories)) | summarise_ascents(own, description, model)
    tables = {"archetypes.csv": [table_line(row, photos.get(row["class"], {})) for row in rows]}
    if judge_networks:
        worst_first = sorted(tables["archetypes.csv"], key=lambda line: (-line["mean_rank"], line["class"]))
        tables["least_recognised.csv"] = worst_first
    classes = list(dict.fromkeys(row["class"] for row in rows))
    shown = [row for row in rows if row["class"] in classes[: output.options.show]]
    note = "" if len(classes) <= output.options.show else f", {output.options.show} of {len(classes)} classes"
    pair = {method: text for method, text in descriptions.items() if method in ("plain", "gaussian")}
    if len(pair) == 2:
        own = [row for row in shown if row["method"] in pair]
        title = f"{model.label}: classes and their archetypes{note}"
        figures.draw_figure(output, "class_images", draw_archetypes, own, pair, photos, model, output, title)
    title = f"{model.label}: archetypes{note}"
    figures.draw_figure(output, "archetypes", draw_archetypes, shown, descriptions, {}, model, output, title)
    figures.draw_figure(output, "scores", draw_scores, shown, model, note)
    lines = findings(results, [*descriptions])
    finish(output, rows, skipped, results, tables, model, images=len(photos), findings=lines)


def findings(results: dict[str, Any], methods: Sequence[str]) -> list[str]:
    """Return the recognition of each method's archetypes, by the judges and by the network itself."""
    lines = []
    for method in methods:
        networks = {"the network itself": results[method], **results[method]["judges"]}
        shares = [
            f"top-1 {m['top1']:.3f}{', top-5 ' + format(m['top5'], '.3f') if 'top5' in m else ''} by {name}"
            for name, m in networks.items()
        ]
        lines.append(f"{quantity(results[method]['classes'], f'{method} archetype')}: {'; '.join(shares[::-1])}")
    return lines


# ------------------------------------------------------------------------------------------------
# Figures


def standing_lines(measures: dict) -> str:
    """Return the lines below an image: the probability and the rank of its class for each network."""
    judges = [*measures["judges"].values()]
    names = ["judge"] if len(judges) == 1 else [f"judge {k}" for k in range(1, len(judges) + 1)]
    lines = zip(["own", *names], [measures, *judges], strict=True)
    return "\n".join(f"{name} {m['probability']:.2f} ({m['rank']})" for name, m in lines)


def draw_archetypes(
    rows: list[dict],
    descriptions: dict[str, str],
    photos: dict[int, dict],
    model: Classifier,
    output: OutputFolder,
    title: str,
) -> figures.Drawing:
    """Draw the archetypes of each class, a column for each method, after the class's photo where `photos` has it."""
    by_class = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["class"])]
    with_photo = photos.keys() & {row["class"] for row in rows}
    heads = [*(["class image"] if with_photo else []), *descriptions]
    per_line = 1 if len(by_class) <= 2 and len(heads) > 1 else max(1, 6 // len(heads))
    figure, axes = figures.panel_grid(len(by_class), heads, per_line, text_lines=2 + len(rows[0]["judges"]))
    figure.set_figheight(figure.get_figheight() + 0.1)  # without a caption the last line of text would be cut
    for panels, group in zip(axes, by_class, strict=True):
        c = group[0]["class"]
        if c in with_photo:
            figures.draw_file(panels[0], model, photos[c]["path"])
            panels[0].set_xlabel(standing_lines(photos[c]), linespacing=1.15)
        elif with_photo:
            figures.draw_image(panels[0], np.ones((1, 1, 3)))
            panels[0].text(0, 0, "no readable\nphoto in\nthe dataset", ha="center", va="center")
        for panel, row in zip(panels[-len(group) :], group, strict=True):
            figures.draw_image(panel, np.asarray(read_image(output.path / row["path"])))
            panel.set_xlabel(standing_lines(row), linespacing=1.15)
        figures.draw_heading(panels, f"{figures.short(group[0]['name'], 14 * len(heads))} {c}")
    columns = ["a photo of the class"] * bool(with_photo) + [f"{name}: {text}" for name, text in descriptions.items()]
    judges = ", ".join(rows[0]["judges"])
    return figure, [
        title,
        f"Left to right: {'; '.join(columns)}.",
        "Below: probability (rank) of the class according to the network itself (own)"
        + (f" and to networks that had no part in making the archetypes (judges: {judges})." if judges else "."),
    ]


def what_changes(settings: Settings, model: Classifier) -> dict[int, list[str]]:
    """Return the steps at which an ascent changes, with the names of the changes."""
    sides = growing_sides(model, settings, model.input_size)
    grown = zip(GROW_AT, itertools.pairwise(sides), strict=True)
    times = [(at, "larger image") for at, (before, after) in grown if before < after]
    times += [(settings.augment_until, "augmentation off")] if settings.augments() else []
    events = [(math.ceil(at * (settings.steps - 1)), name) for at, name in times]
    events += [(max(settings.blurs()) + 1, "last blur")] if settings.blurs() else []
    changes: dict[int, list[str]] = {}
    for step, name in sorted(events):
        if 0 < step < settings.steps and name not in changes.setdefault(step, []):
            changes[step].append(name)
    return changes


def draw_scores(rows: list[dict], model: Classifier, note: str) -> figures.Drawing:
    """Draw the class's logit over the steps: a panel for each method, a line for each class."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = math.ceil(len(rows) / len(methods) / 3)
    figure, panels, below = figures.panels_and_legend(len(methods), 2.6, legend_lines=lines, sharey=True)
    smoothed = False  # whether the thick lines of any panel are a running mean
    letters: dict[str, str] = {}  # of the changes that dotted lines mark
    for panel, method in zip(panels, methods, strict=True):
        own = [row for row in rows if row["method"] == method]
        settings = Settings(**own[0]["settings"])
        noisy_until = settings.augment_until * (settings.steps - 1) if settings.augments() else 0
        half = len(own[0]["scores"]) // 20
        smoothed |= noisy_until > 0 and half > 0
        for k, row in enumerate(own):
            steps, scores = np.array(row["scores"]).T
            line = {"color": figures.CYCLE[k % 8], "linestyle": ("-", "--", ":")[k // 8 % 3]}
            panel.plot(steps, scores, **line, linewidth=0.4, alpha=0.35)
            noisy = int(np.sum(steps < noisy_until))
            scores[:noisy] = running_mean(scores[:noisy], half)
            panel.plot(steps, scores, **line, label=f"{row['class']} {figures.short(row['name'])}")
        for step, names in what_changes(settings, model).items():
            panel.axvline(step, color=figures.GREY, linestyle=":", linewidth=0.8, zorder=0)
            signs = ",".join(letters.setdefault(name, string.ascii_lowercase[len(letters)]) for name in names)
            where = {"transform": panel.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            panel.text(step, 1.01, signs, color=figures.GREY, fontsize=7, **where)  # above the curves
        panel.set_title(method, fontweight="bold", pad=12)  # above the letters
        panel.set_xlabel("step")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("class logit")
    figures.draw_legend(below, panels[0], columns=3)
    curve = "the logit of the class at each step, for the image as the network sees it at that step"
    mean = "Thick lines: the same logit, smoothed by a running mean over at most a tenth of the steps while random "
    mean += "augmentation makes it noisy"
    last = "; the last point is that of the saved archetype."
    curves = [f"Thin lines: {curve}.", mean + last] if smoothed else [f"Lines: {curve}{last}"]
    return figure, [
        f"{model.label}: class logit during optimisation{note}",
        *curves,
        *([f"Dotted lines: {', '.join(f'{name} ({letter})' for name, letter in letters.items())}."] if letters else []),
    ]


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Return the mean of each value and `half` neighbours on both sides, near the ends as many as both sides have."""
    halves = [min(half, k, len(values) - 1 - k) for k in range(len(values))]
    return np.array([values[k - half : k + half + 1].mean() for k, half in enumerate(halves)])
