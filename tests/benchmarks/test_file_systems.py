"""File systems without room or with rules of their own: what was measured, what the document says, and a part of it."""

import errno
import json
import os
import stat

import pytest

from benchmarks.reliability import file_systems
from benchmarks.reliability.write_jobs import jobs
from tests.helpers.paths import ROOT
from timm_wsms.files import atomic_write_text

FOUND = json.loads(file_systems.OUT.read_text(encoding="utf-8"))["tried"]
ROWS = [row for rows in FOUND.values() for row in rows.values()]


def test_what_was_measured_is_what_the_document_says():
    assert FOUND.keys() == file_systems.KINDS.keys()
    assert [row["problems"] for row in ROWS if row["problems"]] == []
    for name, rows in FOUND.items():
        undisturbed = file_systems.KINDS[name].fault is file_systems.undisturbed
        for what, row in rows.items():
            found_room = (name, what) == ("ext4, quota for half", "text file")
            assert row["code"] == (0 if undisturbed or found_room else 2), (name, what)
            remedy = ("free some space", "--output", "check the disk")
            assert row["code"] == 0 or any(words in row["said"] for words in remedy), (name, what)
    document = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    assert f"{len(ROWS)} writes" in document


@pytest.mark.slow
@pytest.mark.usefixtures("mounting")
@pytest.mark.parametrize("what", ["checkpoint", "model folder", "text file"])
def test_no_room_on_a_disk_costs_nothing(tmp_path, what):
    outcome, problems = file_systems.tried(file_systems.KINDS["tmpfs, room for half"], jobs()[what], tmp_path)
    assert (outcome.code, problems) == (2, []), outcome
    assert outcome.said.startswith("error: the disk is full while writing ")


def test_a_file_system_that_cannot_bring_folders_to_the_disk(tmp_path, monkeypatch):
    """The error of a file's own `fsync` counts all the same."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or refused:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    refused = False
    job = jobs()["checkpoint"]
    job.write(tmp_path)
    assert job.read(tmp_path)
    refused = True
    with pytest.raises(OSError, match="Invalid argument"):
        atomic_write_text(tmp_path / "file", "text")
