"""Settings: recipe and command line, errors that name the key, and what is saved."""

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import yaml

from timm_wsms.errors import UserError
from timm_wsms.training.environment import versions
from timm_wsms.training.resume_check import changed_versions, check_same_run
from timm_wsms.training.settings import Settings, dump, parse, parser, plan, portable


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text: str, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


RECIPE = """
model: wsms_resnet18
model_kwargs: {stages: 3, residual: true}
lr: 0.5
data: {source: somewhere, mean: [0.5, 0.5, 0.5]}
schedule: {name: step, milestones: [2, 4]}
"""


@pytest.mark.parametrize("recipe_first", [True, False])
def test_the_command_line_wins_wherever_the_recipe_stands(recipe, recipe_first):
    own = ["--lr", "0.125", "--data.source", "elsewhere", "--model_kwargs.stages", "2", "--schedule.milestones", "[7]"]
    path = ["--recipe", recipe(RECIPE)]
    settings = parse([*path, *own] if recipe_first else [*own, *path])
    assert settings.lr == 0.125
    assert settings.data.source == "elsewhere"
    assert settings.data.mean == [0.5, 0.5, 0.5]  # the recipe's
    assert settings.model_kwargs == {"stages": 2, "residual": True}  # one is overridden, the other stays
    assert settings.schedule.milestones == [7]
    assert settings.schedule.name == "step"


def test_the_recipe_may_stand_between_and_be_joined_by_an_equals_sign(recipe):
    settings = parse(["--lr=0.125", f"--recipe={recipe(RECIPE)}", "--epochs", "3"])
    assert (settings.lr, settings.epochs, settings.model) == (0.125, 3, "wsms_resnet18")


def test_keyword_arguments_keep_their_types_and_can_be_emptied(recipe):
    path = recipe(RECIPE)
    settings = parse(["--recipe", path, "--model_kwargs.residual", "false", "--model_kwargs.integration", "conv3x3"])
    assert settings.model_kwargs == {"stages": 3, "residual": False, "integration": "conv3x3"}
    assert parse(["--model_kwargs", "{}", "--recipe", path]).model_kwargs == {}
    assert parse(["--recipe", path, "--optimizer.kwargs.betas", "[0.9, 0.95]"]).optimizer.kwargs == {
        "betas": [0.9, 0.95]
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: a\nlearning_rate: 1", "learning_rate"),
        ("model: a\noptimizer: {nam: sgd}", "nam"),
        ("model: a\ndata: {timm: {colour: 1}}", "colour"),
        ("model: a\nepochs: many", "epochs"),
        ("model: a\nepochs: 1.5", "epochs"),
        ("model: a\noptimizer: {name: [sgd]}", "optimizer.name"),
        ("model: a\ndata: {mean: grey}", "data.mean"),
        ("model: a\nprecision: int8", "precision"),
        ("model: [", "recipe"),
        ("lr: 1", "model"),
    ],
)
def test_a_bad_key_or_type_in_the_recipe_is_named(recipe, text, named):
    with pytest.raises(UserError, match=named) as caught:
        parse(["--recipe", recipe(text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--epoch", "3"], "--epoch 3"),  # no abbreviations
        (["--recip", "x"], "--recip"),
        (["--optimizer.nam", "sgd"], "--optimizer.nam"),
        (["--data.sorce", "x"], "--data.sorce"),
        (["--epochs", "many"], "epochs"),
        (["--lr", "fast"], "lr"),
        (["--lr", "0"], "lr"),
        (["--batch_size", "0"], "batch_size"),
        (["--ema_decay", "1"], "ema_decay"),
        (["--clip_grad", "-1"], "clip_grad"),
        (["--label_smoothing", "1"], "label_smoothing"),
        (["--mixup", "-1"], "mixup"),
        (["--mixup_prob", "1.5"], "mixup_prob"),
        (["--checkpoint_every_steps", "0"], "checkpoint_every_steps"),
        (["--keep_last", "0"], "keep_last"),
        (["--early_stop", "0"], "early_stop"),
        (["--freeze_epochs", "2"], "freeze_epochs is 2, but freeze is none; set --freeze backbone"),
        (["--freeze", "backbone", "--freeze_epochs", "0"], "freeze_epochs"),
        (["--freeze", "head"], "freeze"),
        (["--ema_warmup", "true"], "ema_warmup"),
        (["--optimizer.layer_decay", "1.5"], "optimizer.layer_decay"),
        (["--distill.alpha", "1.5"], "distill.alpha"),
        (["--stage_loss", "-1"], "stage_loss"),
        (["--stage_distill", "1", "--distill.teacher", "b"], "distill.teacher .* stage_loss, stage_distill"),
        (["--stage_distill", "-1"], "stage_distill is -1.0, but must be at least 0"),
        (["--stage_consistency", "-1"], "stage_consistency is -1.0, but must be at least 0"),
        (["--stage_distill_temperature", "0"], "stage_distill_temperature is 0.0, but must be above 0"),
        (["--head_init_scale", "0"], "head_init_scale is 0.0, but must be above 0"),
        (["--schedule.warmup_epochs", "-1"], "schedule.warmup_epochs is -1, but must be at least 0"),
        (["--lr", ".nan"], "lr is nan"),
        (["--distill.temperature", "0"], "distill.temperature"),
        (["--bce_threshold", "0.2"], "bce_threshold is 0.2, but loss is cross_entropy; set --loss bce"),
        (["--max_skipped_steps", "-1"], "max_skipped_steps"),
        (["--schedule.milestones", "[30, 20]"], "schedule.milestones"),
        (["--schedule.milestones", "[-3, 1]"], "schedule.milestones .* epochs from 1 on"),
        (["--schedule.gamma", "-1"], "schedule.gamma is -1.0, but must be above 0"),
        (["--schedule.gamma", ".nan"], "schedule.gamma is nan, but must be above 0"),
        (["--schedule.min_lr", "-1"], "schedule.min_lr is -1.0, but must be at least 0"),
        (["--schedule.name", "cosine", "--schedule.min_lr", "1"], "schedule.min_lr is 1.0, but must not be above lr"),
        (["--schedule.warmup_lr", "-1"], "schedule.warmup_lr is -1.0, but must be at least 0"),
        (["--schedule.warmup_epochs", "5", "--epochs", "2"], "schedule.warmup_epochs is 5, .* not be above epochs, 2"),
        (["--schedule.div_factor", "0"], "schedule.div_factor is 0.0, but must be above 0"),
        (["--optimizer.weight_decay", "-1"], "optimizer.weight_decay is -1.0, but must be at least 0"),
        (["--optimizer.weight_decay", ".inf"], "optimizer.weight_decay is inf, but must be finite"),
        (["--optimizer.momentum", "5"], "optimizer.momentum is 5.0, but must be at least 0 and below 1"),
        (["--lr", ".inf"], "lr is inf, but must be finite"),
        (["--stage_loss", ".inf"], "stage_loss is inf, but must be finite"),
        (["--seed", "-1"], "seed is -1, but must be from 0 to 4294967295"),
        (["--seed", "4294967296"], "seed is 4294967296, but must be from 0 to 4294967295"),
        (["--compile", "perhaps"], "compile"),
        (["--schedule.milestones", "[1, x]"], "schedule.milestones"),
        (["--resume", "yes"], "resume"),
        (["stray"], "stray"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["--recipe"], "--recipe"),
    ],
)
def test_a_bad_argument_is_named(arguments, named):
    with pytest.raises(UserError, match=named) as caught:
        parse(["--model", "a", *arguments])
    assert "\n" not in str(caught.value)


def test_what_is_saved_is_a_recipe_for_the_same_settings(recipe):
    settings = parse(
        [
            "--recipe",
            recipe(RECIPE),
            "--lr",
            "1e-5",
            "--data.timm.scale",
            "[0.5, 1]",
            "--clip_grad",
            "2",
            "--precision",
            "no",
        ]
    )
    assert settings.data.timm.scale == (0.5, 1.0)
    assert parse(["--recipe", recipe(dump(settings), "saved.yaml")]) == settings
    everything = {field.name for field in dataclasses.fields(Settings)}
    assert set(yaml.safe_load(dump(settings))) == everything


def test_a_dry_run_is_a_flag_wherever_it_stands(recipe):
    assert parse(["--dry-run", "--recipe", recipe(RECIPE)]).dry_run
    assert parse(["--recipe", recipe(RECIPE), "--dry-run", "--lr", "1"]).dry_run
    assert parse(["--model", "a", "--dry_run", "true"]).dry_run
    assert not parse(["--model", "a"]).dry_run


def test_help_shows_every_setting_with_an_explanation():
    text = " ".join(parser().format_help().split())
    for name, explanation in {
        "--model": "wsms_<backbone>",
        "--lr": "The peak learning rate",
        "--resume": "newest checkpoint",
        "--schedule.milestones": "counted from 1",
        "--optimizer.decay_norm_and_bias": "as the paper does",
        "--data.source": "a local folder",
        "--data.timm.scale": "area of a crop",
    }.items():
        assert name in text
        assert explanation in text


def test_published_settings_hold_no_path_of_this_machine(tmp_path):
    (tmp_path / "cifar10").mkdir()
    settings = parse(
        ["--model", "a", "--data.source", str(tmp_path / "cifar10"), "--output", str(tmp_path / "results" / "try")]
    )
    text = dump(portable(settings))
    assert str(tmp_path) not in text
    assert yaml.safe_load(text)["data"]["source"] == "cifar10"
    assert yaml.safe_load(text)["output"] == "outputs/try"
    own = parse(
        [
            *("--model", f"local-dir:{tmp_path}/cifar10", "--distill.teacher", f"local-dir:{tmp_path}/cifar10"),
            *("--model_kwargs.checkpoint_path", f"{tmp_path}/cifar10", "--model_kwargs.drop_rate", "0.5"),
        ]
    )
    published = portable(own)
    assert (published.model, published.distill.teacher) == ("local-dir:cifar10", "local-dir:cifar10")
    assert published.model_kwargs == {"checkpoint_path": "cifar10", "drop_rate": 0.5}
    hub = parse(["--model", "a", "--data.source", "uoft-cs/cifar10"])
    assert portable(hub).data.source == "uoft-cs/cifar10"


def test_only_harmless_settings_may_change_when_a_run_is_resumed(tmp_path):
    saved = tmp_path / "settings.yaml"
    saved.write_text(dump(parse(["--model", "a", "--data.augmentation", "pad_crop_flip"])), encoding="utf-8")
    same = ["--model", "a", "--data.augmentation", "pad_crop_flip"]
    check_same_run(parse([*same, "--epochs", "99", "--output", "x", "--resume", "auto", "--data.workers", "7"]), saved)
    with pytest.raises(UserError, match="model_kwargs"):
        check_same_run(parse([*same, "--model_kwargs.stages", "2"]), saved)
    with pytest.raises(
        UserError, match=r"data\.augmentation pad_crop_flip → none, lr 0\.1 → 0\.2.*resume_with_changes"
    ):
        check_same_run(parse(["--model", "a", "--lr", "0.2"]), saved)
    told = check_same_run(parse([*same, "--lr", "0.2", "--data.workers", "7", "--resume_with_changes", "true"]), saved)
    assert told == ["data.workers 2 → 7", "lr 0.1 → 0.2"]
    assert check_same_run(parse([*same, "--output", "x", "--resume", "auto"]), saved) == []
    elsewhere = ["--trackers", "[tensorboard]", "--eval_every", "3", "--grad_checkpointing", "true"]
    elsewhere += ["--eval_object_sizes", "[0.5]"]
    assert len(check_same_run(parse([*same, *elsewhere]), saved)) == 4
    for changing in (
        ["--freeze", "backbone"],
        ["--early_stop", "2"],
        ["--distill.teacher", "b"],
        ["--sync_bn", "true"],
    ):
        with pytest.raises(UserError, match=rf"{changing[0][2:]} .* → "):
            check_same_run(parse([*same, *changing]), saved)
    cosine = [*same, "--schedule.name", "cosine"]
    saved.write_text(dump(parse(cosine)), encoding="utf-8")
    with pytest.raises(UserError, match="epochs 10 → 99"):  # its learning rates would be others
        check_same_run(parse([*cosine, "--epochs", "99"]), saved)
    without_newer = "".join(line for line in dump(parse(same)).splitlines(True) if not line.startswith("mixup"))
    saved.write_text(without_newer, encoding="utf-8")
    assert check_same_run(parse(same), saved) == []
    with pytest.raises(UserError, match=r"mixup 0\.0 → 0\.5"):
        check_same_run(parse([*same, "--mixup", "0.5"]), saved)
    with pytest.raises(UserError, match="missing"):
        check_same_run(parse(same), Path(tmp_path / "nothing.yaml"))


def test_a_baseline_may_be_the_models_backbone():
    arguments = ["--model_kwargs", "{fusion: mean, pyramid: [1, 0.5], drop_rate: 0.1}"]
    arguments += ["--baseline_kwargs.drop_rate", "0.2", "--stage_distill", "1"]
    settings = parse(["--model", "wsms_resnet18", "--baseline", "auto", *arguments])
    baseline, own = plan(settings)
    assert (baseline.model, baseline.model_kwargs) == ("resnet18", {"drop_rate": 0.2})
    assert (baseline.stage_distill, baseline.baseline, own) == (0, None, settings)
    for name in ("resnet18", "local-dir:wsms_resnet18", "hf-hub:me/wsms_resnet18"):
        with pytest.raises(UserError, match="name the baseline, or leave it out with --baseline null"):
            plan(parse(["--model", name, "--baseline", "auto"]))


def test_a_resumed_run_says_which_packages_have_changed(tmp_path):
    assert changed_versions(tmp_path) == []  # of a run from before they were kept
    (tmp_path / "versions.json").write_text(json.dumps({**versions(), "timm": "1.0.30"}))
    assert changed_versions(tmp_path) == [f"timm 1.0.30 → {timm.__version__}"]
    (tmp_path / "versions.json").write_text(json.dumps(versions()))
    assert changed_versions(tmp_path) == []


def test_a_recipe_that_explodes_is_refused(recipe):
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '0'}]" for n in range(9))
    with pytest.raises(UserError, match=r"recipe\.yaml does not hold .*aliases stand for too much.*fix it"):
        parse(["--recipe", recipe(levels)])
    with pytest.raises(UserError, match=r"python/object/apply"):
        parse(["--recipe", recipe("lr: !!python/object/apply:os.getcwd []")])
    assert parse(["--recipe", recipe("model: &m resnet18\nbaseline: *m")]).baseline == "resnet18"


@pytest.mark.parametrize("text", ["optimizer: 0.5", "optimizer: .nan", "schedule: [1]", "data: {timm: 3}"])
def test_what_is_no_group_of_settings_is_named(recipe, text):
    """From the fuzzer."""
    with pytest.raises(UserError, match=r"(optimizer|schedule|timm) is a group of settings, not"):
        parse(["--recipe", recipe(f"model: resnet18\n{text}")])
