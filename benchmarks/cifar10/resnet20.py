"""CIFAR-10, ResNet-20 in its plain, WSMS and MS forms, trained alike: accuracy, time and images/s of each run.

    python -m benchmarks.cifar10.resnet20 --source ../shared/data/cifar10

Every run is `train_accelerate.py` with recipes/cifar10_resnet20_short.yaml. Runs that are finished are not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common.environment import ROOT, record

FORMS = {
    "resnet20_cifar": ("resnet20_cifar", {}),
    "wsms_resnet20_cifar": ("wsms_resnet20_cifar", {"residual": False}),
    "wsms_resnet20_cifar, residual": ("wsms_resnet20_cifar", {"residual": True}),
    "ms_resnet20_cifar": ("ms_resnet20_cifar", {"residual": False}),
}


def folder(outputs: Path, form: str, seed: int) -> Path:
    return outputs / f"{form.replace(', ', '_')}_seed{seed}"


def train(form: str, seed: int, outputs: Path, options: argparse.Namespace) -> None:
    """Run the script once, in a process of its own with its share of the threads."""
    output = folder(outputs, form, seed)
    if (output / "model").exists():
        return
    model, kwargs = FORMS[form]
    command = [sys.executable, "train_accelerate.py", "--recipe", "recipes/cifar10_resnet20_short.yaml"]
    command += ["--model", model, "--seed", str(seed), "--output", str(output), "--resume", "auto"]
    command += [word for key, value in kwargs.items() for word in (f"--model_kwargs.{key}", str(value).lower())]
    command += ["--data.source", options.source] if options.source else []
    output.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    with open(f"{output}.log", "w") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)


def collect(form: str, outputs: Path, seeds: list[int]) -> dict:
    """Accuracy after the last epoch, seconds and images/s of training, for each seed and over all."""
    runs = []
    for seed in seeds:
        lines = (folder(outputs, form, seed) / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in lines]
        seconds = sum(epoch["seconds"] for epoch in epochs)
        speed = statistics.median(epoch["images_per_second"] for epoch in epochs)
        accuracy = epochs[-1]["test_top1"]
        runs.append({"seed": seed, "test_top1": accuracy, "train_seconds": seconds, "images_per_second": speed})
    accuracies = [run["test_top1"] for run in runs]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    model, kwargs = FORMS[form]
    return {
        "form": form,
        "model": model,
        "model_kwargs": kwargs,
        "n": len(runs),
        "test_top1_mean": statistics.mean(accuracies),
        "test_top1_std": spread,
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a local folder with CIFAR-10; without it, the recipe's Hub name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads a run")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "cifar10_resnet20_short")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/cifar10_resnet20_short.json")
    parser.add_argument("--note", default="", help="what else went on on the machine")
    options = parser.parse_args()
    options.source = options.source and str(Path(options.source).resolve())
    jobs = [(form, seed) for seed in options.seeds for form in FORMS]
    with ThreadPoolExecutor(options.jobs) as pool:
        for job in [pool.submit(train, form, seed, options.outputs.resolve(), options) for form, seed in jobs]:
            job.result()
    rows = [collect(form, options.outputs, options.seeds) for form in FORMS]
    setting = {"jobs_at_a_time": options.jobs, "threads_a_job": options.threads, "note": options.note}
    options.results.write_text(json.dumps({**record(), **setting, "results": rows}, indent=2) + "\n")
    for row in rows:
        print(f"{row['form']:32} {row['test_top1_mean']:.2f} ± {row['test_top1_std'] or 0:.2f} % (n = {row['n']})")


if __name__ == "__main__":
    main()
