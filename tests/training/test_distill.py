"""Knowledge distillation, against its formula."""

from dataclasses import replace

import pytest
import timm
import torch
from torch.nn import functional as F

import timm_wsms  # noqa: F401  registers the names
from tests.helpers.preprocessing import preprocessing
from timm_wsms.data import DataSettings
from timm_wsms.errors import UserError
from timm_wsms.training.distill import build_task, build_teacher
from timm_wsms.training.settings import DistillSettings, Settings

CONFIG = preprocessing(64)
NAMES = ["a", "b", "c", "d", "e"]


def settings(teacher: str = "test_resnet", alpha: float = 0.3, temperature: float = 2.0, **kwargs) -> Settings:
    distill = DistillSettings(teacher, {"pretrained": False, **kwargs}, alpha, temperature)
    return Settings("wsms_test_resnet", distill=distill, label_smoothing=0.1)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_that_of_the_labels_and_of_the_teachers_softened_logits(mixed):
    torch.manual_seed(0)
    student = timm.create_model("wsms_test_resnet", num_classes=5).eval()
    teacher = build_teacher(settings(), CONFIG, NAMES)
    pixels = torch.rand(4, 3, 64, 64)
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    labels = torch.tensor([0, 2, 4, 4])
    if mixed:  # by timm's Mixup, which smooths too
        labels = F.one_hot(labels, 5) * 0.7 + 0.06
    task = build_task(student, student, teacher, settings(), torch.device("cpu"))
    loss = task((pixels - mean) / std, labels)["loss"]

    own = timm.data.resolve_data_config(model=teacher.model)
    as_it_learned = (pixels - torch.tensor(own["mean"]).view(3, 1, 1)) / torch.tensor(own["std"]).view(3, 1, 1)
    q = (teacher.model(as_it_learned) / 2).softmax(1)
    logits = student((pixels - mean) / std)
    p = (logits / 2).softmax(1)
    divergence = (q * (q / p).log()).sum(1).mean() * 2**2
    targets = labels if mixed else F.one_hot(labels, 5) * 0.9 + 0.1 / 5
    entropy = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, 0.7 * entropy + 0.3 * divergence, rtol=1e-4, atol=1e-6)

    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_a_teacher_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="no model test_resnat; did you mean"):
        build_teacher(settings("test_resnat"), CONFIG, NAMES)
    with pytest.raises(UserError, match=r"teacher test_resnet returns .* \(1, 1000\) .* not \(1, 5\)"):
        build_teacher(settings(num_classes=1000), CONFIG, NAMES)
    with pytest.raises(UserError, match="teacher test_vit cannot take images of 3×64×64"):
        build_teacher(settings("test_vit", dynamic_img_size=False), CONFIG, NAMES)
    of_sizes = replace(
        settings("test_vit", img_size=64, dynamic_img_size=False), data=DataSettings(train_sizes=[64, 48])
    )
    with pytest.raises(
        UserError, match=r"teacher test_vit .* 3×48×48 .* set other data\.train_sizes, or distill\.teacher"
    ):
        build_teacher(of_sizes, CONFIG, NAMES)
    with pytest.raises(UserError, match="other channels"):
        build_teacher(settings(in_chans=1), CONFIG | {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.5,)}, NAMES)
    assert build_teacher(Settings("a"), CONFIG, NAMES) is None


def test_a_pretrained_teacher_keeps_its_classifier(tmp_path):
    torch.manual_seed(0)
    trained = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(trained, tmp_path, safe_serialization=True)
    of_folder = Settings("a", distill=DistillSettings(f"local-dir:{tmp_path}"))
    teacher = build_teacher(of_folder, CONFIG, NAMES)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in teacher.model.state_dict().items())
    with pytest.raises(UserError, match=r"\(1, 5\) .* not \(1, 7\)"):
        build_teacher(of_folder, CONFIG, [*NAMES, "f", "g"])


def test_a_teachers_classes_are_matched_by_name(tmp_path):
    torch.manual_seed(0)
    trained = timm.create_model("test_resnet", num_classes=5).eval()
    config = {"label_names": ["d", "a", "e", "b", "c"]}
    timm.models.save_for_hf(trained, tmp_path, model_config=config, safe_serialization=True)
    distill = Settings("a", distill=DistillSettings(f"local-dir:{tmp_path}"))
    teacher = build_teacher(distill, CONFIG, NAMES)
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(teacher(images), trained(images)[:, [1, 3, 4, 0, 2]])
    assert "matched by name" in teacher.remark
    with pytest.raises(UserError, match=r"other classes than the data's \(b, x\); choose a distill.teacher") as error:
        build_teacher(distill, CONFIG, ["a", "x", "c", "d", "e"])
    assert len(str(error.value).splitlines()) == 1


def test_a_teacher_without_class_names_is_matched_by_number_and_says_so():
    assert (
        "does not name its classes; they are taken to be in the data's order"
        in build_teacher(settings(), CONFIG, NAMES).remark
    )
