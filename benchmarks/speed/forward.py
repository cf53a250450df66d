"""What a WSMS network costs beside its backbone: arithmetic, time and memory of inference and of a step of training.

    python -m benchmarks.speed.forward                              # everything; goes on where it was interrupted
    python -m benchmarks.speed.forward --models resnet50 --batch 1  # a part
    python -m benchmarks.speed.forward --device cuda --bf16 --batch 256 --compiled 0 --lines_only  # on a GPU

For each line (backbone, batch size, mode, eager or compiled) some forms take turns: the backbone, its WSMS form, a
plain multi-scale wrapper (the whole backbone at three sizes, what S²-Wrapper does) and, for eager inference, the first
two with norms folded by `timm_wsms.fuse`. They run on the same weights; before every round these move to another place
in memory, since two copies of one network differ in speed by some percent, and another form begins. A ratio of times
is the median of the rounds' own ratios. Claims:

- time ratio / ratio of multiplications (the quotient) at most 1.03 at batch 16, and 1.10 for inference at batch 1;
- ratio of the peak memory of a training step at batch 16 at most the ratio of multiplications;
- faster than the wrapper;
- `import timm_wsms` at most 0.15 s beyond `import timm`, building a network at most 1.3 times the backbone's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.common.environment import ROOT, record
from benchmarks.speed.forward_networks import (
    SIDE,
    InferenceStep,
    TrainingStep,
    build_forms,
    compile_forms,
    layout_of,
    multiplications,
    peak_bytes,
    seconds_a_call,
    take_turns,
)

MODELS = [
    "resnet50", "convnext_tiny", "efficientnet_b0", "densenet121", "mobilenetv3_large_100",
    "swin_tiny_patch4_window7_224", "vit_small_patch16_224",
]  # fmt: skip
MODES = {"inference": False, "training": True}
TARGETS = {
    "quotient_batch_16": 1.03,
    "quotient_batch_1_inference": 1.10,
    "wsms_to_multi_scale": 1.0,
    "import_s": 0.15,
    "create_ratio": 1.3,
}
KEYS = ("backbone", "batch", "mode", "compiled")
ONE_VALUE = "Expected more than 1 value per channel when training"  # of a batch norm, in eager and in compiled form
IMPORT = "import time, timm; start = time.perf_counter(); import timm_wsms; print(time.perf_counter() - start)"


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    of_device = "forward_cost.json" if arguments.device == "cpu" else "forward_cost_gpu.json"
    out = arguments.out or ROOT / "benchmarks" / "results" / of_device
    report = _start(out, arguments)
    for name in arguments.models:
        for batch in arguments.batch:
            for mode in arguments.modes:
                for compiled in arguments.compiled:
                    line = dict(zip(KEYS, (name, batch, mode, bool(compiled)), strict=True))
                    if not any(line.items() <= measured.items() for measured in report["lines"]):
                        report["lines"].append(line | measure(line, arguments))
                        print(describe(report["lines"][-1]), flush=True)
                        _write(report, out)
        if name not in report["checkpointing"] and not arguments.lines_only:
            report["checkpointing"][name] = measure_checkpointing(name)
            _write(report, out)
    if not arguments.lines_only and not report["start"]:
        report["start"] = measure_start(arguments.rounds)
        _write(report, out)
    print("\n".join(map(describe, report["lines"])), json.dumps(report["start"]), sep="\n")


def measure(line: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one line.

    Args:
        line: Backbone, batch size, mode, compiled or not.
        options: Those of the command: device, precision, how long rounds go on.

    Returns:
        For each form multiplications an image, seconds a step (median, extremes), bytes at the peak of a training step;
        the ratios that the targets are about.
    """
    training = MODES[line["mode"]]
    torch.manual_seed(0)
    torch._dynamo.reset()
    fused = not line["compiled"] and not training
    forms = build_forms(line["backbone"], training, fused, options.device)
    if line["compiled"]:
        forms = compile_forms(forms)
    images = torch.randn(line["batch"], 3, SIDE, SIDE)
    images = images.to(options.device, memory_format=layout_of(line["backbone"]))
    make_step = TrainingStep if training else InferenceStep
    cannot, steps, found = {}, {}, {}
    for form, network in forms.items():
        step = make_step(network, images, options.bf16)
        try:
            first = seconds_a_call(step, 1)  # compiles; makes the optimizer's state
        except (ValueError, RuntimeError) as error:  # the latter from the compiler
            if ONE_VALUE not in str(error):
                raise
            cannot[form] = ONE_VALUE
            continue
        steps[form], found[form] = step, {"multiplications": multiplications(network)}
        if line["compiled"]:
            found[form]["first_step_s"] = _round(first)
        if isinstance(step, TrainingStep):
            found[form]["peak_bytes"] = peak_bytes(step)
    times = take_turns(steps, forms.values(), options.seconds, options.rounds)
    for form, each in times.items():
        found[form] |= {"s": _round(statistics.median(each)), "s_min": _round(min(each)), "s_max": _round(max(each))}
    return {"forms": found, "rounds": len(times["wsms"]), "ratios": ratios(found, times), "cannot": cannot}


def ratios(found: dict[str, dict[str, Any]], times: dict[str, list[float]]) -> dict[str, float]:
    """The figures that the targets are about, from what was counted and from the rounds' times."""

    def in_time(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    def counted(one: str, other: str, what: str) -> float:
        return found[one][what] / found[other][what]

    result = {}
    for form in ("wsms", "wsms_per_stage", "multi_scale"):
        if form in found:
            result[f"{form}_multiplications"] = counted(form, "backbone", "multiplications")
            result[f"{form}_time"] = in_time(form, "backbone")
            result[f"{form}_quotient"] = result[f"{form}_time"] / result[f"{form}_multiplications"]
            if "peak_bytes" in found[form]:
                result[f"{form}_peak"] = counted(form, "backbone", "peak_bytes")
    if "multi_scale" in found:
        result["wsms_to_multi_scale"] = in_time("wsms", "multi_scale")
    if "wsms_per_stage" in found:
        result["wsms_per_stage_to_wsms"] = in_time("wsms_per_stage", "wsms")
    if "wsms_fused" in found:
        result["wsms_fused_to_wsms"] = in_time("wsms_fused", "wsms")
        result["backbone_fused_to_backbone"] = in_time("backbone_fused", "backbone")
        result["fused_quotient"] = in_time("wsms_fused", "backbone_fused") / result["wsms_multiplications"]
    return {key: round(value, 4) for key, value in result.items()}


def describe(line: dict[str, Any]) -> str:
    """One line of the table, with a mark at every target that is missed."""
    ratio = line["ratios"]
    batch, training = line["batch"], MODES[line["mode"]]
    text = f"{line['backbone']:29} {batch:3} {line['mode']:9} {'compiled' if line['compiled'] else 'eager':8}"
    text += f"  arithmetic ×{ratio['wsms_multiplications']:.3f}  time ×{ratio['wsms_time']:.3f}"
    target = TARGETS["quotient_batch_1_inference"] if batch == 1 else TARGETS["quotient_batch_16"]
    has_target = batch > 1 or not training
    text += f"  quotient {_against(ratio['wsms_quotient'], target if has_target else None)}"
    if "wsms_peak" in ratio:
        text += f"  peak ×{_against(ratio['wsms_peak'], ratio['wsms_multiplications'] if batch > 1 else None)}"
    if "wsms_to_multi_scale" in ratio:
        text += f"  of wrapper's time {_against(ratio['wsms_to_multi_scale'], TARGETS['wsms_to_multi_scale'])}"
    if "wsms_per_stage_quotient" in ratio:
        text += f"  a graph per stage {ratio['wsms_per_stage_quotient']:.3f}"
    if "wsms_fused_to_wsms" in ratio:
        text += f"  fused ×{ratio['wsms_fused_to_wsms']:.3f} (backbone ×{ratio['backbone_fused_to_backbone']:.3f})"
    return text


def measure_checkpointing(name: str) -> dict[str, Any]:
    """Bytes at the peak of a training step at batch 16, without and with activation checkpointing."""
    found: dict[str, Any] = {}
    for form, network in build_forms(name, training=True).items():
        if form == "multi_scale":
            continue
        images = torch.randn(16, 3, SIDE, SIDE)
        peaks = []
        for enable in (False, True):
            network.set_grad_checkpointing(enable)
            step = TrainingStep(network, images.to(memory_format=layout_of(name)))
            step()
            peaks.append(peak_bytes(step))
        network.set_grad_checkpointing(False)
        found[form] = {"peak_bytes": peaks[0], "checkpointed": peaks[1], "ratio": round(peaks[1] / peaks[0], 4)}
    return found


def measure_start(rounds: int) -> dict[str, Any]:
    """Seconds of `import timm_wsms` after `import timm`, a fresh interpreter each; time ratio of building a network."""
    runs = [subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
            for _ in range(rounds)]  # fmt: skip
    names = ("resnet50", "wsms_resnet50")
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[:: 1 if number % 2 else -1]:
            times[name].append(seconds_a_call(lambda name=name: timm.create_model(name), 1))
    ratio = statistics.median(a / b for a, b in zip(times["wsms_resnet50"][1:], times["resnet50"][1:], strict=True))
    return {"import_s": _round(statistics.median(float(run.stdout) for run in runs)), "create_ratio": round(ratio, 3)}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _against(value: float, target: float | None) -> str:
    return f"{value:.3f}" + ("" if target is None else " ok" if value <= target else f" (target {target:.3f})")


def _start(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The report so far if it was measured with the same versions and threads, or a new one.

    Raises:
        SystemExit: The file's figures are of another device or precision.
    """
    report = {
        "what": "cost of wsms_X and of a multi-scale wrapper beside X; see benchmarks/speed/forward.py",
        **record(),
        "targets": TARGETS,
        "seed": 0,
        "image": [3, SIDE, SIDE],
        "device": options.device,
        "precision": "bfloat16, mixed" if options.bf16 else "float32",
    }
    before = {} if options.fresh or not out.exists() else json.loads(out.read_text(encoding="utf-8"))
    if before and any(before[key] != report[key] for key in ("device", "precision")):
        raise SystemExit(
            f"{out} was measured on {before['device']} in {before['precision']}; name another file with --out"
        )
    same = all(before.get(key) == report[key] for key in ("versions", "machine"))
    kept = {"lines": [], "checkpointing": {}, "start": {}}
    return report | {key: before[key] if same else empty for key, empty in kept.items()}


def _write(report: dict[str, Any], out: Path) -> None:
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS, help="none: only start-up")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--compiled", nargs="+", type=int, choices=[0, 1], default=[0, 1], help="0: eager, 1: compiled")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; checkpointing and start-up are the CPU's")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the rounds of a line go on")
    parser.add_argument("--rounds", type=int, default=5, help="at least as many")
    parser.add_argument("--lines_only", action="store_true", help="leave out start-up and checkpointing")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results file holds")
    parser.add_argument("--out", type=Path, help="benchmarks/results/forward_cost.json; on a GPU forward_cost_gpu.json")
    return parser


if __name__ == "__main__":
    main()
