"""Evaluation: accuracy, by class and against object size, cost, tables and plots.

None of these modules imports `timm_wsms.data` or `timm_wsms.training`, whose packages the demo does not need. Others in
this folder, for the commands, do.
"""

from timm_wsms.evaluation.accuracy import Predictions, accuracy_by_size, predict, top1, top5
from timm_wsms.evaluation.cost import multiplications, parameters
from timm_wsms.evaluation.per_class import ClassResult, by_class, confusion, mistakes, write_classes
from timm_wsms.evaluation.plots import plot_confusion, plot_costs, plot_curves, plot_mistakes, plot_rows, plot_sizes
from timm_wsms.evaluation.results_table import Row, aligned, image_count, markdown_table, text_table
from timm_wsms.evaluation.stages.cam import stage_heat_maps
from timm_wsms.object_scaling import rescale_object

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
    "plot_costs",
    "plot_curves",
    "plot_mistakes",
    "plot_rows",
    "plot_sizes",
    "predict",
    "rescale_object",
    "stage_heat_maps",
    "text_table",
    "top1",
    "top5",
    "write_classes",
]
