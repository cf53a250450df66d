"""What `pip install` gives a user, and that each fact about the package is stated once."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile

import pytest
import yaml

import timm_wsms
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # builds a wheel, and imports torch in a process of its own

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# What a user does first; in one process, since importing torch takes seconds.
SESSION = """
import runpy, sys
import timm, torch, timm_wsms
from timm_wsms.hub import card
assert "{venv}" in timm_wsms.__file__, timm_wsms.__file__
print("version", timm_wsms.__version__)
print("logits", *timm.create_model("wsms_test_resnet", num_classes=3).eval()(torch.zeros(1, 3, 64, 64)).shape)
sys.argv = ["publish", "--help"]
runpy.run_module("timm_wsms.publish", run_name="__main__")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what belongs to the package alone, so that nothing is written into the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "timm_wsms", source / "timm_wsms", ignore=shutil.ignore_patterns("__pycache__"))
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    subprocess.run([*build, str(source / "dist"), str(source)], check=True)
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_the_wheel_has_every_module_and_the_files_that_they_read(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "timm_wsms").rglob("*") if path.suffix in (".py", ".json", ".md", ".typed"))
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"timm_wsms/hub/MODEL_CARD.md", "timm_wsms/registry/stageable.json", "timm_wsms/py.typed"} <= names


def test_its_metadata_are_what_the_project_says(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(path).decode().split("\n\n")[0].splitlines()
    assert f"Version: {timm_wsms.__version__}" in metadata
    assert "Author: The timm-wsms authors" in metadata
    assert any(line.startswith("Requires-Dist: timm") and "<1.1" in line for line in metadata)


def test_it_works_where_nothing_else_of_the_repository_is(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    installed = python.parents[1] / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (installed / "dependencies.pth").write_text("\n".join(site.getsitepackages()))  # torch, timm …, without a copy
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index")
    subprocess.run([*pip, str(wheel)], check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [python, "-c", SESSION.format(venv=tmp_path / "venv")], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert f"version {timm_wsms.__version__}\nlogits 1 3\n" in result.stdout
    assert "--repo" in result.stdout and "--dry-run" in result.stdout


def test_the_version_and_the_address_stand_in_one_place():
    assert 'dynamic = ["version"]' in PYPROJECT
    (address,) = re.findall(r'^Repository = "https://([^"]+)"$', PYPROJECT, re.MULTILINE)
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "SECURITY.md", "CHANGELOG.md"):
        if (ROOT / name).exists():
            assert address not in (ROOT / name).read_text(encoding="utf-8")


def test_the_workflow_tests_the_lowest_versions_that_are_allowed():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    (lowest,) = workflow["jobs"]["fast"]["strategy"]["matrix"]["include"]
    pins = dict(pin.split("==") for pin in lowest["pins"].split())
    for name in ("torch", "timm"):
        (bound,) = re.findall(rf'"{name}>=([\d.]+)[",]', PYPROJECT)
        assert pins[name] == bound or pins[name] == f"{bound}.0"
    assert workflow["jobs"]["fast"]["strategy"]["matrix"]["python"] == ["3.10", "3.13"]
    assert 'requires-python = ">=3.10"' in PYPROJECT
