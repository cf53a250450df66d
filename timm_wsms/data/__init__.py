"""From a recipe to batches of images and labels."""

from .loader import Batch, Loader, make_loader
from .settings import DataSettings, TimmAugmentation
from .sources import Split, load_data, load_splits
from .stream import Stream
from .transforms import data_config, eval_transform, train_transform

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
    "load_splits",
    "make_loader",
    "train_transform",
]
