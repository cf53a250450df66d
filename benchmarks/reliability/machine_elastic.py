"""A run that loses one of two machines, goes on with the other, and gets it back, under torchrun's `--nnodes 1:2`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.helpers.fault_runs import SMALL, left_by, wait_for
from tests.helpers.machine_runs import HERE, Launchers, newest
from tests.helpers.machines import machines

NAME = "2 machines → 1 → 2 (--nnodes 1:2)"
# Without normalization over a process's own images, and without what each process draws for itself.
WORDS = [
    *("--model", "test_convnext", "--data.input_size", "[3, 32, 32]", "--data.augmentation", "pad_crop_flip"),
    *(*SMALL, "--optimizer.name", "adamw", "--lr", "0.001", "--checkpoint_every_steps", "1", "--eval_every", "1000"),
    *("--epochs", "20", "--resume", "auto"),  # a machine that comes back has a launcher that does not know the run
]
# A machine whose heartbeats are 15 s late counts as gone. With 3 s, busy machines were split into two runs, of which
# the folder's lock kept the second out.
RENDEZVOUS = "last_call_timeout=20,join_timeout=120"
# The second --rdzv-conf counts; without is_host torchrun finds the host of the rendezvous by its address.
OPTIONS = ["--max-restarts", "5", "--rdzv-conf", RENDEZVOUS]
TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}  # other processes sum in another order


def tried(folder: Path, starts: Launchers) -> dict[str, Any]:
    """What comes of it."""
    folder.mkdir()
    job = starts.launch(None, folder / "log", [*HERE, "--nproc_per_node", "1"], *WORDS, "--output", str(folder / "one"))
    if job.wait(300):
        raise RuntimeError(job.text)
    output = folder / "run"
    words = [*WORDS, "--output", str(output), "--hang_timeout", "20"]
    with machines(2) as pair:
        jobs = [
            starts.launch(machine, folder / machine.name, [*machine.torchrun(pair[0], "1:2"), *OPTIONS], *words)
            for machine in pair
        ]
        try:
            wait_for(lambda: newest(output) >= "epoch-0002", 300)
            begun, at = time.monotonic(), newest(output)
            pair[1] = pair[1].restarted()
            wait_for(lambda: " 1 × cpu" in jobs[0].text and newest(output) > at, 300)
            alone = time.monotonic() - begun
            begun = time.monotonic()
            log = folder / "node2-again"
            jobs[1] = starts.launch(pair[1], log, [*pair[1].torchrun(pair[0], "1:2"), *OPTIONS], *words)
            wait_for(lambda: [job.text.count("2 × cpu") for job in jobs] == [2, 1], 300)
            again = time.monotonic() - begun
            codes = [job.wait(300) for job in jobs]
        finally:
            for job in jobs:
                (folder / f"text-{job.pid}").write_text(job.text)
                print(job.text[-6000:], flush=True)
                job.end()
    return {
        "codes": codes,
        "processes": [int(number) for number in re.findall(r"(\d) × cpu", jobs[0].text)],
        "seconds_until_next_checkpoint": round(alone, 1),
        "seconds_until_two_again": round(again, 1),
        **compared(folder / "one", output),
    }


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Whether both runs saw the same batches: equal up to roundings, weights and the mean loss of each epoch."""
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, other)]
    losses = [[row["train_loss"] for row in left_by(folder)["metrics"]] for folder in (one, other)]  # type: ignore
    away = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    close = all(torch.allclose(weights[0][name], weights[1][name], **TOLERANCE) for name in weights[0])
    apart = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    return {"equal_up_to_rounding": close and apart < 1e-3, "weights_differ_by": away, "losses_differ_by": apart}
