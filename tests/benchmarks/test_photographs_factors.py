"""`photographs factors`: what it adds to a record, and which records and networks it refuses."""

import json

import numpy as np
import pytest
import timm
import torch

from benchmarks import photographs
from benchmarks.photographs import SIZES, Run, add_factors, areas, factors_of

RUN = Run("one size per batch", "default", "1e-3", 3, True)
LABELS, INDEX = np.array([0, 1, 2, 1]), np.array([2, 0, 3, 1])


def logits_of(factors, sizes=SIZES):
    """Other logits for each factor of the image and size of the object: (factors, sizes, images, classes)."""
    found = [[np.random.default_rng(int(1000 * f + 7 * s)).normal(size=(4, 3)) for s in sizes] for f in factors]
    return np.array(found).astype(np.float16)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The record of a run with three factors, and the folder of its network."""
    monkeypatch.setattr(photographs, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(photographs, "RESULTS", tmp_path)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: torch.nn.Identity())

    def evaluate(model, run, split, factors=photographs.FACTORS, border="mean", sizes=SIZES):
        assert split == "test"
        return logits_of(factors, sizes), LABELS, INDEX

    monkeypatch.setattr(photographs, "logits_at_sizes", evaluate)
    (RUN.folder / "model").mkdir(parents=True)
    before = logits_of(photographs.TESTED_FACTORS)
    np.savez(tmp_path / f"{RUN.name}.npz", test_logits=before, test_labels=LABELS, test_index=INDEX)
    stages = [areas(stage, LABELS) for stage in before.astype(float)]
    path = tmp_path / f"{RUN.name}.json"
    path.write_text(json.dumps({"form": RUN.form, "test_stages": stages}))
    return path


def test_it_adds_what_the_record_lacks(record):
    before = json.loads(record.read_text())["test_stages"]
    add_factors(RUN)
    expected = logits_of(factors_of(RUN.form))
    assert len(expected) == 5
    with np.load(record.with_suffix(".npz")) as stored:
        assert (stored["test_logits"] == expected).all() and (stored["test_index"] == INDEX).all()
    found = json.loads(record.read_text())["test_stages"]
    assert found[:3] == before and found == [areas(stage, LABELS) for stage in expected.astype(float)]
    assert sorted(path.name for path in record.parent.glob("*.npz")) == [f"{RUN.name}.npz"]


def test_it_completes_what_was_interrupted_between_the_two_files(record):
    full = logits_of(factors_of(RUN.form))
    np.savez(record.with_suffix(".npz"), test_logits=full, test_labels=LABELS, test_index=INDEX)
    add_factors(RUN)
    assert json.loads(record.read_text())["test_stages"] == [areas(stage, LABELS) for stage in full.astype(float)]


@pytest.mark.parametrize(
    "other", [{"test_logits": 1 + logits_of(photographs.TESTED_FACTORS)}, {"test_index": INDEX[:3]}]
)
def test_another_network_or_other_images_are_refused(record, other):
    with np.load(record.with_suffix(".npz")) as stored:
        arrays = {**stored, **other}
    np.savez(record.with_suffix(".npz"), **arrays)
    with pytest.raises(SystemExit, match="is another than that of the record"):
        add_factors(RUN)


def test_what_is_missing_is_named(record):
    (RUN.folder / "model").rmdir()
    with pytest.raises(SystemExit, match="model is missing; run `one … --tested` first"):
        add_factors(RUN)
    record.unlink()
    with pytest.raises(SystemExit, match="json is missing; run `one … --tested` first"):
        add_factors(RUN)
