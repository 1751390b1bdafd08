"""The sections of the page, one for each exercise: question, method, formula, and what its metrics mean.

Everything is a function of an exercise's `results` in metrics.json; what is not there is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from explain.errors import quantity
from explain.figures import BASELINES, KINDS, label

Results = dict[str, Any]


class Measure(NamedTuple):
    """A number in `results`: its key, its name, what it means, which way is better, and what it is to be read beside.

    `yardstick` is the key of another number, or a sentence.
    """

    key: str
    name: str
    meaning: str
    better: str = ""
    yardstick: str = ""
    yardstick_name: str = ""
    error: str = ""


class Table(NamedTuple):
    """A table for the page; the first cell of a row names it."""

    title: str
    heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """What the page says of an exercise; `sentence`, `tables` and `limits` are functions of its results."""

    script: str
    question: str
    method: str
    formula: Markup
    source: str
    measures: tuple[Measure, ...]
    sentence: Callable[[Results], str]
    limits: tuple[str, ...]
    tables: Callable[[Results], Iterator[Table]] = lambda results: iter(())


def number(value: Any) -> str:
    """Return a number as it stands in a text: a float with three decimals."""
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return text.removeprefix("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def with_error(value: Any, error: Any) -> str:
    """Return a number with its standard error, where there is one."""
    return number(value) + ("" if error is None else f" ± {number(error)}")


def measure_table(section: Section, results: Results) -> Table:
    """Return the main numbers of an exercise with their meaning, their yardstick, and which way is better."""
    rows = []
    for m in section.measures:
        if m.key in results:
            value = with_error(results[m.key], results.get(m.error))
            beside = (
                f"{m.yardstick_name} {number(results[m.yardstick])}" if m.yardstick in results else m.yardstick_name
            )
            rows.append([m.name, value, m.meaning, beside, m.better])
    return Table("Main numbers", ["measure", "value", "meaning", "beside it", "better"], rows)


def formula(content: str) -> Markup:
    """Return a formula from MathML's elements."""
    return Markup(f'<math display="block"><mrow>{content}</mrow></math>')


def op(sign: str) -> str:
    return f"<mo>{sign}</mo>"


def sub(base: str, index: str) -> str:
    return f"<msub><mi>{base}</mi><mi>{index}</mi></msub>"


def total(over: str, to: str = "") -> str:
    bounds = f"<munderover><mo>∑</mo><mi>{over}</mi><mi>{to}</mi></munderover>"
    return bounds if to else f"<munder><mo>∑</mo><mi>{over}</mi></munder>"


def fraction(above: str, below: str) -> str:
    return f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"


# ------------------------------------------------------------------------------------------------
# One sentence each, with the main number


def of_data(results: Results) -> str:
    images = quantity(results["validation_images"], "labelled image")
    tests = quantity(results["test_images"], "test image")
    return f"{images} of {quantity(results['classes'], 'class')}, and {tests} without a label."


def of_evaluation(results: Results) -> str:
    return (
        f"The most likely class is the right one for {accuracy(results)} of "
        f"{quantity(results['images'], 'image')}; guessing would reach {number(results['chance_accuracy'])}."
    )


def accuracy(results: Results) -> str:
    """Return the top-1 accuracy with its interval, or where there is none its standard error."""
    interval = results.get("top1_interval")
    if interval is None:
        return with_error(results["top1_accuracy"], results["top1_standard_error"])
    return f"{number(results['top1_accuracy'])} (95 % interval {number(interval[0])} to {number(interval[1])})"


def of_archetypes(results: Results) -> str:
    judged = recognised(results)
    if not judged:
        return "No other network has judged the archetypes."
    judge = next(iter(next(iter(judged.values()))["judges"]))
    shares = [
        f"{number(kind['judges'][judge]['top1'])} of the {name}{'' if name == 'photos' else ' ones'}"
        for name, kind in judged.items()
    ]
    return f"{judge}, which had no part in making the archetypes, recognises {', '.join(shares)}."


def recognised(results: Results) -> dict[str, Results]:
    """Return the summaries of each kind of pictures that judges have seen, photos last."""
    return {name: kind for name, kind in archetype_kinds(results).items() if kind["judges"]}


def archetype_kinds(results: Results) -> dict[str, Results]:
    """Return the summaries of archetypes by each method, from no prior to the strongest, and of photos."""
    return {name: results[name] for name in ("plain", "gaussian", "natural", "photos") if results.get(name)}


def of_predictions(results: Results) -> str:
    return (
        f"Its most likely class gets a probability of {number(results['mean_top1_probability'])} on average, below one "
        f"half for {quantity(results['images_under_half'], 'picture')}."
    )


def of_saliency(results: Results) -> str:
    area = number(results["mean_half_mass_area"])
    return f"Half of a map lies in {area} of its pixels (an even map: 0.5).{worth_sentence(results)}"


def of_guided(results: Results) -> str:
    like = number(results["mean_rank_correlation"])
    return (
        f"Guided and plain maps of a picture have a rank correlation of {like} (1: the same).{worth_sentence(results)}"
    )


def worth_sentence(results: Results) -> str:
    worth = results.get("insertion_minus_deletion")
    if not worth:
        return ""
    values = ", ".join(f"{label(kind)} {number(worth[kind]['mean'])}" for kind in in_order(worth) if worth[kind])
    return f" Their worth, insertion less deletion: {values}."


def of_faithfulness(results: Results) -> str:
    maps, baseline = results["maps"], results.get("best_baseline") or "random"
    own = {kind: measures for kind, measures in maps.items() if kind not in BASELINES}
    best = max(own, key=lambda kind: own[kind]["insertion_minus_deletion"])
    beside = f", the best baseline ({label(baseline)}) {worth_of(maps[baseline])}" if baseline in maps else ""
    return f"The map most to be believed is {label(best)}: insertion less deletion {worth_of(own[best])}{beside}."


def worth_of(measures: Results) -> str:
    name = "insertion_minus_deletion"
    return with_error(measures[name], measures.get(f"{name}_standard_error"))


def of_dropout(results: Results) -> str:
    others = len(results["not_told_apart_from_most_uncertain"])
    tail = f", not told apart from {quantity(others, 'other')}" if others else ""
    return (
        f"Over {results['passes']:,} passes with dropout, {number(results['mean_mutual_information'])} of "
        f"{number(results['mean_predictive_entropy'])} nats of uncertainty are disagreement between passes; least "
        f"sure: {results['most_uncertain'].rpartition('/')[2]}{tail}."
    )


# ------------------------------------------------------------------------------------------------
# Tables beside the main numbers


def in_order(maps: Iterable[str]) -> list[str]:
    """Return the kinds of maps in the order of the exercises, baselines last."""
    order = [*KINDS, *BASELINES]
    return sorted(maps, key=lambda kind: order.index(kind) if kind in order else len(order))


def worth_table(results: Results) -> Iterator[Table]:
    worth = results.get("insertion_minus_deletion") or {}
    rows = [
        [
            label(kind),
            with_error(worth[kind]["mean"], worth[kind].get("standard_error")),
            number(worth[kind]["images"]),
        ]
        for kind in in_order(worth)
        if worth[kind]
    ]
    if rows:
        title = "Worth of each map: insertion less deletion, higher is better; a random order knows nothing"
        yield Table(title, ["map", "mean ± standard error", "images"], rows)


def faithfulness_table(results: Results) -> Iterator[Table]:
    names = {
        "insertion": "insertion (higher)",
        "deletion": "deletion (lower)",
        "insertion_minus_deletion": "insertion less deletion (higher)",
        "grid_pointing": "grid pointing (higher; chance 0.25)",
    }
    rows = [
        [label(kind), *(with_error(of[name], of.get(f"{name}_standard_error")) for name in names)]
        for kind, of in ((kind, results["maps"][kind]) for kind in in_order(results["maps"]))
    ]
    title = "Each map beside baselines that know nothing of the network, ± standard error (in brackets: better)"
    yield Table(title, ["map", *names.values()], rows)


def recognition_table(results: Results) -> Iterator[Table]:
    rows = []
    for name, kind in archetype_kinds(results).items():
        for network, measures in (("the network itself", kind), *kind["judges"].items()):
            values = (number(measures[key]) for key in ("top1", "top5", "mean_probability", "median_rank"))
            rows.append([name, network, number(kind["classes"]), *values])
    heads = ["pictures", "recognised by", "classes", "first", "among five", "mean probability", "median rank"]
    title = "Fraction of pictures whose class a network puts first, or among five (higher is better; photos beside it)"
    yield Table(title, heads, rows)


def mistakes_table(results: Results) -> Iterator[Table]:
    mistakes = {
        name: measures for name, measures in (results.get("mistakes") or {}).items() if isinstance(measures, dict)
    }
    rows = []
    for name, measures in mistakes.items():
        if "auroc" in measures:
            low_high = measures.get("auroc_interval")
            interval = "" if not low_high else f" ({number(low_high[0])} to {number(low_high[1])})"
            risk = number(measures.get("area_under_risk_coverage"))
            rows.append([name.replace("_", " "), number(measures["auroc"]) + interval, risk])
    if rows:
        title = "Does it find the network's mistakes? AUROC: higher is better, 0.5 is chance; risk: lower is better"
        yield Table(title, ["measure", "AUROC (95 % interval)", "area under risk and coverage"], rows)


# ------------------------------------------------------------------------------------------------
# The sections

GRADIENT = fraction(
    f"<mo>∂</mo>{sub('S', 'c')}", "<mo>∂</mo><msub><mi>x</mi><mrow><mi>k</mi><mi>i</mi><mi>j</mi></mrow></msub>"
)
EXP = "<mi>exp</mi>" + op("&#8289;")
MEAN_P = "<mover><mi>p</mi><mo>¯</mo></mover>"

SECTIONS = (
    Section(
        "process_data",
        "What are the data?",
        "The validation images are checked, every one is decoded, and they are sorted by class into folders. The test "
        "images have no label and stay where they are.",
        Markup(""),
        "",
        (
            Measure("validation_images", "validation images", "labelled images, by which 2b judges the network"),
            Measure("classes", "classes", "classes that have at least one of them"),
            Measure("test_images", "test images", "images that 2d to 2h explain"),
            Measure("listed_but_absent", "listed but absent", "lines of the list whose image is not there", "lower"),
            Measure("problems", "problems", "entries that could not be used", "lower"),
        ),
        of_data,
        (
            "A label is taken as it stands in the list: nobody looked at whether it is right.",
            "Few images of a class say little about it.",
        ),
    ),
    Section(
        "2b_evaluate",
        "How good is the network?",
        "The network classifies the labelled images. The loss is the mean of −log of the probability that it gives the "
        "true class; the accuracy counts how often that class comes first, or among five. The expected calibration "
        "error (ECE) compares, in 15 bins b of confidence, how sure the network is with how often it is right.",
        formula(
            "<mtext>loss</mtext>" + op("=") + op("−") + fraction("<mn>1</mn>", "<mi>N</mi>")
            + total("n") + "<mi>log</mi>" + op("&#8289;") + "<mi>p</mi>" + op("(")
             + sub("y", "n") + op("|") + sub("x", "n") + op(")")
            + "<mspace width='2em'/><mtext>ECE</mtext>" + op("=") + total("b") + fraction(sub("n", "b"), "<mi>N</mi>")
            + op("|") + sub("acc", "b") + op("−") + sub("conf", "b") + op("|")
        ),
        "Guo et al. 2017, On Calibration of Modern Neural Networks, section 2",
        (
            Measure("loss", "loss", "cross-entropy, in nats", "lower", "loss_chance", "chance:"),
            Measure(
                "top1_accuracy", "top-1 accuracy", "fraction whose class is the most likely one", "higher",
                "chance_accuracy", "chance:", "top1_standard_error",
            ),
            Measure("top5_accuracy", "top-5 accuracy", "fraction whose class is among five", "higher"),
            Measure(
                "expected_calibration_error", "expected calibration error", "distance of confidence from accuracy",
                "lower", "", "0 is perfect; few images alone give some",
            ),
            Measure(
                "mean_confidence", "mean confidence", "probability of the most likely class", "as high as the accuracy",
                "top1_accuracy", "accuracy:",
            ),
        ),
        of_evaluation,
        (
            "The standard error covers which images were drawn, not how they were chosen.",
            "Images are read as they are stored and cropped in the middle, as for published accuracies.",
        ),
    ),
    Section(
        "2c_class_visualization",
        "What is its archetype of a class?",
        "Gradient ascent from noise to an image I that the network scores as high as it can for a class c, close to "
        "grey. Plain: the objective alone. Gaussian: blurred by a Gaussian kernel every few steps, with random crops, "
        "rotations and noise. Natural: as Gaussian, with channel statistics pulled towards those of photos.",
        formula(
            "<munder><mtext>arg max</mtext><mi>I</mi></munder>" + sub("S", "c") + op("(") + "<mi>I</mi>" + op(")")
            + op("−") + "<mi>λ</mi>" + op("‖") + "<mi>I</mi>" + op("−") + "<mtext>grey</mtext>"
            + "<msup><mo>‖</mo><mn>2</mn></msup>"
        ),
        "Simonyan et al. 2014, Deep Inside Convolutional Networks, section 2; Yosinski et al. 2015; Yin et al. 2020",
        (),
        of_archetypes,
        (
            "An archetype is what the network responds to, not what the class looks like.",
            "The network's own probability is near 1 for almost any image made for it; the judges' says more.",
        ),
        recognition_table,
    ),
    Section(
        "2d_predict",
        "What does it say about the test images?",
        "The logits z of a picture x become probabilities by the softmax; the five most likely classes are shown.",
        formula(
            "<mi>p</mi>" + op("(") + "<mi>c</mi>" + op("|") + "<mi>x</mi>" + op(")") + op("=")
            + fraction(
                EXP + sub("z", "c"), total("k") + EXP + sub("z", "k")
            )
        ),
        "Guo et al. 2017, section 2, on how far a softmax can be believed",
        (
            Measure(
                "mean_top1_probability", "mean probability", "of the most likely class", "", "chance_probability",
                "chance:",
            ),
            Measure("images_under_half", "pictures below one half", "whose most likely class has p below 0.5"),
        ),
        of_predictions,
        (
            "The softmax is the network's own confidence; the calibration in 2b says how far it can be believed.",
            "What is in none of the classes is given to one of them all the same.",
        ),
    ),
    Section(
        "2e_saliency",
        "Which pixels did it look at?",
        "The class saliency map: how strongly the logit of class c reacts to a small change of a pixel (i, j), by the "
        "channel k that reacts most. Smoothed: the mean over copies with noise. Combined: the smoothed map times the "
        "picture's detail and, where the network has a layer for it, Grad-CAM.",
        formula(
            "<msub><mi>M</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>" + op("=")
            + "<munder><mi>max</mi><mi>k</mi></munder>" + op("|") + GRADIENT + op("|")
        ),
        "Simonyan et al. 2014, section 3.1; smoothed: Smilkov et al. 2017, SmoothGrad, section 3",
        (
            Measure(
                "mean_half_mass_area", "half mass area", "fraction of the pixels that hold half of the map",
                "lower: more concentrated", "half_mass_area_of_an_even_map", "an even map:",
            ),
            Measure(
                "mean_smoothed_half_mass_area", "the same, smoothed", "", "lower", "mean_half_mass_area", "plain:"
            ),
            Measure(
                "mean_combined_half_mass_area", "the same, combined", "", "lower", "mean_half_mass_area", "plain:"
            ),
            Measure(
                "mean_roughness", "roughness", "mean difference of neighbouring pixels over the mean",
                "lower: smoother", "", "uniform noise: 0.667",
            ),
        ),
        of_saliency,
        (
            "A map shows where the logit reacts, not whether the class is there, nor why.",
            "The plain gradient may order pixels hardly better than chance does: see the worth of each map.",
        ),
        worth_table,
    ),
    Section(
        "2f_guided_saliency",
        "The same, less noisy?",
        "On the way back every rectifier lets only positive signals R pass, where its input x was positive. Grad-CAM "
        "says in which region the last layer sees the class; guided Grad-CAM is the product of both.",
        formula(
            sub("R", "in") + op("=") + "<mn mathvariant='bold'>1</mn>" + op("[") + "<mi>x</mi>" + op("&gt;")
            + "<mn>0</mn>" + op("]") + op("·") + "<mn mathvariant='bold'>1</mn>" + op("[") + sub("R", "out")
            + op("&gt;") + "<mn>0</mn>" + op("]") + op("·") + sub("R", "out")
        ),
        "Springenberg et al. 2015, Striving for Simplicity, section 3.4; Selvaraju et al. 2017, Grad-CAM, section 3",
        (
            Measure(
                "mean_rank_correlation", "rank correlation", "Spearman's, of the plain with the guided map", "", "",
                "1: the plain map under another name",
            ),
            Measure(
                "mean_guided_half_mass_area", "half mass area", "fraction of the pixels that hold half of the map",
                "lower: more concentrated", "mean_plain_half_mass_area", "plain:",
            ),
            Measure(
                "mean_guided_roughness", "roughness", "mean difference of neighbouring pixels over the mean",
                "lower: smoother", "mean_plain_roughness", "plain:",
            ),
            Measure(
                "mean_guided_stability", "stability", "rank correlation with the map under a little noise",
                "higher: less noisy", "mean_plain_stability", "plain:",
            ),
        ),
        of_guided,
        (
            "Guided maps depend little on the upper layers and on the class (Adebayo et al. 2018): they show edges, "
            "not reasons.",
        ),
        worth_table,
    ),
    Section(
        "2g_faithfulness",
        "How far can the maps be believed?",
        "Pixels are put into a blurred copy of the picture, or taken from the picture, in the order of a map; a map is "
        "worth as much as the class's probability p follows, over the fraction t of the pixels. Grid pointing: the "
        "share of a map in the class's own quarter of a mosaic of four photos.",
        formula(
            "<mtext>worth</mtext>" + op("=")
            + "<msubsup><mo>∫</mo><mn>0</mn><mn>1</mn></msubsup>" + sub("p", "insertion") + op("(") + "<mi>t</mi>"
            + op(")") + op("−") + sub("p", "deletion") + op("(") + "<mi>t</mi>" + op(")") + "<mi>d</mi><mi>t</mi>"
        ),
        "Petsiuk et al. 2018, RISE, section 3.2; Rao et al. 2022, section 4; Adebayo et al. 2018, section 3.1",
        (
            Measure("images_measured", "images measured", "that the network gets right"),
            Measure("images_wrong", "images left out", "that it gets wrong"),
            Measure("mosaics", "mosaics", "of four photos each, for grid pointing"),
        ),
        of_faithfulness,
        (
            "Pictures with pixels put in or taken out are unlike those that the network was trained on.",
            "Standard errors are over images: maps that differ by less than twice that cannot be told apart.",
        ),
        faithfulness_table,
    ),
    Section(
        "2h_mc_dropout",
        "How sure is it?",
        "Dropout stays on, and T random passes give T probabilities. Their mean has an entropy H, all uncertainty; the "
        "mutual information I is the part about which the passes disagree.",
        formula(
            "<mi>I</mi>" + op("=") + "<mi>H</mi>" + op("[") + MEAN_P + op("]") + op("−")
            + fraction("<mn>1</mn>", "<mi>T</mi>") + total("t", "T") + "<mi>H</mi>" + op("[") + sub("p", "t") + op("]")
            + op(",") + "<mspace width='1em'/>" + MEAN_P + op("=") + fraction("<mn>1</mn>", "<mi>T</mi>")
            + total("t", "T") + sub("p", "t")
        ),
        "Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, section 4",
        (
            Measure(
                "mean_predictive_entropy", "predictive entropy", "of the mean over passes, in nats", "lower: surer",
                "entropy_of_chance", "chance:",
            ),
            Measure(
                "mean_mutual_information", "mutual information", "what the passes disagree about, in nats",
                "lower: surer", "", "0: all agree",
            ),
            Measure(
                "mean_probability", "mean probability", "of the most likely class, mean over passes", "",
                "mean_deterministic_probability", "a single pass:",
            ),
            Measure("mean_agreement", "agreement", "fraction of passes that the class wins", "", "", "1: all agree"),
            Measure(
                "mean_and_single_pass_disagree", "disagreements", "pictures for which the mean and the single pass "
                "name different classes",
            ),
        ),
        of_dropout,
        (
            "Each spread over passes is an estimate; ± is its Monte Carlo standard error, and pictures that differ by "
            "less than twice that are not told apart.",
            "Only dropout is varied. A network without much of it looks surer than it is.",
        ),
        mistakes_table,
    ),
)  # fmt: skip
