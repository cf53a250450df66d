"""The report of small objects on other borders, against loops over images; and what documents quote of it."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import photographs_borders as borders
from benchmarks.photographs import RESULTS, SIZES
from timm_wsms.evaluation.object_size.curve import area_weights


def arrays(sizes, stages, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(7)
    return {
        "test_logits": rng.standard_normal((stages, sizes, 7, 3)).astype(np.float16),
        "test_labels": (order % 3),
        "test_index": order,
    }


@pytest.mark.parametrize(("form", "stages"), [("mean", 2), ("plain", 2)])
def test_hits_below_size_one_come_from_the_other_border(form, stages):
    stored, other = arrays(len(SIZES), stages, 0), arrays(len(borders.SMALL) - 1, 1 if form == "plain" else 2, 1)
    hits = borders.small_hits(stored, other, form == "mean")
    assert hits.shape == (len(borders.SMALL), 7)
    for size in range(len(borders.SMALL)):
        source = stored if SIZES[size] == 1 else other
        for place, image in enumerate(source["test_index"]):
            logits = source["test_logits"][:, size, place].astype(np.float64)
            logits = logits.mean(0) if form == "mean" else logits[0]
            assert hits[size, image] == (logits.argmax() == source["test_labels"][place])
    on_mean = borders.small_hits(stored, None, form == "mean")
    assert (on_mean[-1] == hits[-1]).all() and (on_mean != hits).any()


def read():
    return json.loads((RESULTS.parent / "photographs_borders.json").read_text())["trained_with"]


def test_the_committed_report_is_of_the_stored_logits():
    reports = read()
    for regime, (row, (form, averaged)) in itertools.product(borders.FORMS, borders.ROWS.items()):
        if form not in borders.FORMS[regime]:
            continue
        right = []
        for fold in reports[regime]["folds"]:
            name = borders.run_of(regime, form, fold).trained
            with np.load(RESULTS / f"{name}_blur.npz") as stored:
                logits = stored["test_logits"].astype(np.float64)
                right.append((logits.mean(0) if averaged else logits[0]).argmax(-1) == stored["test_labels"])
        shares = 100 * np.concatenate(right, 1).mean(1)
        assert reports[regime]["borders"]["blur"][row]["top1"][:-1] == pytest.approx(shares, abs=0.006)
    for rows in itertools.chain(*(found["borders"].values() for found in reports.values())):
        for row in rows.values():
            assert row["area"] == pytest.approx(area_weights(borders.SMALL) @ row["top1"], abs=0.011)
        for name in {"averaging", "averaging at 128, stage 1 alone"} & rows.keys():
            gain = rows[name]["area"] - rows["plain"]["area"]
            assert rows[name]["against plain"][0] == pytest.approx(gain, abs=0.011)
            assert rows[name]["against plain"][1] < gain < rows[name]["against plain"][2]


def test_the_table_in_the_docs_is_the_report():
    reports = read()
    text = (RESULTS.parents[2] / "docs" / "results.md").read_text()
    for found in reports.values():
        assert "\n".join(borders.lines(found)) in text
        assert f"{found['images']:,} photographs" in text
    words = " ".join(text.split())

    def gain(regime, border, row, other="plain"):
        return reports[regime]["borders"][border][row][f"against {other}"]

    def said(found):
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found).replace("-", "−")

    averaging, alone = "averaging", "averaging at 128, stage 1 alone"
    mean, reflect, blur = (said(gain("imagenette jitter", border, alone)) for border in borders.BORDERS)
    assert f"by {mean} on the mean color, {reflect} on the reflection and {blur} on the blurred image:" in words
    jitter = [gain("jitter", border, alone) for border in borders.BORDERS]
    assert all(low > 0 for _, low, _ in jitter)
    assert f"by {min(jitter)[0]:+.2f} to {max(jitter)[0]:+.2f} points, significantly on each" in words
    rival = [gain("jitter", border, alone, "one size per batch") for border in borders.BORDERS]
    assert [low > 0 for _, low, _ in rival] == [True, False, False]
    mean, reflect, blur = map(said, rival)
    assert f"significant on the mean color, {mean}, and not on the others, {reflect} and {blur}." in words
    crop = {
        (border, other): gain("default", border, alone, other)
        for border, other in itertools.product(borders.BORDERS, ("plain", "one size per batch"))
    }
    assert [key for key, (_, low, _) in crop.items() if low > 0] == [("reflect", "plain")]
    assert f"on the reflection is significant, {said(crop['reflect', 'plain'])}." in words
    distilled = [gain("jitter", border, "the same with distillation") for border in borders.BORDERS]
    assert [low > 0 for _, low, _ in distilled] == [True, False, True]
    mean, reflect, blur = map(said, distilled)
    assert f"{mean} points over the plain network on the mean color, {blur} on the blurred image" in words
    assert f"not significantly, {reflect} on the reflection." in words
    controls = {
        form: [
            gain(regime, border, row)
            for regime, found in reports.items()
            for row in found["borders"]["mean"]
            if row.startswith(form)
            for border in borders.BORDERS
        ]
        for form in ("plain, trained longer", "plain, 112 pixels")
    }
    assert all(len(each) == 6 and all(low < 0 < high for _, low, high in each) for each in controls.values())
    longer, smaller = (f"{min(each)[0]:+.2f} to {max(each)[0]:+.2f}" for each in controls.values())
    assert f"trained longer gains {longer} points over the plain one on these borders" in words
    assert f"and one at 112 pixels {smaller}, nowhere significantly.".replace("-", "−") in words
    both = [gain("jitter", border, averaging) for border in borders.BORDERS]
    assert [low > 0 for _, low, _ in both] == [True, True, False]
    mean, reflect, blur = map(said, both)
    assert f"over the plain network on the mean color, {mean}, and on the reflection, {reflect};" in words
    assert f"no significant gain was seen, {blur}." in words
    assert f"no gain was seen on the blurred image, {said(gain('default', 'blur', averaging))}, and runs" in words
