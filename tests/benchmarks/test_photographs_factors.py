"""More sizes of the image: what is added to a record, and to which not."""

import json

import numpy as np
import pytest
import timm
import torch

from benchmarks import photographs
from benchmarks.photographs import (
    SIZES,
    TESTED_FACTORS,
    Run,
    add_factors,
    areas,
    factors_of,
    more_of,
    train_and_measure,
    with_more,
)

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
    before = logits_of(TESTED_FACTORS)
    np.savez(tmp_path / f"{RUN.name}.npz", test_logits=before, test_labels=LABELS, test_index=INDEX)
    stages = [areas(stage, LABELS) for stage in before.astype(float)]
    path = tmp_path / f"{RUN.name}.json"
    path.write_text(json.dumps({"form": RUN.form, "test_stages": stages}))
    return path


def test_it_adds_what_the_record_lacks_in_a_file_beside_it(record):
    before, stored = json.loads(record.read_text())["test_stages"], record.with_suffix(".npz").read_bytes()
    train_and_measure(RUN)
    expected = logits_of(factors_of(RUN.form))
    assert len(expected) == 6
    with np.load(more_of(record)) as more:
        assert list(more) == ["test_logits"] and (more["test_logits"] == expected[3:]).all()
    assert record.with_suffix(".npz").read_bytes() == stored
    arrays = with_more(record)
    assert (arrays["test_logits"] == expected).all() and (arrays["test_index"] == INDEX).all()
    found = json.loads(record.read_text())["test_stages"]
    assert found[:3] == before and found == [areas(stage, LABELS) for stage in expected.astype(float)]
    assert sorted(path.name for path in record.parent.glob("*.npz")) == [f"{RUN.name}.npz", f"{RUN.name}_more.npz"]


def test_it_adds_to_what_was_added(record):
    more = logits_of(factors_of(RUN.form)[3:5])
    np.savez(more_of(record), test_logits=more)
    add_factors(RUN)
    assert (with_more(record)["test_logits"] == logits_of(factors_of(RUN.form))).all()


def test_it_completes_what_was_interrupted_between_the_two_files(record):
    full = logits_of(factors_of(RUN.form))
    np.savez(more_of(record), test_logits=full[3:])
    add_factors(RUN)
    assert json.loads(record.read_text())["test_stages"] == [areas(stage, LABELS) for stage in full.astype(float)]


@pytest.mark.parametrize("other", [{"test_logits": 1 + logits_of(TESTED_FACTORS)}, {"test_index": INDEX[:3]}])
def test_another_network_or_other_images_add_nothing(record, other, capsys):
    with np.load(record.with_suffix(".npz")) as stored:
        arrays = {**stored, **other}
    np.savez(record.with_suffix(".npz"), **arrays)
    add_factors(RUN)
    assert "stays as it is, since the network in" in capsys.readouterr().out and not more_of(record).exists()


def test_a_record_stays_as_it_is_without_its_network(record):
    (RUN.folder / "model").rmdir()
    before = record.read_text()
    train_and_measure(RUN)
    assert record.read_text() == before and not more_of(record).exists()


@pytest.mark.parametrize("form, factors", [("one size per batch", 6), ("plain", 4)])
def test_a_new_record_has_every_size_at_once_in_its_two_files(form, factors, record, monkeypatch):
    run = Run(form, "default", "1e-3", 2, True, "imagenette")
    (run.folder / "model").mkdir(parents=True)
    (run.folder / "model" / "metrics.jsonl").write_text('{"train_loss": 1.5, "seconds": 60}\n')
    (run.folder / "model" / "settings.yaml").write_text("precision: 'no'\n")
    model = torch.nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    monkeypatch.setattr(photographs, "multiplications", lambda model, size: 1)
    train_and_measure(run)
    expected, path = logits_of(factors_of(form)), photographs.RESULTS / f"{run.name}.json"
    assert len(expected) == factors and (with_more(path)["test_logits"] == expected).all()
    with np.load(path.with_suffix(".npz")) as stored:
        assert (stored["test_logits"] == expected[:3]).all() and (stored["test_labels"] == LABELS).all()
    found = json.loads(path.read_text())
    assert found["test_stages"] == [areas(stage, LABELS) for stage in expected.astype(float)]
    assert found["test"] == found["test_stages"][0] and found["train_loss"] == [1.5]
