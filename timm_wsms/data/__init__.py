"""From a recipe to batches of images and labels."""

from timm_wsms.data.loader import Batch, Loader, make_loader
from timm_wsms.data.settings import DataSettings, TimmAugmentation
from timm_wsms.data.sources import load_data, load_split, load_splits, load_validation, resolve_holdout
from timm_wsms.data.split import Split
from timm_wsms.data.stream import Stream
from timm_wsms.data.transforms import data_config, eval_transform, train_transform

__all__ = [
    "Batch",
    "DataSettings",
    "Loader",
    "Split",
    "Stream",
    "TimmAugmentation",
    "data_config",
    "eval_transform",
    "load_data",
    "load_split",
    "load_splits",
    "load_validation",
    "make_loader",
    "resolve_holdout",
    "train_transform",
]
