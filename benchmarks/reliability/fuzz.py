"""Feeds readers with files that are almost right, and counts what must not happen.

    python -m benchmarks.reliability.fuzz --reader config --minutes 2 --seed 0      # several --reader, or none for all

A reader may return, or raise what a command shows as one printable line. Failures are: any other exception, more than
5 s of processor time, 1 GB more memory, a file written outside its folder, a connection, a program or pickled code that
is run, and the end of the process. Inputs that fail are kept under --keep.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.environment import ROOT, record
from benchmarks.reliability import mutate

OUT = ROOT / "benchmarks" / "results" / "reliability" / "fuzz.json"
SECONDS, MEMORY = 5, 2**30
DEAD = 60  # seconds without an answer
EXAMPLES = 3  # inputs that are kept of each kind of failure
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
CALLS = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


class Forbidden(BaseException):
    """What a reader must not do; no `except Exception` hides it."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", help="may be given several times; by default all, one by one")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each reader")
    parser.add_argument("--inputs", type=int, help="of each reader, at most; with a seed these are always the same")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that fail")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    from benchmarks.reliability.fuzz_readers import READERS

    for name in options.reader or READERS:
        found = fuzz(name, options.minutes, options.seed, options.keep, options.inputs)
        print(name, found)
        report = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"readers": {}}
        report["what"] = "inputs that readers of foreign files took, refused in one line, and failed at, by reader"
        report["readers"][name] = {**found, **record()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fuzz(name: str, minutes: float, seed: int, keep: Path | None = None, inputs: int | None = None) -> dict[str, Any]:
    """Runs one reader in a process of its own, and in another one after each input that ends it."""
    counts: Counter[str] = Counter()
    start, number = time.monotonic(), 0
    used = _processor_seconds()

    def goes_on() -> bool:
        return time.monotonic() - start < 60 * minutes and (inputs is None or number < inputs)

    while goes_on():
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_work, args=(name, seed, number, ours, theirs))
        process.start()
        theirs.close()
        try:
            while goes_on():
                outcome = "the process did not answer"
                if ours.poll(DEAD):
                    number, outcome = ours.recv()
                counts[outcome] += 1
                number += 1
                if outcome not in ("taken", "refused") and counts[outcome] <= EXAMPLES:
                    _keep(keep, name, seed, number - 1, outcome)
                if outcome == "the process did not answer":
                    break
        except EOFError:
            counts["the process ended"] += 1
            _keep(keep, name, seed, number, "the process ended")
            number += 1
        finally:
            process.kill()
            process.join()
    failed = {outcome: count for outcome, count in counts.items() if outcome not in ("taken", "refused")}
    return {
        "inputs": counts.total(),
        "taken": counts["taken"],
        "refused": counts["refused"],
        "failed": sum(failed.values()),
        "failures": failed,
        "minutes": round((time.monotonic() - start) / 60, 2),
        "processor_minutes": round((_processor_seconds() - used) / 60, 2),
        "seed": seed,
    }


def _processor_seconds() -> float:
    """Of the processes that have ended: a machine may be busy with other things."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def changed(reader: Any, seed: int, number: int) -> bytes:
    """The input of a number."""
    rng = np.random.default_rng((seed, number))
    seeds = reader.seeds()
    return mutate.MUTATORS[reader.kind](seeds[number % len(seeds)], rng)


def _keep(folder: Path | None, name: str, seed: int, number: int, outcome: str) -> None:
    from benchmarks.reliability.fuzz_readers import READERS

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        kind = hashlib.sha256(outcome.encode()).hexdigest()[:6]
        (folder / f"{name}-{kind}-{number}").write_bytes(changed(READERS[name], seed, number))
        print(f"{name} {number}: {outcome}", file=sys.stderr, flush=True)


def _work(name: str, seed: int, number: int, parents: Any, answers: Any) -> None:
    from benchmarks.reliability.fuzz_readers import READERS, prepare

    parents.close()  # so that this process ends with its parent
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary).resolve()
        folder = prepare(place)
        original = changed_file = folder / reader.file if reader.file else place / "input"
        whole = original.read_bytes() if reader.file else reader.seeds()[0]
        changed_file.write_bytes(whole)
        reader.read(folder, changed_file)  # the valid one, so that all is imported
        warnings.simplefilter("ignore")
        done = watch(place)
        limit_memory()
        while True:
            changed_file.write_bytes(changed(reader, seed, number))
            answers.send((number, outcome(reader, folder, changed_file, done)))
            number += 1


def outcome(reader: Any, folder: Path, file: Path, done: list[str]) -> str:
    """What a reader made of a file: "taken", "refused", or what is wrong with it."""
    from timm_wsms.cli_errors import explain
    from timm_wsms.data.decode import BadImageError
    from timm_wsms.errors import UserError

    done.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        text, result = reader.read(folder, file), "taken"
    except (UserError, BadImageError) as error:
        text, result = explain(error) or str(error), "refused"
        if "allocate memory" in text or "MemoryError" in text:
            return f"memory: {text[:100]}"
    except Forbidden as error:
        return str(error)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(one.filename).name}:{one.name}" for one in where if "timm_wsms" in one.filename]
        return f"{type(error).__name__} in {ours[-1] if ours else where[-1].name}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if done:
        return done[0]
    lines = text.split("\n") if isinstance(text, str) else []
    if result == "refused" and len(lines) != 1:
        return "a message of several lines"
    return result if all(map(harmless, "".join(lines))) else f"control characters in what it says ({result})"


def harmless(char: str) -> bool:
    """Whether a terminal shows it and does nothing else: Python calls no space but " " printable."""
    return char.isprintable() or unicodedata.category(char) == "Zs"


def watch(place: Path) -> list[str]:
    """From now on nothing may be written outside a folder, no connection made, and no program run; what was tried."""
    tried: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        wrong = None
        if event in RUNS or event in CALLS:
            wrong = f"{event} {str(arguments[:2])[:80]}"
        elif event in CHANGES or (event == "open" and _writes(*arguments[1:3])):
            count = 2 if event in ("os.rename", "os.link", "os.symlink") else 1
            paths = [os.fsdecode(path) for path in arguments[:count] if isinstance(path, (str, bytes, Path))]
            if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to an open folder
                paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path) for path in paths]
            outside = [path for path in paths if not Path(path).resolve().is_relative_to(place) and path != os.devnull]
            if outside:
                wrong = f"{event} outside the folder: {outside[0][-60:]}"
        if wrong:
            tried.append(wrong)
            raise Forbidden(wrong)

    def late(*_: Any) -> None:
        raise Forbidden(f"more than {SECONDS} s")

    tempfile.tempdir = str(place)
    signal.signal(signal.SIGPROF, late)
    sys.addaudithook(hook)
    return tried


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & 3)  # O_WRONLY or O_RDWR


def limit_memory() -> None:
    """Allocations beyond 1 GB more than now fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
