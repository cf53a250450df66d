"""The commands that only call another."""

import runpy
import sys

import pytest

from tests.helpers.paths import ROOT
from timm_wsms import publish as command
from timm_wsms.hub import publish, verify


def test_the_commands_of_the_repository_are_those_of_the_package():
    for name, main in (("publish", publish.main), ("verify", verify.main)):
        assert runpy.run_path(str(ROOT / "hub" / f"{name}.py"))["main"] is main
    assert command.main is publish.main


def test_the_old_name_of_object_size_says_the_new_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale", "no_such_model", "--data", "digits"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("timm_wsms.scale", run_name="__main__")
    first, error = capsys.readouterr().err.splitlines()
    assert "timm_wsms.scale is now timm_wsms.object_size" in first and error.startswith("error: ")
    assert ended.value.code == 2
