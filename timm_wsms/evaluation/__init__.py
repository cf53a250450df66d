"""Evaluation: accuracy, by class and against object size, cost, tables and plots.

Nothing in here imports the data room or training, whose packages the demo does without.
"""

from timm_wsms.evaluation.accuracy import Predictions, predict, top1, top5
from timm_wsms.evaluation.classes import ClassResult, by_class, confusion, mistakes, write_classes
from timm_wsms.evaluation.cost import multiplications, parameters
from timm_wsms.evaluation.object_size import accuracy_by_size
from timm_wsms.evaluation.plots import plot_confusion, plot_curves, plot_mistakes, plot_sizes
from timm_wsms.evaluation.stage_maps import stage_heat_maps
from timm_wsms.evaluation.table import Row, aligned, image_count, markdown_table, text_table
from timm_wsms.resize import resize_object

__all__ = [
    "ClassResult",
    "Predictions",
    "Row",
    "accuracy_by_size",
    "aligned",
    "by_class",
    "confusion",
    "image_count",
    "markdown_table",
    "mistakes",
    "multiplications",
    "parameters",
    "plot_confusion",
    "plot_curves",
    "plot_mistakes",
    "plot_sizes",
    "predict",
    "resize_object",
    "stage_heat_maps",
    "text_table",
    "top1",
    "top5",
    "write_classes",
]
