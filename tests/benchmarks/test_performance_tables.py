"""The tables of docs/performance.md hold the figures of their results files."""

import json

from tests.helpers.paths import ROOT

TEXT = (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()
WORDS = " ".join(" ".join(TEXT).split())
BACKBONES = ("swin_tiny_patch4_window7_224", "vit_small_patch16_224", "convnext_tiny")
ROWS = {
    "quotient, one graph": ("wsms_quotient", ""),
    "quotient, a graph per stage": ("wsms_per_stage_quotient", ""),
    "peak memory, one graph": ("wsms_peak", "× "),
    "peak memory, a graph per stage": ("wsms_per_stage_peak", "× "),
}


def read(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def ratios(name):
    """(backbone, batch, mode) → ratios, of the lines of a results file."""
    return {(line["backbone"], line["batch"], line["mode"]): line["ratios"] for line in read(name)["lines"]}


def ratio(value):
    return "–" if value is None else f"{value:.2f}"


def test_the_tables_of_the_eager_form():
    found = ratios("forward_cost")
    backbones = {backbone for backbone, _, _ in found}
    assert len(backbones) == 7
    for name in backbones:
        use16, train16, use1 = (
            found[name, batch, mode] for batch, mode in ((16, "inference"), (16, "training"), (1, "inference"))
        )
        quotients = [ratio(each["wsms_quotient"]) for each in (use16, train16, use1)]
        cells = [f"× {use16['wsms_multiplications']:.2f}", *quotients, f"× {train16['wsms_peak']:.2f}"]
        assert f"| `{name}` | {' | '.join(cells)} |" in TEXT
        cells = [ratio(each["wsms_to_multi_scale"]) for each in (use16, train16, use1)]
        cells += [ratio(each.get("wsms_fused_to_wsms")) for each in (use16, use1)]
        assert f"| `{name}` | {' | '.join(cells)} |" in TEXT
    missed = [line["wsms_quotient"] for (_, batch, _), line in found.items() if batch == 16]
    above = [quotient for quotient in missed if quotient > 1.03]
    assert f"missed on {len(above)} of {len(missed)} lines" in WORDS and round(max(above) - 1.03, 2) <= 0.03
    slow = [name for name in backbones if found[name, 1, "inference"]["wsms_quotient"] > 1.05]
    assert len(slow) == 6 and "At batch 1 six of seven backbones miss it" in WORDS
    saved = [network["wsms"]["ratio"] for network in read("forward_cost")["checkpointing"].values()]
    assert f"to {min(saved):.2f} to {max(saved):.2f} times its value without" in WORDS


def test_what_was_aimed_at():
    at16 = {
        name: [line["wsms_quotient"] for (_, batch, _), line in ratios(name).items() if batch == 16]
        for name in ("forward_cost", "forward_cost_compiled")
    }
    within = {name: sum(quotient <= 1.03 for quotient in found) for name, found in at16.items()}
    assert [len(found) for found in at16.values()] == [14, 14]
    per_stage = [line["ratios"]["wsms_per_stage_quotient"] for line in read("forward_cost_per_stage")["lines"]]
    assert len(per_stage) == 3 and max(per_stage) <= 1.03
    pipeline = {name: of_set["found"] for name, of_set in read("input_pipeline")["sets"].items()}
    rival = pipeline["imagenet"]["torchvision"]["of_timm_cpu"]
    ours, large = (pipeline[name]["fast"]["of_timm_cpu"] for name in ("imagenet", "large"))
    assert ours >= 1.6 and ours > rival and large >= 2.0
    rows = (
        f"| 1.6, and above torchvision's in the same run | {ours:.2f}, torchvision {rival:.2f}: yes |",
        f"| 2.0 | {large:.2f}: yes |",
        f"| 1.03 on every line | on {within['forward_cost']} of 14: no |",
        f"| 1.03 on every line | on {within['forward_cost_compiled']} of 14; in training with a graph per stage on all",
        "| 1.05 | five of seven backbones on one machine, two of seven on another: no |",  # counted below
    )
    assert [row for row in rows if row not in WORDS] == []


def test_the_table_of_the_compiled_form():
    found = ratios("forward_cost_compiled")
    names = [
        cell.strip(" `…") for cell in next(line for line in TEXT if line.startswith("| compiled |")).split("|")[2:-1]
    ]
    full = [next(name for name, _, _ in found if name.startswith(short)) for short in names]
    assert len({*full}) == 7

    def cells(key, *lines):
        each = [[found[name, batch, mode].get(key) for batch, mode in lines] for name in full]
        return " | ".join(" / ".join(map(ratio, of_one)) for of_one in each)

    use16, use1, train16, train1 = ((batch, mode) for mode in ("inference", "training") for batch in (16, 1))
    for title, line in {"quotient, inference 16": use16, "inference 1": use1, "training 16": train16}.items():
        assert f"| {title} | {cells('wsms_quotient', line)} |" in TEXT
    assert f"| training 1 | {cells('wsms_quotient', train1)} |" in TEXT
    wrapper = "wsms_to_multi_scale"
    assert f"| time over the wrapper's, inference 16 / 1 | {cells(wrapper, use16, use1)} |" in TEXT
    assert f"| the same, training 16 / 1 | {cells(wrapper, train16, train1)} |" in TEXT
    peaks = " | ".join(f"× {found[name, 16, 'training']['wsms_peak']:.2f}" for name in full)
    assert f"| peak memory, training 16 | {peaks} |" in TEXT
    ones = sorted(found[name, 1, "inference"]["wsms_quotient"] for name in full)
    assert ones[-2] < 1.08 < ones[-1] and "six of seven backbones are within 1.08" in WORDS


def test_what_threads_beside_each_other_gain_at_batch_1():
    here, there = (read(name)["backbones"].values() for name in ("forward_batch1", "forward_parallel_stages"))

    def span(rows, key):
        return "{:.2f} to {:.2f}".format(*(end(row[key] for row in rows) for end in (min, max)))

    def quotients(rows):
        return [row["time_side_by_side"] / row["multiplications"] for row in rows]

    for key, words in (
        ("time", "the ratio of times was {} without them"),
        ("time_one_thread", "with a single intra-op thread, {};"),
        ("time_side_by_side", "one intra-op thread each, {} of the time"),
    ):
        assert words.format(span(here, key)) in WORDS
    assert f"{span(there, 'time_side_by_side')} with it and {span(there, 'time')} without" in WORDS
    assert sum(row["time_side_by_side"] < row["time"] for row in there) == 4
    for rows, within, words in ((here, 5, "within the target for five of seven"), (there, 2, "target for two")):
        each = quotients(rows)
        assert f"{min(each):.2f} to {max(each):.2f}, within" in WORDS and words in WORDS
        assert sum(quotient <= 1.05 for quotient in each) == within


def test_the_table_of_a_gpu():
    found = ratios("forward_cost_gpu")
    assert len(found) == 4
    for (name, _, mode), line in found.items():
        cells = [f"× {line['wsms_multiplications']:.2f}", f"× {line['wsms_time']:.2f}"]
        cells += [ratio(line["wsms_quotient"]), ratio(line["wsms_to_multi_scale"])]
        peak = line.get("wsms_peak")
        cells.append("–" if peak is None else f"× {peak:.2f}")
        fused = line.get("wsms_fused_to_wsms")
        cells.append("–" if fused is None else f"{fused:.2f}, backbone {line['backbone_fused_to_backbone']:.2f}")
        assert f"| `{name}` | {mode} | {' | '.join(cells)} |" in TEXT


def test_the_table_of_a_graph_per_stage():
    report = read("forward_cost_per_stage")
    own = {line["backbone"]: line["ratios"] for line in report["lines"]}
    for title, (key, sign) in ROWS.items():
        cells = [f"{sign}{own[name][key]:.3f}" for name in BACKBONES]
        assert f"| {title} | {' | '.join(cells)} |" in TEXT
    forms = [next(line["forms"] for line in report["lines"] if line["backbone"] == name) for name in BACKBONES]
    compiling = [form["wsms_per_stage"]["first_step_s"] / form["wsms"]["first_step_s"] for form in forms]
    assert "Compiling takes {:.2f}, {:.2f} and {:.2f} of the time".format(*compiling) in WORDS


def test_the_figures_of_starting_and_training():
    start, overhead = read("start_cost")["start"], read("train_overhead")["models"]
    assert f"takes {start['import_s']:.2f} s beyond `import timm`" in WORDS
    assert f"takes {start['create_ratio']:.2f} times as long" in WORDS
    own, plain = (overhead[name]["ratio"] for name in ("wsms_resnet20_cifar", "resnet20_cifar"))
    assert f"reaches {plain:.3f} of the images/s" in WORDS and f"and {own:.3f} with `wsms_resnet20_cifar`" in WORDS


def test_the_tables_of_the_input_pipeline():
    sets = read("input_pipeline")["sets"]
    ours, large = sets["imagenet"]["found"], sets["large"]["found"]
    document = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    names = {
        "fast": "`fast`",
        "full": "`full`",
        "timm": "timm's loader",
        "timm_prefetcher": "timm, batches normalized by its prefetcher",
        "timm_uint8": "timm, not normalized (left to a GPU)",
    }
    jitter = {f"{key}_jitter": f"{name}, color jitter" for key, name in names.items()}
    sizes = {f"{key}_sizes": f"{names[key]}, `data.scale_jitter` of 0.5 to 2" for key in ("fast", "full")}
    for key, name in (names | jitter | sizes | {"torchvision": "torchvision's decoder and tensor transforms"}).items():
        cells = [f"{found[key][part]:.2f}" for found in (ours, large) for part in ("cpu_ms", "of_timm_cpu")]
        assert f"| {name} | {' | '.join(cells)} |" in document.splitlines()
    parts = {"stage_decode": "decoding", "stage_resize": "resizing", "bound": "`fast` without its decoding: a bound"}
    for key, name in parts.items():
        assert f"| {name} | {ours[key]['cpu_ms']:.2f} | {large[key]['cpu_ms']:.2f} |" in document.splitlines()
    words = " ".join(document.split())
    rates = [ours[key]["of_timm_cpu"] for key in ("fast", "torchvision")]
    assert rates[0] > max(1.6, rates[1]) and large["fast"]["of_timm_cpu"] > 2
    said = f"{rates[0]:.2f} times the images/s of timm's loader, above the target of 1.6 and ahead of torchvision's"
    assert f"{said} {rates[1]:.2f}, and {large['fast']['of_timm_cpu']:.2f} times at 1600 × 1200" in words
    assert f"{rates[0]:.2f} times the images/s per core of timm's loader" in WORDS
    more = ours["fast_sizes"]["cpu_ms"] - ours["fast"]["cpu_ms"]
    assert f"takes {more:.2f} ms more per image of 502 × 402" in words


def test_the_time_of_the_quick_start():
    found = read("quickstart")["on_two_free_cores"]
    text = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    plain, averaging = found["accuracy"].values()
    assert f"took {found['wall_seconds']} s, and gave {plain:.2f} and {averaging:.2f} %" in text
    assert found["wall_seconds"] < 150 and "two minutes on two CPU cores" in (ROOT / "README.md").read_text()
