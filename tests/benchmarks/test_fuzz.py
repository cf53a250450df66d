"""The fuzzer finds what it is there to find, and a few inputs of each reader find nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.reliability import fuzz, fuzz_readers
from benchmarks.reliability.fuzz_data import Reader
from tests.helpers.paths import ROOT
from timm_wsms import foreign
from timm_wsms.data.decode import BadImageError

pytestmark = pytest.mark.slow  # starts processes
TRIED = 12  # inputs of each reader
OUTSIDE = Path("/tmp/written_by_a_planted_fault")


def spin():
    while True:
        pass


def tell(text):
    raise BadImageError(text)


FAULTS = {
    "KeyError in": lambda: {}["a"],
    "RecursionError in": lambda: json.loads("[" * 100_000 + "]" * 100_000),
    "more than": spin,
    "MemoryError in": lambda: bytearray(2**31),
    "open outside the folder": lambda: OUTSIDE.write_text("x"),
    "os.mkdir outside the folder": lambda: OUTSIDE.mkdir(),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=False),
    "os.system": lambda: os.system("true"),
    "socket.connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "the process ended": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "the process did not answer": lambda: time.sleep(60),
    "control characters in what it says (taken)": lambda: "\x1b[2J",
    "control characters in what it says (refused)": lambda: tell("\x1b[2J"),
    "a message of several lines": lambda: tell("a\nb"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(kind, monkeypatch):
    valid = [True]  # the first file that a process reads, before it is watched
    read = lambda *_: None if valid and valid.pop() else FAULTS[kind]()  # noqa: E731
    monkeypatch.setitem(fuzz_readers.READERS, "planted", Reader("bytes", lambda: [b"abc"], "", read))
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    monkeypatch.setattr(fuzz, "DEAD", 10)
    found = fuzz.fuzz("planted", 1, 0, inputs=1)
    assert found["inputs"] == found["failed"] == 1 and next(iter(found["failures"])).startswith(kind)
    assert not OUTSIDE.exists()


def test_what_a_screen_only_shows_is_no_fault():
    shown, acted = "a é 漢 ─ \u2006\u3000\xa0", "\x1b\n\r\x00\u202e\u2028\ufeff\x85"
    assert all(map(fuzz.harmless, shown)) and not any(map(fuzz.harmless, acted))
    assert foreign.printable(shown) == shown and all(map(fuzz.harmless, foreign.printable(acted)))


def test_no_reader_fails_at_a_few_inputs(tmp_path):
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.reliability.fuzz", "--inputs", str(TRIED), "--seed", "0"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    found = json.loads(out.read_text(encoding="utf-8"))["readers"]
    assert done.returncode == 0 and found.keys() == fuzz_readers.READERS.keys()
    assert {name: one["failures"] for name, one in found.items() if one["failed"]} == {}
    assert {one["inputs"] for one in found.values()} == {TRIED}


def test_what_was_measured_is_of_every_reader_and_without_failures():
    found = json.loads(fuzz.OUT.read_text(encoding="utf-8"))["readers"]
    assert found.keys() == fuzz_readers.READERS.keys()
    assert {name for name, one in found.items() if one["failed"]} == set()
    assert min(one["minutes"] for one in found.values()) >= 10  # as SECURITY.md says
