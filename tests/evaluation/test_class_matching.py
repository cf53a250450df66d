"""The classes of trained models, matched with those of the data."""

import pytest
import torch
from timm.data import ImageNetInfo
from torch import nn

from timm_wsms.errors import UserError
from timm_wsms.evaluation.class_matching import match_classes


class Ranks(nn.Module):
    """Gives each class its number as its logit."""

    def __init__(self, label_names, count=3):
        super().__init__()
        self.pretrained_cfg, self.count = {"label_names": label_names}, count

    def forward(self, images):
        return torch.arange(float(self.count)).repeat(len(images), 1)


@pytest.mark.parametrize(
    "label_names",
    [["c", "a", "b"], {"0": "c", "1": "a", "2": "b"}, {"2": "b", "0": "c", "1": "a"}, {1: "a", 2: "b", 0: "c"}],
)
def test_the_same_names_in_another_order_are_matched_by_name(label_names):
    model, names, remark = match_classes(Ranks(label_names), ["a", "b", "c"], 3)[:3]
    assert names == ["a", "b", "c"]
    assert model(torch.zeros(2, 1)).tolist() == [[1.0, 2.0, 0.0]] * 2
    assert remark is not None and "by name" in remark
    assert not model.state_dict()


def test_nothing_changes_in_the_datas_order():
    model = Ranks(["a", "b", "c"])
    assert match_classes(model, ["a", "b", "c"], 3) == (model, ["a", "b", "c"], None, True)


def test_a_model_that_does_not_name_its_classes_is_matched_by_number_and_told():
    model = Ranks(None)
    same, names, remark = match_classes(model, ["a", "b", "c"], 3)[:3]
    assert same is model and names == ["a", "b", "c"]
    assert remark == "its checkpoint does not name its classes; they are taken to be in the data's order"


@pytest.mark.parametrize("label_names", [["a", "x", "c"], ["a", "c", "c"]])
def test_other_names_are_matched_by_number_and_told(label_names):
    model = Ranks(label_names)
    same, _, remark = match_classes(model, ["a", "b", "c"], 3)[:3]
    assert same is model
    assert remark is not None and "by number" in remark and f'"{label_names[1]}" is "b"' in remark


@pytest.mark.parametrize("label_names", [["a", "b"], ["a", "x", "c", "d"]])
def test_names_of_other_number_are_told(label_names):
    model = Ranks(label_names)
    same, _, remark = match_classes(model, ["a", "b", "c"], 3)[:3]
    assert same is model
    assert remark == f"it names {len(label_names)} classes, the data 3; they are matched by number"


@pytest.mark.parametrize("label_names", [["a", "b", "c"], ["b", "d", "a"], ["d", "b"]])
def test_names_that_are_found_at_another_place_are_not_matched_by_number(label_names):
    with pytest.raises(UserError, match="does not know these of the data's 3: "):
        match_classes(Ranks(label_names), ["b", "c", "d"], 3)


def test_a_dictionary_of_names_may_have_gaps():
    found = match_classes(Ranks({"3": "d", "1": "b"}, 4), ["b", "d"], 4)
    assert found.model(torch.zeros(1, 1)).tolist() == [[1.0, 3.0, 0.0, 2.0]]
    assert found.class_names == ["b", "d", "class 0, without a name", "class 2, without a name"]
    for wrong in ({"3": "a"}, {"-1": "a"}, {"x": "a"}):
        with pytest.raises(UserError, match="must map numbers from 0 to 2 to names"):
            match_classes(Ranks(wrong), ["a", "b", "c"], 3)


def test_some_of_the_classes_are_matched_by_name_and_all_compete():
    model, names, remark = match_classes(Ranks(["a", "b", "c", "d"], 4), ["d", "b"], 4)[:3]
    assert names == ["d", "b", "a", "c"]
    assert model(torch.zeros(1, 1)).tolist() == [[3.0, 1.0, 0.0, 2.0]]
    assert remark == "the data has 2 of its 4 classes; they are matched by name, and all compete"


# Imagenette's classes, with the numbers that the benchmark's own table has for them.
NUMBERS = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
IDS = [
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
]
WORDS = ["tench", "English springer", "cassette_player", "chainsaw", "Church", "French horn", "dustcart", "gas pump"]


@pytest.mark.parametrize("names", [IDS, [*WORDS, "golf-ball", "parachute, chute"], ["Tinca tinca", *IDS[1:]]])
def test_a_model_of_imagenet_knows_its_classes_by_id_and_by_name(names):
    model, all_names, remark = match_classes(Ranks(None, 1000), names, 1000)[:3]
    order = model(torch.zeros(1, 1))[0].int().tolist()
    assert order[:10] == NUMBERS and sorted(order) == list(range(1000))
    assert all_names[:10] == names and len(all_names) == 1000
    assert all_names[10] == "goldfish"  # class 1
    assert remark is not None and "10 of its 1000 classes" in remark


def test_a_whole_imagenet_by_name_is_matched_too():
    synsets = ImageNetInfo().label_names()
    model = Ranks(None, 1000)
    assert match_classes(model, synsets, 1000).model is model
    backwards = match_classes(model, synsets[::-1], 1000)
    assert backwards.model(torch.zeros(1, 1))[0].tolist() == list(range(999, -1, -1))
    assert "by name" in backwards.remark


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tench", "spam", "eggs"], r"has 1000 classes, and does not know these of the data's 3: spam, eggs"),
        (["x", "y"], "has 1000 classes, but the data has 2"),
        (["tench", "crane"], "does not know these of the data's 2: crane"),  # a bird and a machine
        (["tench", "Tinca tinca"], "several names for one class"),
    ],
)
def test_classes_that_a_model_does_not_know_are_named(names, message):
    with pytest.raises(UserError, match=message):
        match_classes(Ranks(None, 1000), names, 1000)
    with pytest.raises(UserError, match="does not know these of the data's 2: x"):
        match_classes(Ranks(["a", "b", "c"], 3), ["a", "x"], 3)


def test_accents_in_either_form_are_one_name():
    model, names, remark = match_classes(Ranks(["e\u0301", "a", "b"]), ["\u00e9", "b", "a"], 3)[:3]
    assert names == ["\u00e9", "b", "a"] and remark is not None and "by name" in remark
    assert model(torch.zeros(1, 1)).tolist() == [[0.0, 2.0, 1.0]]


@pytest.mark.parametrize("label_names", [3, [None, "a", "b"], [["a"], ["b"], ["c"]], {"0": {}}, "abc"])
def test_names_that_are_no_words_are_refused(label_names):
    with pytest.raises(UserError, match="has class names that are not words"):
        match_classes(Ranks(label_names), ["a", "b", "c"], 3)


def test_numbers_as_names_are_names():
    assert match_classes(Ranks([0, 1, 2]), ["0", "1", "2"], 3).remark is None
