"""Evaluation: accuracy, by class and against object size, cost, tables and plots."""

from timm_wsms.evaluation.accuracy import Predictions, predict, top1, top5
from timm_wsms.evaluation.classes import ClassResult, by_class, confusion, write_classes
from timm_wsms.evaluation.cost import multiplications, parameters
from timm_wsms.evaluation.load import in_order_of, load_model, timm_name
from timm_wsms.evaluation.object_size import accuracy_by_size, mean_over_sizes
from timm_wsms.evaluation.plots import plot_confusion, plot_curves, plot_sizes
from timm_wsms.evaluation.resize import resize_object
from timm_wsms.evaluation.stage_maps import stage_heat_maps
from timm_wsms.evaluation.table import Row, aligned, markdown_table, text_table

__all__ = [
    "ClassResult",
    "Predictions",
    "Row",
    "accuracy_by_size",
    "aligned",
    "by_class",
    "confusion",
    "in_order_of",
    "load_model",
    "markdown_table",
    "mean_over_sizes",
    "multiplications",
    "parameters",
    "plot_confusion",
    "plot_curves",
    "plot_sizes",
    "predict",
    "resize_object",
    "stage_heat_maps",
    "text_table",
    "timm_name",
    "top1",
    "top5",
    "write_classes",
]
