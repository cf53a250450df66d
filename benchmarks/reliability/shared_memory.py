"""How training and evaluation end when the shared memory is full, through which their workers send images.

    python -m benchmarks.reliability.shared_memory      # needs `unshare`: root, or user namespaces

Each command runs with 4 workers where /dev/shm is a file system of 1 MiB of its own; a batch of images takes 4.6 MiB.
It has to end by itself with one line, within seconds. Each is also sent SIGTERM once it has told what data it found.
The same commands with 1 GiB are the control.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image

import timm_wsms  # noqa: F401  registers the names
from benchmarks.common.environment import ROOT, record

OUT = ROOT / "benchmarks" / "results" / "reliability" / "shared_memory.json"
SMALL, LARGE = "1m", "1g"
LIMIT = 300  # seconds, after which a command counts as hanging
MODEL = "wsms_test_resnet"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        given = commands(Path(folder))
        found = {
            name: {
                "full": run(words, SMALL),
                "full, SIGTERM": run(words, SMALL, signal.SIGTERM),
                "large enough": run(words, LARGE),
            }
            for name, words in given.items()
        }
    report = {"what": __doc__.partition("\n")[0], "shm": {"full": SMALL, "large enough": LARGE}, "runs": found}
    options.out.write_text(json.dumps({**report, **record()}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def commands(folder: Path) -> dict[str, list[str]]:
    """The words of both commands, on images and a network that are written to a folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 230, 230, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        file = folder / "images" / ("test" if number < 40 else "train") / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    size = {"input_size": (3, 224, 224), "crop_pct": 1.0}
    model = timm.create_model(MODEL, num_classes=2, pretrained_cfg_overlay=size)
    timm.models.save_for_hf(model, folder / "model", safe_serialization=True)
    train = [str(ROOT / "train_accelerate.py"), "--model", MODEL, "--data.source", str(folder / "images")]
    train += ["--data.input_size", "[3, 224, 224]", "--epochs", "1", "--batch_size", "32", "--data.workers", "4"]
    evaluate = ["-m", "timm_wsms.evaluate", str(folder / "model"), "--data", str(folder / "images")]
    evaluate += ["--batch_size", "32", "--workers", "4"]
    return {"train": [*train, "--output", str(folder / "run")], "evaluate": evaluate}


def run(words: list[str], size: str, sent: signal.Signals | None = None) -> dict[str, Any]:
    """What became of a command.

    Args:
        words: for Python.
        size: of /dev/shm, which only this command sees.
        sent: a signal that it gets once it has told what data it found.

    Returns:
        `exit_code` (None: it hung), `seconds` in all, `seconds_after_data` from when it told what data it found, and
        the `last_line` of its errors.
    """
    if "--output" in words:
        words = [*words[:-1], tempfile.mkdtemp(dir=Path(words[-1]).parent)]
    inside = f"mount -t tmpfs -o size={size} none /dev/shm && exec {shlex.join([sys.executable, '-u', *words])}"
    outside = ["unshare", "--mount", "--map-root-user", "sh", "-c", inside]
    start = told = time.monotonic()
    process = subprocess.Popen(outside, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  test: "):  # the summary of the data
            told = time.monotonic()
            if sent:
                process.send_signal(sent)
            break
    code: int | None
    try:
        _, errors = process.communicate(timeout=LIMIT)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        code = None
    end = time.monotonic()
    lines = errors.strip().splitlines()
    found = {"exit_code": code, "seconds": round(end - start, 1), "seconds_after_data": round(end - told, 1)}
    return {**found, "last_line": lines[-1] if code and lines else ""}


if __name__ == "__main__":
    main()
