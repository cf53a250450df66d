"""The table of accuracy against object size, by hand."""

import numpy as np

from timm_wsms.evaluation.object_size.curve import SizePredictions, compare, size_curve
from timm_wsms.evaluation.object_size.table import drop_table, size_table
from timm_wsms.evaluation.stages.ablation import StageDrops

LABEL = np.zeros(4, int)
ALL, HALF, NONE = [0] * 4, [0, 0, 1, 1], [1] * 4


def predictions(*rows):
    return SizePredictions((0.5, 1.0, 2.0), np.arange(4), LABEL, np.array(rows))


def test_table_by_hand():
    first, second = predictions(NONE, ALL, HALF), predictions(ALL, ALL, ALL)
    curves = {"plain": size_curve(first), "wsms": size_curve(second)}
    table = size_table(curves, {"plain": (1.0, 2.0), "wsms": None}, [compare(first, second)])
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["size", "plain", "as", "at", "1", "wsms", "as", "at", "1", "p", "(1,", "2)"]
    assert lines[2] == ["0.50", "0.0", "[0.0,", "0.0]", "0.0", "100.0", "[100.0,", "100.0]", "100.0", "0.12"]
    assert lines[3] == ["1.00", "100.0", "[100.0,", "100.0]*", "100.0", "100.0", "[100.0,", "100.0]", "100.0", "1"]
    assert lines[4][0:2] == ["2.00", "50.0"] and lines[4][3].endswith("]*") and lines[4][-1] == "0.5"
    assert lines[5][:2] == ["area", "62.5"] and lines[6][:4] == ["worst", "0.0", "at", "0.50"]
    assert "area of model 2 minus that of model 1: +37.5 [" in table and "* a size seen in training" in table


def test_one_model_has_no_tests():
    table = size_table({"plain": size_curve(predictions(NONE, ALL, HALF))}, {"plain": None})
    assert "McNemar" not in table and "p (" not in table and "]*" not in table


def test_drops_are_told_as_changes():
    drops = StageDrops((0.5, 1.0), [50.0, 80.0], [[20.0, -1.0]], [[(18.0, 23.0), (-2.0, 0.5)]])
    lines = [line.split() for line in drop_table(drops).splitlines()]
    assert lines[2] == ["0.50", "50.0", "-20.0", "[-23.0,", "-18.0]"]
    assert lines[3] == ["1.00", "80.0", "+1.0", "[-0.5,", "+2.0]"]
