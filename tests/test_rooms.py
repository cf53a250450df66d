"""Which rooms of the package may import which: dependencies run one way."""

import ast
from collections.abc import Iterator

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "timm_wsms"
# Any room may import what all use: modules at the top of the package that are no commands.
ALLOWED = {
    "backbones": set(),
    "network": {"backbones"},
    "registry": {"backbones", "network", "hub"},  # hub: downloads and the checks of what comes from there
    "data": set(),
    "evaluation": {"data", "network", "registry"},
    "training": {"data", "evaluation", "network", "registry", "hub"},
    "hub": {"data", "evaluation", "network", "registry", "training"},
}
SHARED = {
    "accelerator",
    "cli_errors",
    "errors",
    "files",
    "foreign",
    "model_checks",
    "object_scaling",
    "timm_private",
    "utils",
}
COMMANDS = {"evaluate", "object_size", "publish", "run", "scale"}
OUTSIDE = {
    "benchmarks",
    "examples",
    "hub",
    "tests",
    "train_accelerate",
}  # beside the package; `hub` is the folder there


def imported(source: str) -> Iterator[str]:
    """The modules that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(room: str, source: str) -> list[str]:
    """What a file of a room imports and must not."""
    rest = {module.split(".")[1] for module in imported(source) if module.startswith("timm_wsms.")}
    rooms = rest & ALLOWED.keys()
    wrong = [f"timm_wsms.{other}" for other in sorted(rooms - ALLOWED[room] - {room})]
    wrong += [f"timm_wsms.{command}" for command in sorted(rest & COMMANDS)]
    return wrong + sorted({module.split(".")[0] for module in imported(source)} & OUTSIDE)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_it_may(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert len(files) > 1
    found = {str(file.relative_to(ROOT)): wrong for file in files if (wrong := forbidden(room, file.read_text()))}
    assert not found


def test_what_all_rooms_use_imports_no_room():
    for name in SHARED:
        modules = set(imported((PACKAGE / f"{name}.py").read_text()))
        assert not {module for module in modules for room in ALLOWED if module.startswith(f"timm_wsms.{room}")}, name


def test_every_room_and_module_has_its_place_in_this_test():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == ALLOWED.keys()
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules <= SHARED | COMMANDS


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("network", "from timm_wsms.data import Split", ["timm_wsms.data"]),
        ("evaluation", "    import timm_wsms.training.settings", ["timm_wsms.training"]),
        ("data", "from timm_wsms import evaluation", ["timm_wsms.evaluation"]),
        ("training", "import train_accelerate", ["train_accelerate"]),
        ("evaluation", "from timm_wsms.evaluate import main", ["timm_wsms.evaluate"]),
        ("evaluation", "from timm_wsms.data import Split", []),
    ],
)
def test_the_test_notices_what_is_forbidden(room, line, wrong):
    assert forbidden(room, f"def inner():\n    {line.strip()}\n") == wrong


def test_no_test_file_imports_another():
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    found = {path.name: modules & {*imported(path.read_text(encoding="utf-8"))} for path in files}
    assert len(modules) > 100 and {name: others for name, others in found.items() if others} == {}
