"""`python -m timm_wsms.run SCRIPT ARGS…`: a script that knows nothing of this package finds its models."""

import runpy
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # starts processes

SCRIPT = """
import sys
import timm
from beside import WORD  # a module in the script's own folder
if __name__ == "__main__":
    model = timm.create_model(sys.argv[1], num_classes=3)
    print(__file__, sys.argv[1:], WORD, type(model).__name__, model.num_classes)
    if "--fail" in sys.argv:
        sys.exit(7)
"""


def run(*arguments, cwd):
    command = [sys.executable, "-m", "timm_wsms.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_a_script_finds_the_names(tmp_path):
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone = subprocess.run([sys.executable, script, "wsmean_test_resnet"], capture_output=True, text=True)
    assert alone.returncode == 1 and "Unknown model (wsmean_test_resnet)" in alone.stderr
    done = run(str(script), "wsmean_test_resnet", "--fail", cwd=ROOT)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{script} ['wsmean_test_resnet', '--fail'] found WsmsMeanNet 3\n"


def test_mistakes_are_told_in_one_line(monkeypatch, capsys):
    for arguments, line in (
        ([], "usage: python -m timm_wsms.run SCRIPT [ARGS ...]"),
        (["no.py"], "there is no script no.py; check the path (usage: python -m timm_wsms.run SCRIPT [ARGS ...])"),
    ):
        monkeypatch.setattr(sys, "argv", ["run", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("timm_wsms.run", run_name="__main__")
        assert (ended.value.code, capsys.readouterr().err.strip()) == (2, line)
