"""The paper's Table 2 on a GPU, at small size on the CPU: turns, checkpoints, plan, timing, the whole command."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cifar10 import gpu_data, gpu_forms, gpu_norms, gpu_runs, gpu_timing, paper_table2, table2_report
from benchmarks.cifar10.gpu_timing import Plan, Setting, Timing, Variant
from tests.helpers.table2 import CPU, MEAN, PLAIN, WSMS, write_cifar10
from timm_wsms.errors import UserError


@pytest.fixture
def small_table(monkeypatch):
    """The table of ResNet-20s."""
    for module in (gpu_forms, paper_table2, table2_report):
        monkeypatch.setattr(module, "FORMS", {"plain": PLAIN, "WSMS 1x1": WSMS, "mean": MEAN})
    monkeypatch.setattr(gpu_runs, "ROUNDS", (("plain", "WSMS 1x1"), ("mean",)))


@pytest.mark.slow
def test_the_whole_command_and_a_resumed_one(small_table, tmp_path, monkeypatch, capsys):
    """A run that was stopped and resumed ends bit for bit as one that was not; the report has both."""
    write_cifar10(tmp_path / "cifar10")
    gpu_data.main(["--source", str(tmp_path / "cifar10"), "--folder", str(tmp_path)])
    told = ["--folder", str(tmp_path), "--device", "cpu", "--batch", "8", "--epochs", "2", "--pairs", "1"]
    told += ["--limit", "16", "--timing_seconds", "0", "--seconds", "1e9"]
    finished = {}
    monkeypatch.setattr(gpu_runs.Job, "finish", spy(gpu_runs.Job.finish, finished))
    paper_table2.main([*told, "--state", str(tmp_path / "whole")])
    whole = dict(finished)
    assert [*whole] == ["plain", "WSMS 1x1", "mean"]

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    again = [*told, "--state", str(tmp_path / "again")]
    with monkeypatch.context() as patch:
        patch.setattr(paper_table2, "train_alternately", stop_after(2))
        paper_table2.main(again)
    assert sorted(path.name for path in out.iterdir()) == [
        "plain_seed0.safetensors", "table2.json", "wsms_1x1_seed0.safetensors"
    ]  # fmt: skip
    capsys.readouterr()
    paper_table2.main(again)
    assert "seed 0: " in capsys.readouterr().out
    for name, state in whole.items():
        assert all(torch.equal(value, finished[name][key]) for key, value in state.items()), name
    assert [path.name for path in out.iterdir()] == ["table2.json"]

    results = tmp_path / "results.json"
    paper_table2.main(["--report", str(out / "table2.json"), "--results", str(results)])
    rows = json.loads(results.read_text())["forms"]
    assert [(row["form"], row["n"], row["paper"]) for row in rows] == [
        ("plain", 1, 6.61), ("WSMS 1x1", 1, 6.36), ("mean", 1, None)
    ]  # fmt: skip
    assert {row["schedule"] for row in rows} == {"2 epochs of batch 8"}
    assert "the paper: 6.61 %); schedule: 2 epochs of batch 8" in capsys.readouterr().out


def spy(finish, finished):
    def finish_and_keep(job, *args, **kwargs):
        finished[job.form.name] = job.groups[0].state(0)
        finish(job, *args, **kwargs)

    return finish_and_keep


def stop_after(epochs):
    """The time is up after so many epochs of all jobs together."""

    def train(jobs, number, train_one, save, left, whole):
        done = []
        return gpu_runs.train_alternately(
            jobs,
            number,
            lambda job: done.append(train_one(job)) or 0.0,
            save,
            lambda: 1e9 * (len(done) < epochs),
            whole,
        )

    return train


def test_forms_take_turns_and_stop_in_time():
    def run(seconds, epochs=4, whole=False):
        clock, order, saves = [0.0], [], []
        jobs = [SimpleNamespace(name="plain", epoch=0, takes=10), SimpleNamespace(name="wsms", epoch=0, takes=20)]

        def train(job):
            job.epoch += 1
            order.append(job.name)
            clock[0] += job.takes
            return job.takes

        done = gpu_runs.train_alternately(
            jobs, epochs, train, lambda: saves.append(clock[0]), lambda: seconds - clock[0], whole, every=1e9
        )
        return done, order, saves

    assert run(1000) == (True, ["plain", "wsms"] * 4, [])
    done, order, saves = run(100)
    assert not done and order == ["plain", "wsms"] * 2 and saves == [60]  # 2 × 20 + 5 s more than are left
    assert run(100, whole=True) == (False, ["plain", "wsms"], [])


def test_a_resumed_job_goes_on_where_the_other_waits():
    jobs = [SimpleNamespace(epoch=2), SimpleNamespace(epoch=1)]
    order = []

    def train(job):
        order.append(jobs.index(job))
        job.epoch += 1
        return 0.0

    assert gpu_runs.train_alternately(jobs, 3, train, lambda: None, lambda: 1e9, whole=False)
    assert order == [1, 0, 1]


def test_all_pairs_come_first():
    assert [*gpu_runs.agenda(5, 2)][:3] == [(gpu_runs.ROUNDS[0], seeds) for seeds in ((0, 1), (2, 3), (4,))]
    assert [forms for forms, _ in gpu_runs.agenda(2, 2)][1:] == [("mean",), ("WSMS none",), ("WSMS 3x3",), ("MS 1x1",)]


def test_plan_is_what_fits(monkeypatch):
    monkeypatch.setattr(gpu_timing, "OVERHEAD", 10.0)
    monkeypatch.setattr(gpu_timing, "MARGIN", 1.0)
    said = []
    one, two = (Timing(Variant(n), {"plain": 0.5 * ms, "WSMS 1x1": 0.5 * ms}) for n, ms in ((1, 3), (2, 4)))
    steps = 500  # 164 epochs: 82,000 steps, so rounds of 256 and 338 s
    assert gpu_timing.choose([one, two], 700, steps, False, said.append) == Plan(two.variant, 4, 164)
    assert "4 + 4 seeds fit by 2 streams × 1 stacked seeds, 169 s a pair" in said[0] and len(said) == 1
    assert gpu_timing.choose([one, two], 1e5, steps, False, said.append).pairs == 5
    said.clear()
    assert gpu_timing.choose([one, two], 300, steps, False, said.append) == Plan(one.variant, 2, 164)
    assert said[1].startswith("fewer than 2 + 2 seeds fit")
    said.clear()
    assert gpu_timing.choose([one, two], 300, steps, True, said.append) == Plan(two.variant, 2, 145)
    assert said[2].startswith("a shorter schedule, NOT THE PAPER'S: 145 epochs, 2 + 2 seeds")
    plan = Plan(two.variant, 4, 164)
    assert Plan.of(json.loads(json.dumps(plan.plain()))) == plan


@pytest.mark.slow
def test_timing_stops_in_time_and_survives_a_variant_that_fails(monkeypatch, capsys):
    setting = Setting(CPU, 4, batch=2, dtype=torch.float32)
    monkeypatch.setattr(gpu_timing, "KINDS", ((1, False), (2, False), (1, True)))
    monkeypatch.setattr(gpu_timing, "MOST", 2)
    monkeypatch.setattr(gpu_timing, "fused_function", lambda: fails)
    found = [*gpu_timing.measure([PLAIN], setting, 1e9, calls=1)]
    assert [timing.variant for timing in found] == [Variant(1), Variant(2), Variant(1, 2)]
    assert all(timing.ms["plain"] > 0 for timing in found)
    assert "norms fused: RuntimeError: no compiler" in capsys.readouterr().out
    assert [timing.variant for timing in gpu_timing.measure([PLAIN], setting, 0, calls=1)] == [Variant(1)]


@pytest.mark.slow
def test_a_variant_that_computes_something_else_is_left_out(monkeypatch, capsys):
    setting = Setting(CPU, 4, batch=2, dtype=torch.float32)
    monkeypatch.setattr(gpu_timing, "KINDS", ((1, False), (1, True)))
    monkeypatch.setattr(gpu_timing, "MOST", 1)

    def without_shortcut(x, _shortcut, *norm):
        return gpu_norms.norm_act(x, None, *norm)

    for function, kept in ((without_shortcut, 1), (gpu_norms.norm_act, 2)):
        monkeypatch.setattr(gpu_timing, "fused_function", lambda function=function: function)
        assert len([*gpu_timing.measure([PLAIN], setting, 1e9, calls=1)]) == kept
    assert "are not those of the first variant" in capsys.readouterr().out


def fails(*_args):
    raise RuntimeError("no compiler")


def test_what_comes_back_fits(tmp_path, monkeypatch):
    """At most seven checkpoints beside the report, none too large, pairs of the first seeds first."""
    monkeypatch.setattr(gpu_runs, "BACK", (7, 100, 430))
    out = tmp_path / "out"
    out.mkdir()
    store = gpu_runs.Store(tmp_path / "state", out)
    for seed in range(3):
        for form in (PLAIN, WSMS):
            store.path(form, seed).write_bytes(bytes(95))
    store.path(MEAN, 0).write_bytes(bytes(101))
    store.write()
    names = {path.stem for path in out.glob("*.safetensors")}
    assert names == {"plain_seed0", "plain_seed1", "wsms_1x1_seed0", "wsms_1x1_seed1"}


def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU; --device cpu"):
        paper_table2.main(["--state", str(tmp_path)])
