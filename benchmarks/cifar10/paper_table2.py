"""The paper's Table 2 on CIFAR-10, ResNet-110 in its plain, WSMS and MS forms, 164 epochs each, on one GPU in minutes.

    python -m benchmarks.cifar10.gpu_data --source ../shared/data/cifar10   # pack the images, once
    python -m benchmarks.cifar10.paper_table2 --seconds 560                 # train; the next call goes on
    python -m benchmarks.cifar10.paper_table2 --report outputs/gpu/state/table2.json   # benchmarks/results/table2.json

The recipe is recipes/cifar10_resnet110.yaml, in bfloat16 with float32 statistics and master weights, channels last.
`gpu_timing.py` finds out how to train several seeds at once and how many fit; plain and WSMS networks take turns epoch
by epoch, so that there are equally many of both. docs/gpu.md has the calls for a machine that is lent for 15 minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

import psutil
import torch

from benchmarks.cifar10 import gpu_timing
from benchmarks.cifar10.gpu_data import Augmenter, load, normalize
from benchmarks.cifar10.gpu_forms import BATCH, FORMS
from benchmarks.cifar10.gpu_runs import ROUNDS, Job, Store, agenda, train_alternately
from benchmarks.cifar10.gpu_timing import Plan, Setting, Timing, Variant
from benchmarks.cifar10.table2_report import report
from benchmarks.common.environment import ROOT, record
from timm_wsms import cli_errors
from timm_wsms.errors import UserError

TRAIN_IMAGES = 50_000


def main(argv: list[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    if options.report:
        report(options.report, options.results)
        return
    until = psutil.Process().create_time() + options.seconds  # imports count
    setting = _setting(options)
    out = os.environ.get("OUT")
    store = Store(options.state, Path(out) if out else None)
    pair = [FORMS[name] for name in ROUNDS[0]]
    if "timings" not in store.report:
        for timing in gpu_timing.measure(pair, setting, options.timing_seconds):
            store.report.setdefault("timings", []).append(dataclasses.asdict(timing))
            store.write()  # what is known stays known if the next variant brings the process down
    if options.only_time:
        return
    timings = [Timing(Variant(**one["variant"]), one["ms"]) for one in store.report["timings"]]
    data = load(options.folder)
    limit = options.limit
    augmenter = Augmenter(data.train_images[:limit], data.train_labels[:limit], setting.device, setting.dtype)
    test_images, test_labels = normalize(data.test_images[:limit], setting.device), data.test_labels[:limit]
    if "plan" not in store.report:
        plan = gpu_timing.choose(timings, until - time.time(), setting.steps, options.short)
        plan = dataclasses.replace(plan, epochs=options.epochs or plan.epochs, pairs=options.pairs or plan.pairs)
        store.report["plan"] = plan.plain()
    train(Plan.of(store.report["plan"]), setting, store, augmenter, (test_images, test_labels), until)


def train(plan: Plan, setting: Setting, store: Store, augmenter: Augmenter, test: tuple, until: float) -> None:
    """Round after round, until all are done or the time is up."""

    def left() -> float:
        return until - time.time()

    least = plan.seconds(store.report["timings"], setting.steps)
    for forms, seeds in agenda(plan.pairs, plan.variant.seeds):
        extra = len(forms) == 1
        todo = {name: [seed for seed in seeds if not store.finished(FORMS[name], seed)] for name in forms}
        if not any(todo.values()):
            continue
        if extra and left() < least:
            print(f"{left():.0f} s are left, and every other form takes {least:.0f} s or more", flush=True)
            break
        print(f"{' and '.join(forms)}, seeds {', '.join(map(str, seeds))}; {left():.0f} s are left", flush=True)
        jobs = [Job(FORMS[name], mine, plan, setting, store) for name, mine in todo.items() if mine]

        def save(jobs: list[Job] = jobs) -> None:
            for job in jobs:
                job.save()
            store.write()

        if not train_alternately(jobs, plan.epochs, lambda job: job.train_epoch(augmenter), save, left, whole=extra):
            if extra and left() > least:  # it does not fit, but a smaller one may
                continue
            print(f"stopped: {', '.join(f'{job.form.name} after epoch {job.epoch}' for job in jobs)}", flush=True)
            break
        for job in jobs:
            job.finish(*test, **record())
        store.write()


def _setting(options: argparse.Namespace) -> Setting:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU; --device cpu --limit 64 --batch 8 --epochs 1 tries the command without one")
    torch.backends.cudnn.benchmark = True  # few shapes, thousands of steps
    torch.backends.cudnn.allow_tf32 = False  # the evaluation is in float32
    images = min(options.limit or TRAIN_IMAGES, TRAIN_IMAGES)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    return Setting(torch.device(options.device), images // options.batch, options.batch, dtype)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/gpu"), help="with the packed images")
    parser.add_argument("--state", type=Path, default=Path("outputs/gpu/state"), help="for checkpoints and records")
    parser.add_argument("--seconds", type=float, default=560.0, help="of this call, its start included")
    parser.add_argument("--timing_seconds", type=float, default=60.0, help="of them for finding the fastest way")
    parser.add_argument("--only_time", action="store_true", help="train nothing; needs no images")
    parser.add_argument("--short", action="store_true", help="if fewer than 2 + 2 seeds fit, shorten the schedule")
    parser.add_argument("--pairs", type=int, help="seeds of each form, instead of as many as fit")
    parser.add_argument("--epochs", type=int, help="instead of the paper's 164: another experiment")
    parser.add_argument("--batch", type=int, default=BATCH, help="another than 128: another experiment")
    parser.add_argument("--limit", type=int, help="so many images only, to try the command")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--report", type=Path, nargs="+", help="table2.json of one or more sessions: make the report")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/table2.json")
    return parser


if __name__ == "__main__":
    sys.exit(cli_errors.run(main))
