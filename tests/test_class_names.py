"""Labels meet the network's classes by name, and by id only where one side has no names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from conftest import save_photo

import common
from explain.data.datasets import read_dataset_names
from explain.networks.class_names import match_labels, match_names, name_classes


def network(categories: list[str], wnids: list[str] = (), names_from: str = "names.txt") -> SimpleNamespace:
    """All of a Classifier that has to do with names."""
    model = SimpleNamespace(name="net", categories=[*categories], wnids=[*wnids], names_from=names_from)
    model.checkpoint_names, model.dataset_names, model.notes, model.warnings = None, None, [], []
    return model


@pytest.mark.parametrize(
    ("names", "categories", "expected"),
    [
        (["cat", "elk"], ["cat", "dog", "elk"], [[0], [2]]),
        (["elk", "cat", "dog"], ["cat", "dog", "elk"], [[2], [0], [1]]),
        (["cat", "emu"], ["cat", "dog"], [[0], []]),
        (["Cat", "DOG_house"], ["dog house", "cat"], [[1], [0]]),
        (["tench, Tinca tinca", "goldfish"], ["goldfish, Carassius auratus", "tench"], [[1], [0]]),
        # the second part of the first name is the whole second one, and says nothing of the first
        (["projectile, missile", "missile"], ["missile", "projectile"], [[1], [0]]),
        (["maillot", "maillot, tank suit"], ["maillot", "swimsuit"], [[0], []]),
        (["crane", "x", "crane"], ["crane", "x", "crane"], [[0], [1], [2]]),  # two names for two classes, in order
        (["x", "crane"], ["crane", "x", "crane"], [[1], [0, 2]]),
        (["crane", "x", "crane"], ["x", "crane"], [[0, 2], [0], [0, 2]]),
        # the place of a folder in the order of text says nothing of the class
        (["ant", "crane"], ["crane, bird", "crane, machine", "ant"], [[2], [0, 1]]),
        (["ant", "crane", "elk"], ["ant", "crane, bird", "crane, machine"], [[0], [1, 2], []]),
        (["ant", "crane", "dog"], ["ant", "crane, bird", "crane, machine", "dog"], [[0], [1, 2], [3]]),
        (["ant", "crane", "x"], ["x", "crane, bird", "crane, machine"], [[], [1, 2], [0]]),
        (["x", "crane", "crane"], ["x", "crane", "crane bird"], [[0], [1], [1, 2]]),
        (["A", "a"], ["a", "A"], [[1], [0]]),
        (["a", "A"], ["A", "b"], [[0, 1], [0]]),  # a may be A in any case, but A is
        (["tench", "Tinca tinca"], ["tench, Tinca tinca"], [[0], [0]]),
    ],
)
def test_names_are_matched_by_hand(names, categories, expected):
    assert match_names([("", name) for name in names], network(categories)) == expected


def test_wnids_decide_where_both_have_them():
    imagenet = network(["crane", "tench", "crane"], ["n02012849", "n01440764", "n03126707"])
    names = [("n03126707", "crane"), ("n02012849", "the bird"), ("", "Tench"), ("n00000001", "tench")]
    assert match_names(names, imagenet) == [[2], [0], [1], []]


def test_imagenets_names_of_two_classes_are_told_apart_by_their_order():
    """As package timm and torchvision spell them."""
    import timm
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    timms = timm.data.ImageNetInfo("imagenet-1k")
    names = [("", name) for name in _IMAGENET_CATEGORIES]
    for wnids in (timms.label_names(), []):
        classes = match_names(names, network(timms.label_descriptions(), wnids))
        # torchvision's "crane bird" and "maillot tank suit" are no names there, and its two cardigans differ in case
        assert {c: found for c, found in enumerate(classes) if found != [c]} == {134: [], 264: [264, 474], 639: []}


@pytest.fixture
def dataset(tmp_path):
    """A function that makes a split dataset with a picture of each class, and returns its folder."""

    def make(*names: str):
        for c in range(len(names)):
            save_photo(tmp_path / f"DL_data_p/{c}/{c}.png", c, (8, 8))
        (tmp_path / "DL_data_p/synset_words.txt").write_text("".join(f"{name}\n" for name in names))
        return tmp_path

    return make


def labels_of(model: SimpleNamespace, folder) -> tuple[dict[str, int], list[dict]]:
    files = common.label_images(common.validation_images(folder), model, folder)
    return {file.key.rpartition("/")[2]: file.label for file in files}, files.skipped


def test_images_of_a_class_that_the_network_lacks_are_skipped_with_the_reason(dataset, capsys):
    model = network(["cat", "dog", "elk"])
    folder = dataset("elk", "emu", "cat")
    found, skipped = labels_of(model, folder)
    assert found == {"0.png": 2, "2.png": 0}
    assert [entry["path"] for entry in skipped] == ["DL_data_p/1/1.png"]
    assert skipped[0]["reason"].startswith("its class 'emu' is not among the network's 3 classes (names: names.txt)")
    file = folder / "DL_data_p/synset_words.txt"
    assert model.notes == [
        f"labels are matched by name, not by id ({file}; the network's names: names.txt)",
        f"1 class of {file} not matched with the network's, 1 image skipped: emu",
        f"1 class of the network not in {file}: dog",
    ]
    assert capsys.readouterr().err == "".join(f"note: {note}\n" for note in model.notes)


def test_ambiguous_labels_and_labels_without_a_name_are_skipped(dataset):
    folder = dataset("x", "crane")
    save_photo(folder / "DL_data_p/7/7.png", 7, (8, 8))
    found, skipped = labels_of(network(["crane", "x", "crane"]), folder)
    assert found == {"0.png": 1}
    assert "its class 'crane' names two classes: 0 and 2: give its full name" in skipped[0]["reason"]
    assert "its class 7 has no name in" in skipped[1]["reason"]
    model = network(["tench, Tinca tinca"])  # of two names
    assert labels_of(model, dataset("tench", "Tinca tinca"))[0] == {"0.png": 0, "1.png": 0}
    assert any("2 classes of" in note and note.endswith("of the network: tench, Tinca tinca") for note in model.notes)


@pytest.mark.parametrize(
    ("names", "categories", "source"),
    [
        (["cat", "dog"], ["class 0", "class 1"], "numbers"),  # of a network without names
        (["0", "1"], ["dog", "cat"], "names.txt"),  # folders that are numbers
        (["cat", "dog"], ["1", "0"], "the checkpoint"),
    ],
)
def test_ids_are_taken_as_they_are_where_one_side_has_only_numbers(dataset, names, categories, source):
    model = network(categories, names_from=source)
    assert labels_of(model, dataset(*names)) == ({"0.png": 0, "1.png": 1}, []) and model.notes == []


def test_numbers_on_both_sides_are_names(dataset):
    """A network trained by ImageFolder, where 10 comes before 2, and folders numbered by --numeric."""
    in_text_order = sorted(map(str, range(12)))
    folder = dataset(*map(str, range(12)))
    found, _ = labels_of(network(in_text_order), folder)
    assert found["2.png"] == in_text_order.index("2") == 4 and found["10.png"] == 2
    (folder / "DL_data_p/synset_words.txt").unlink()
    assert match_labels(network(["cat", "dog"]), folder) is None  # a dataset without names is labelled by ids
    assert labels_of(network(in_text_order), folder)[0]["2.png"] == 2


def test_the_limit_counts_images_that_have_a_class(dataset):
    folder = dataset("emu", "dog", "cat", "elk")
    files = common.label_images(common.validation_images(folder), network(["cat", "dog", "elk"]), folder)
    two = common.spread_over_classes(files, 2, seed=0)
    assert [file.index for file in two] == [0, 1] and {file.label for file in two} < {0, 1, 2}
    assert two.classes == 3 and len(two.skipped) == 1


def named(model: SimpleNamespace, folder) -> tuple[list[str], str]:
    name_classes(model, read_dataset_names(folder))
    return model.categories, model.names_from


def test_a_datasets_names_are_shown_only_where_they_are_the_networks(dataset):
    """A list in another order, or of other classes, named every prediction wrong, or ended the run."""
    own, path = ["tench, Tinca tinca", "goldfish"], dataset("Tench", "Goldfish") / "DL_data_p/synset_words.txt"
    folder = path.parents[1]
    assert named(network(own, names_from="the network"), folder) == (["Tench", "Goldfish"], str(path))
    for names in (("Goldfish", "Tench"), ("Tench", "emu"), ("Tench",), ("Tench", "Goldfish", "emu")):
        model = network(own, names_from="the network")
        assert named(model, dataset(*names)) == (own, "the network")
        assert model.notes == [f"{path} does not have the names of the network's 2 classes in order: not used"]


def test_imagenets_names_may_be_spelled_in_other_ways(dataset):
    """Three of four in their places; but not if the fourth stands for another class."""
    own, wnids = ["tench", "goldfish", "cock", "hen"], [f"n0000000{c}" for c in range(4)]
    folder = dataset("tench", "goldfish", "rooster", "hen")
    assert named(network(own, wnids, "the network"), folder)[0][2] == "rooster"
    assert named(network(own, wnids, "the network"), dataset("tench", "goldfish", "hen", "cock"))[0] == own


@pytest.mark.parametrize(
    ("carried", "names", "expected"),
    [
        (["0", "1"], ["cat", "dog"], ["cat", "dog"]),
        (["1", "0"], ["cat", "dog"], ["1", "0"]),
        (["x", "y"], ["cat", "dog"], ["x", "y"]),
        # as ImageFolder leaves them of folders named by wnids; the dataset's list has names beside them
        (["n01440764", "n01443537"], ["n01443537 goldfish", "n01440764 tench"], ["n01440764", "n01443537"]),
        (["a"], None, ["class 0", "class 1"]),
    ],
)
def test_names_that_a_checkpoint_carries(dataset, tmp_path, carried, names, expected):
    model = network(["class 0", "class 1"], names_from="numbers")
    model.checkpoint_names = carried
    folder = dataset(*names) if names else tmp_path
    assert named(model, folder)[0] == expected
    if not names:
        assert model.notes == ["the checkpoint has 1 names for 2 classes: not used"]
    elif names[0].startswith("n"):
        assert labels_of(model, folder) == ({"0.png": 1, "1.png": 0}, [])


def test_wnids_of_the_library_are_not_those_of_a_network_that_was_trained_again(dataset):
    folder = dataset("n01440764 tench", "n01443537 goldfish")
    model = network(["tench", "goldfish"], ["n01440764", "n01443537"], "the network")
    model.checkpoint_names = ["goldfish", "tench"]
    named(model, folder)
    assert labels_of(model, folder)[0] == {"0.png": 1, "1.png": 0}
