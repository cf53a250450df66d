"""A cascade against a loop over images, one by one, written with the stages' logits."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.networks import images, randomize
from timm_wsms import Cascade, UserError, WsmsMeanNet
from timm_wsms.network.exits import choose_thresholds
from timm_wsms.network.pyramid import make_pyramid

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
FORMS = {
    "two": ("wsmean_test_resnet", {}),
    "three": ("wsms_test_resnet", {"fusion": "mean", "pyramid": [1.5, 1, 0.6]}),
    "tokens": ("wsms_test_vit", {"fusion": "mean", "pyramid": [1, 0.5], "img_size": 64}),
}
each_form = pytest.mark.parametrize("form", FORMS)


def network(form="two"):
    name, arguments = FORMS[form]
    torch.manual_seed(0)
    return randomize(timm.create_model(name, num_classes=5, **arguments).double()).eval()


def pictures(number):
    return images(64, number, dtype=torch.float64)


def by_hand(model, image, thresholds, temperatures):
    """One image (1, C, H, W) → the mean of the logits so far, and the number of stages; the smallest image first."""
    each = model.stage_logits(image)  # of the stages in their own order
    order = sorted(range(len(each)), key=lambda place: model.factors()[place])
    for taken in range(1, len(order) + 1):
        logits = sum(each[place] for place in order[:taken]) / taken
        if taken == len(order):
            break
        if (logits[0] / temperatures[taken - 1]).softmax(0).max() >= thresholds[taken - 1]:
            break
    return logits, taken


def middle(model, x):
    """A threshold that some images reach, and others do not, at every exit."""
    cascade = Cascade(model, 2.0)
    with torch.no_grad():
        return float(cascade.stages[0](x).softmax(-1).amax(-1).median())


@each_form
@pytest.mark.parametrize("number", [1, 2, 9])
def test_each_image_gets_what_it_gets_alone(form, number):
    model, x = network(form), pictures(9)
    level = middle(model, x)
    with torch.no_grad():
        count = len(model.factors()) - 1
        thresholds, heats = [level, level * 0.9][:count], [1.0, 1.3][:count]
        expected, taken = zip(*(by_hand(model, x[i : i + 1], thresholds, heats) for i in range(number)), strict=True)
        cascade = Cascade(model, thresholds, heats)
        found = cascade(x[:number])
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)
    assert cascade.last_exits.tolist() == list(taken)
    assert number < 9 or len(set(taken)) > 1  # decided and undecided images in one batch
    assert not found.requires_grad


@each_form
def test_thresholds_at_their_limits(form):
    model, x = network(form), pictures(5)
    with torch.no_grad():
        whole, each = model(x), model.stage_logits(x)
    smallest = model.factors().index(min(model.factors()))
    always, never = Cascade(model, 0), Cascade(model, 1.0001)
    assert torch.equal(never(x), whole)  # bit for bit
    assert torch.equal(always(x), each[smallest])
    assert never.last_exits.tolist() == [len(each)] * 5 and always.last_exits.tolist() == [1] * 5
    assert Cascade(model, 1e9)(x[:1]).shape == (1, 5)


def test_only_undecided_images_go_on(monkeypatch):
    model, x = network("three"), pictures(9)
    cascade = Cascade(model, middle(model, x))
    seen = []
    for stage in cascade.stages:
        stage.register_forward_pre_hook(lambda stage, given: seen.append((stage.factor, len(given[0]))))
    cascade(x)
    exits = cascade.last_exits
    assert seen == [(0.6, 9), (1.0, int((exits > 1).sum())), (1.5, int((exits > 2).sum()))]
    assert 0 < seen[1][1] < 9


def test_what_was_spent():
    model, x = network("three"), pictures(9)
    cascade = Cascade(model, middle(model, x))
    counts = []
    for image in make_pyramid(x[:1], [0.6, 1, 1.5]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.backbone(image)
        counts.append(counter.get_total_flops())
    costs = [sum(counts[: taken + 1]) / counts[1] for taken in range(3)]
    assert cascade.costs((3, 64, 64)) == pytest.approx(costs)
    cascade(x)
    exits = cascade.last_exits.tolist()
    assert cascade.last_cost == pytest.approx(sum(costs[exit_ - 1] for exit_ in exits) / 9)
    cascade(x[:2])
    assert cascade.last_cost == pytest.approx(sum(costs[exit_ - 1] for exit_ in exits[:2]) / 2)
    lines = cascade.summary().splitlines()
    both = exits + exits[:2]
    assert lines[0] == f"exit 1, after the image × 0.6: {both.count(1)} of 11 images"
    assert lines[-1].endswith(f": {sum(costs[exit_ - 1] for exit_ in both) / 11:.3f}")
    cascade.reset()
    for ask in (cascade.summary, lambda: cascade.last_cost):
        with pytest.raises(UserError, match="has not seen an image"):
            ask()


def test_images_of_several_sizes_cost_what_each_costs():
    model = network()
    cascade = Cascade(model, 0)
    cascade(images(64, 2, dtype=torch.float64))
    cascade(images(32, 1, dtype=torch.float64))
    assert cascade.summary().endswith(f"{(2 * cascade.costs((3, 64, 64))[0] + cascade.costs((3, 32, 32))[0]) / 3:.3f}")


def batches(model, number=240, classes=5):
    """Images, and labels that the network mostly gets right: its own answers, one in eight replaced."""
    random = torch.Generator().manual_seed(3)
    for start in range(0, number, 60):
        x = images(32, 60, seed=start)
        with torch.no_grad():
            labels = model(x).argmax(1)
        drawn = torch.randint(classes, (60,), generator=random)
        yield x, torch.where(torch.rand(60, generator=random) < 1 / 8, drawn, labels)


def test_calibration_finds_what_its_core_finds_and_uses_it(tmp_path):
    model = network().float()
    cascade = Cascade(model, 0)
    x, labels = (torch.cat(each) for each in zip(*batches(model), strict=True))
    found = cascade.calibrate(batches(model), max_drop=15)
    with torch.no_grad():
        small, large = model.stages["2"](make_pyramid(x, [1, 0.5])[1]), model.backbone(x)
        small = model.stages["2"].backbone.forward_head(small)
    exits = torch.stack([small, (small + large) / 2])
    expected = choose_thresholds(exits, labels, 15)
    assert found.temperatures == pytest.approx(expected.temperatures, rel=1e-3)
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-3) and 0 < found.confidence[0] < 1
    assert (found.exits, found.drop) == (expected.exits, expected.drop)
    assert (cascade.confidence, cascade.temperatures) == (found.confidence, found.temperatures)
    assert found.images == 180 and sum(found.exits) == 180
    cascade(x)
    early = (cascade.last_exits == 1) & (torch.arange(240) % 4 != 0)
    assert abs(int(early.sum()) - found.exits[0]) <= 1
    cascade.save(tmp_path)
    again = Cascade.from_folder(tmp_path, model)
    assert (again.confidence, again.temperatures) == (cascade.confidence, cascade.temperatures)
    assert torch.equal(again(x[:7]), cascade(x[:7]))


def test_from_a_folder_that_timm_saved(tmp_path):
    model, arguments = network().float(), {"pyramid": [1, 0.5], "unshared_norms": "statistics"}
    timm.models.save_for_hf(model, tmp_path, model_args=arguments, safe_serialization=True)
    Cascade(model, [0.25], 1.5).save(tmp_path)
    loaded = Cascade.from_folder(tmp_path)
    x = images(64, 5)
    assert torch.equal(loaded(x), Cascade(model, 0.25, 1.5)(x)) and loaded.confidence == [0.25]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    model = network()
    with pytest.raises(UserError, match=r"there is no .*calibrate"):
        Cascade.from_folder(tmp_path, model)
    Cascade(network("three"), 0.5).save(tmp_path)
    with pytest.raises(UserError, match=r"for a pyramid of .0\.6, 1\.0, 1\.5"):
        Cascade.from_folder(tmp_path, model)
    values = json.loads((tmp_path / "cascade.json").read_text())
    for text in ("{", "[]", "{}", "3"):
        (tmp_path / "cascade.json").write_text(text)
        with pytest.raises(UserError, match="is not a cascade's file"):
            Cascade.from_folder(tmp_path, model)
    (tmp_path / "cascade.json").write_text(json.dumps({**values, "confidence": 0.5, "temperatures": 1}))
    with pytest.raises(UserError, match=r"for a pyramid of .0\.6, 1\.0, 1\.5"):
        Cascade.from_folder(tmp_path, model)


def test_a_threshold_that_is_none_is_refused_with_the_name_of_its_file(tmp_path):
    Cascade(network()).save(tmp_path)
    values = json.loads((tmp_path / "cascade.json").read_text())
    (tmp_path / "cascade.json").write_text(json.dumps({**values, "confidence": [float("nan")]}))
    with pytest.raises(UserError, match=f"{tmp_path}/cascade.json: confidence must be one number"):
        Cascade.from_folder(tmp_path, network())
    with pytest.raises(UserError, match=r"there is no folder .*save the model there first"):
        Cascade(network()).save(tmp_path / "other")


def test_another_backbone_is_noticed():
    model = network()
    cascade = Cascade(model, 2.0)
    cascade(pictures(2))
    model.backbone = copy.deepcopy(model.backbone)
    with pytest.raises(UserError, match="another backbone than"):
        cascade(pictures(2))
    assert torch.equal(Cascade(model, 2.0)(pictures(2)), model(pictures(2)))


def test_numbers_of_numpy_are_numbers():
    cascade = Cascade(network(), np.float32(0.5), [np.int64(2)])
    assert (cascade.confidence, cascade.temperatures) == ([0.5], [2.0])


def test_copies_and_changes_of_the_model_are_followed():
    model, x = network(), pictures(4)
    cascade = Cascade(model, 2)
    twin = copy.deepcopy(cascade)
    with torch.no_grad():
        model.backbone.get_classifier().weight.mul_(2)
        assert torch.equal(cascade(x), model(x))
        assert torch.equal(twin(x), twin.model(x)) and not torch.equal(twin(x), model(x))
    cascade.float()
    assert cascade(x.float()).dtype == torch.float32
    model.reset_classifier(7)
    assert torch.equal(cascade(x.float()), model(x.float()))
    assert cascade.state_dict().keys() == {f"model.{key}" for key in model.state_dict()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: timm.create_model("test_resnet").eval(), "fusion='mean'.*ResNet"),
        (lambda: timm.create_model("wsms_test_resnet").eval(), "fusion='mean'.*WsmsNet"),
        (lambda: network().train(), r"model.eval\(\)"),
        (lambda: timm.create_model("wsmean_test_resnet", num_classes=0).eval(), "reset_classifier"),
        (lambda: timm.create_model("wsms_test_resnet", fusion="mean", pyramid=[1]).eval(), "two stages"),
        (lambda: timm.create_model("wsmean_test_resnet", num_classes=1).eval(), "two classes or more"),
    ],
)
def test_other_models_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        Cascade(change())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("confidence", [-0.1, float("nan"), float("inf"), 10**400, True, "0.9", [0.5, 0.5], [], None])
def test_thresholds_that_are_none_are_refused(confidence):
    with pytest.raises(UserError, match="confidence must be one number, or 1, one for every exit but the last"):
        Cascade(network(), confidence)


@pytest.mark.parametrize("temperatures", [0, -1.0, [1.0, 1.0]])
def test_temperatures_that_are_none_are_refused(temperatures):
    with pytest.raises(UserError, match="temperatures must be one number"):
        Cascade(network(), 0.9, temperatures)


def test_training_is_refused():
    cascade = Cascade(network())
    with pytest.raises(UserError, match="train its model"):
        cascade.train()
    cascade.eval()
    cascade.model.train()
    with pytest.raises(UserError, match="inference only"):
        cascade(pictures(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no batches"),
        ([torch.zeros(2, 3, 32, 32)], "two tensors; not Tensor"),
        ([(torch.zeros(2, 3, 32, 32), torch.zeros(3, dtype=torch.int64))], "class numbers"),
        ([(torch.zeros(2, 3, 32, 32), torch.zeros(2))], "labels must be class numbers, .*; not torch.float32"),
        ([(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))], "2 images are too few .* at least 544"),
    ],
)
def test_batches_that_do_not_do(given, message):
    with pytest.raises(UserError, match=message):
        Cascade(network()).calibrate(given)


@pytest.mark.parametrize("wrong", [-100, -1, 5])
def test_labels_that_are_no_class_are_refused(wrong):
    labels = torch.arange(60) % 5
    labels[17] = wrong
    with pytest.raises(UserError, match=rf"1 of 60 labels are outside the classes 0 to 4, such as {wrong}; leave out"):
        Cascade(network()).calibrate([(pictures(60), labels)], 20.0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_other_integers_are_the_same(dtype):
    given, labels = pictures(60), torch.arange(60) % 5
    expected = Cascade(network()).calibrate([(given, labels)], 20.0)
    assert Cascade(network()).calibrate([(given[:0], labels[:0]), (given, labels.to(dtype))], 20.0) == expected


def test_logits_that_are_not_finite_are_refused():
    given = pictures(60)
    given[3, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="logits of 1 of 60 images are not finite"):
        Cascade(network()).calibrate([(given, torch.arange(60) % 5)], 20.0)


def test_an_image_that_is_too_small_is_refused_before_the_first_stage():
    with pytest.raises(UserError, match="1×4 pixels is too small for 2 stages"):
        Cascade(network())(torch.zeros(1, 3, 1, 4, dtype=torch.float64))


@pytest.mark.slow  # compiles
def test_with_each_stage_compiled():
    model, x = network("two").float(), pictures(9).float()
    assert isinstance(model, WsmsMeanNet)
    level = middle(model, x)
    expected = Cascade(model, level)(x)
    cascade = Cascade(model, level)
    for stage in cascade.stages:
        stage.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(cascade(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cascade(x[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    assert 0 < cascade.last_cost < 1.3


@pytest.mark.parametrize(
    "trace",
    [
        lambda cascade, x: torch.jit.trace(cascade, x),
        lambda cascade, x: torch.export.export(cascade, (x,), strict=True),
        lambda cascade, x: torch.export.export(cascade, (x,), strict=False),
        lambda cascade, x: torch.fx.symbolic_trace(cascade),
    ],
    ids=["trace", "export, strict", "export", "fx"],
)
def test_a_graph_of_what_was_decided_for_some_images_is_refused(trace):
    model, x = network(), pictures(9)
    cascade = Cascade(model, middle(model, x))
    cascade(x)  # PyTorch asks for all properties, and `last_cost` has none before
    with pytest.raises((UserError, TorchDynamoException)) as error:
        trace(cascade, x)
    assert "export each of cascade.stages" in str(error.value).splitlines()[0]


def test_compiled_as_a_whole_it_still_decides_for_each_image():
    """The graphs break where it decides."""
    model, x = network(), pictures(9)
    cascade = Cascade(model, middle(model, x))
    compiled = torch.compile(cascade, backend="eager")
    for batch in (x, x[:4], x.flip(0)):
        torch.testing.assert_close(compiled(batch), cascade(batch))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("number", [1, 64])
def test_on_a_gpu_it_decides_as_on_the_cpu(number, compiled, device="cuda"):
    model, x = network().float(), pictures(64).float()
    cascade = Cascade(model)
    with torch.no_grad():
        surest = cascade.stages[0](x).softmax(-1).amax(-1).sort().values
    cascade.confidence = [float((surest[31] + surest[32]) / 2)]  # no image is at the threshold
    expected = cascade(x)
    exits = cascade.last_exits
    assert exits.unique().tolist() == [1, 2]
    moved = Cascade(model.to(device), cascade.confidence)
    for stage in moved.stages if compiled else ():
        stage.compile()
    for start in range(0, 4 * number if number == 1 else 64, number):
        batch = slice(start, start + number)
        found = moved(x[batch].to(device))
        assert found.device.type == device and torch.equal(moved.last_exits.cpu(), exits[batch])
        torch.testing.assert_close(found.cpu(), expected[batch], rtol=1e-3, atol=1e-3)
