"""Checks that a resumed run is still the same run."""

import json
from pathlib import Path
from typing import Any

import yaml

from timm_wsms.errors import UserError
from timm_wsms.foreign import read_yaml, understood
from timm_wsms.training.environment import versions
from timm_wsms.training.settings import Settings, dump

VERSIONS = "versions.json"

# A resumed run may change these without changing its result. The data may move, but not change.
FREE = {
    "baseline",
    "baseline_kwargs",
    "checkpoint_every",
    "checkpoint_every_minutes",
    "checkpoint_every_steps",
    "data.source",
    "data.workers",
    "dry_run",
    "eval_every",
    "eval_object_sizes",
    "grad_checkpointing",
    "hang_timeout",
    "hub.private",
    "hub.push",
    "hub.tag",
    "keep_best",
    "keep_last",
    "max_skipped_steps",
    "output",
    "resume",
    "resume_with_changes",
    "trackers",
}


def check_same_run(settings: Settings, saved: Path) -> list[str]:
    """Compares settings with those that a run was started with.

    Args:
        settings: settings of the run to be resumed.
        saved: settings.yaml of the run so far.

    Returns:
        What differs, as `name before → now`.

    Raises:
        UserError: something differs that changes the result, and `resume_with_changes` is not set; names everything.
    """
    if not saved.is_file():
        raise UserError(f"{saved} is missing, so that the run cannot be resumed; choose another --output")
    default = flat(yaml.safe_load(dump(Settings(settings.model))))  # for settings newer than the run
    with understood(saved, "choose another --output"):
        before = {**default, **flat(read_yaml(saved))}
    now = {**default, **flat(yaml.safe_load(dump(settings)))}
    free = FREE | ({"epochs"} if settings.schedule.name in ("constant", "step") else set())
    free -= {"eval_every"} if settings.early_stop else set()
    differ = {
        key: f"{key} {before.get(key)} → {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    changing = [text for key, text in differ.items() if key not in free]
    if changing and not settings.resume_with_changes:
        raise UserError(
            f"{saved.parent} holds a run with other settings ({', '.join(changing)}), which would change its result; "
            "give the same ones to resume it, or --resume_with_changes true, or choose another --output"
        )
    return [text for key, text in differ.items() if key not in ("output", "resume", "resume_with_changes")]


def changed_versions(folder: Path) -> list[str]:
    """Packages whose versions have changed since a run was last started, as `name before → now`.

    Args:
        folder: the run's; it may be from before versions were kept.
    """
    path = folder / VERSIONS
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [f"{name} {before[name]} → {now}" for name, now in versions().items() if before.get(name, now) != now]


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings with their full names, e.g. `data.source`."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and not key.endswith("kwargs")
        result.update(flat(value, f"{path}{key}.") if nested else {path + key: value})
    return result
