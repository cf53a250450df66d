"""The soak: its schedule, what it counts, and a short one."""

import collections
import json
import types

import pytest

from benchmarks.reliability import soak, soak_faults
from tests.helpers.paths import ROOT


def test_all_kinds_strike_equally_often_at_rising_updates():
    """On average `GAP` updates lie between two faults, and the first and last updates are spared."""
    found = soak.schedule(20_000, seed=3)
    updates, kinds = zip(*found, strict=True)
    counts = collections.Counter(kinds)
    assert counts.keys() == soak_faults.KINDS.keys() and max(counts.values()) - min(counts.values()) <= 1
    assert sorted({*updates}) == [*updates] and updates[0] > 6 and updates[-1] < 19_998
    assert 20_000 / len(found) == pytest.approx(soak.GAP, rel=0.1)
    assert soak.schedule(20_000, seed=3) == found != soak.schedule(20_000, seed=4)


@pytest.mark.parametrize(
    ("kind", "code", "text", "wrong"),
    [
        ("disk full", 2, "error: the disk is full while writing x; or --resume auto", ""),
        ("disk full", 0, "", "it ended with 0"),
        (
            "disk full",
            2,
            "Traceback (most recent call last)\nerror: the disk is full while writing x",
            "more than a line",
        ),
        ("SIGTERM", 0, "", "it did not say 'stopped by SIGTERM and saved'"),
        ("SIGKILL", -9, "Traceback (most recent call last)", ""),  # of a worker that was left alone
    ],
)
def test_how_a_life_has_to_end(kind, code, text, wrong):
    job = types.SimpleNamespace(code=code, text=lambda: text)
    assert soak_faults.complaint(soak_faults.KINDS[kind], job) == wrong


def test_what_is_counted():
    strikes = [
        soak.Strike("SIGKILL", 9, 4.0),
        soak.Strike("SIGKILL", 20, 8.0, "it ended with 0"),
        soak.Strike("SIGKILL", 30, None),
    ]
    rows = soak.by_kind(strikes)
    assert rows["SIGKILL"] == {"tried": 3, "survived": 2, "seconds_lost_median": 6.0, "seconds_lost_most": 8.0}
    assert rows["SIGTERM"]["tried"] == 0
    mib = 2**20
    lives = [[[update, 0.0, (100 + life) * mib, 20, 7] for update in range(8)] for life in range(6)]
    whole = [[update, 0.0, (200 + update) * mib, 30, 9] for update in range(100)]
    found = soak.growth([*lives, lives[0][:2]], whole)
    assert found["lives"] == 7 and found["lives_sampled"] == 6
    assert found["first_third_of_the_lives"] == {"memory_mib": 100.5, "open_files": 20, "threads": 7}
    assert found["last_third_of_the_lives"]["memory_mib"] == 104.5
    assert found["undisturbed_second_tenth"]["memory_mib"] == 214.5
    assert found["undisturbed_last_tenth"] == {"memory_mib": 294.5, "open_files": 30, "threads": 9}


@pytest.mark.slow  # a training run that is resumed twice, and an undisturbed one
@pytest.mark.usefixtures("mounting")
def test_a_short_soak(tmp_path):
    """Seed 4: the images go away, then a kill while a checkpoint is written."""
    if missing := soak_faults.tools_missing():
        pytest.skip(f"install {', '.join(missing)}")
    soak.main(["--epochs", "2", "--seed", "4", "--out", str(tmp_path / "soak.json")])
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["equal"] and found["wrong"] == found["left_over_files"] == []
    tried = {kind for kind, row in found["faults"].items() if row["tried"]}
    assert tried == {"images unreadable", "SIGKILL while a checkpoint is written"}
    assert found["total"] == {"tried": 2, "survived": 2}


def test_the_document_says_what_was_found():
    found = json.loads(soak.OUT.read_text(encoding="utf-8"))
    words = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    total, growth = found["total"], found["growth"]
    first, last = growth["first_third_of_the_lives"], growth["last_third_of_the_lives"]
    assert found["equal"] and found["left_over_files"] == [] and found["minutes"] >= 45
    assert {kind for kind, row in found["faults"].items() if row["tried"]} == set(soak_faults.KINDS)
    assert len(found["wrong"]) == total["tried"] - total["survived"]
    for statement in (
        f"{total['tried']} faults of {len(soak_faults.KINDS)} kinds in {found['minutes']:.0f} minutes",
        f"{total['survived']} of them ended as documented",
        f"{first['memory_mib']:.0f} and {last['memory_mib']:.0f} MiB",
        f"{first['open_files']:.0f} and {last['open_files']:.0f} open files",
        f"{first['threads']:.0f} and {last['threads']:.0f} threads",
    ):
        assert statement in words, statement
