"""The settings of the images."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TimmAugmentation:
    """What `timm.data.create_transform` draws from when `augmentation` is `timm`; the defaults are timm's."""

    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] | None = None
    """How a training crop is drawn, in timm's terms; by default `rrc`, the random-resized crop."""
    scale: tuple[float, float] | None = None
    """Smallest and largest area of a crop, as parts of the image's; by default 0.08 and 1."""
    ratio: tuple[float, float] | None = None
    """Smallest and largest width of a crop divided by its height; by default 3/4 and 4/3."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float | list[float] | None = 0.4
    """Strength of the change of brightness, contrast and saturation; null for no change."""
    color_jitter_prob: float | None = None
    """Probability of the change of color; by default every image is changed."""
    grayscale_prob: float = 0.0
    """Probability of turning the image gray."""
    gaussian_blur_prob: float = 0.0
    """Probability of a Gaussian blur."""
    auto_augment: str | None = None
    """A policy as timm writes them, such as `rand-m9-mstd0.5-inc1`; it takes the place of `color_jitter`."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "random"] | None = None
    """How a training crop is resized (`random`: bilinear or bicubic); by default as the model's own."""
    re_prob: float = 0.0
    """Probability of erasing a random rectangle."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """What an erased rectangle is filled with: zeros, one random color, or a random color per pixel."""
    re_count: int = 1
    """The largest number of erased rectangles in one image."""


@dataclass
class DataSettings:
    """Where the images come from and how they become batches."""

    source: str = "digits"
    """`digits` (embedded, no download needed), a local folder (image folder or parquet files), or a Hub name."""
    digit_sizes: tuple[int, int] = (8, 32)
    """Smallest and largest side in pixels of a training digit of `digits`; its test images have all from 8 to 32."""
    config: str | None = None
    """The Hub data set's configuration, where it has several."""
    train_split: str = "train"
    """Name of the split to train on."""
    test_split: str = "test"
    """Name of the split to evaluate on. If there is no `test`, a validation split is taken, under any of its usual
    names. Of both splits a part can be taken: `train[:80%]`, `train[80%:]`."""
    holdout: float | Literal["auto"] | None = None
    """Evaluate on this part of the training split instead, such as 0.2, drawn by the seed from each class, and train on
    the rest. `auto`: 0.2 if the source has no test or validation split, and none otherwise."""
    image_column: str | None = None
    """The column of images; by default the only one there is."""
    label_column: str | None = None
    """The column of labels; by default the only one of class labels, else one called `label` or the like, else the only
    one of integers, or strings. In an image folder: a column of its `metadata.csv`, in place of the class folders."""
    value_range: tuple[float, float] | None = None
    """The values of black and white in images of more than 8 bits per channel, such as [0, 4095]; by default as each
    file says, and an image that does not say it is an error."""
    augmentation: Literal["none", "pad_crop_flip", "timm"] = "none"
    """For training images: none, CIFAR's (pad 4 pixels, random crop, horizontal flip), or timm's, see `data.timm`."""
    scale_jitter: tuple[float, float] | None = None
    """Smallest and largest size of a training image's object, such as [0.5, 2], drawn log-uniformly; 1 is as it is.
    A larger image is zoomed about its center. Before `pad_crop_flip` and before timm's random-resized crop."""
    scale_border: Literal["mean", "edge", "reflect", "blur"] = "mean"
    """What a smaller image of `scale_jitter` lies on: its mean color, that of its outermost pixels, itself mirrored, or
    itself blurred."""
    train_sizes: list[int] | None = None
    """Sides in pixels of square training images, one of which is drawn for each batch, as timm's `--train-img-sizes`
    does; evaluation is at `input_size`."""
    input_size: list[int] | None = None
    """Channels, height and width of what the network is fed, in pixels; by default the model's own."""
    mean: list[float] | None = None
    """Mean of each channel, of pixels between 0 and 1, to be subtracted; by default the model's own."""
    std: list[float] | None = None
    """Standard deviation of each channel, to be divided by; by default the model's own."""
    crop_pct: float | None = None
    """At evaluation, the part of the resized image that the center crop keeps; by default the model's own."""
    timm: TimmAugmentation = field(default_factory=TimmAugmentation)
    """What the augmentation `timm` draws from."""
    decoding: Literal["fast", "full"] = "fast"
    """JPEGs for random-resized crops: `fast` decodes them small where the crop allows, and resizes with PyTorch;
    `full` decodes as timm does, with Pillow. The crop is the same; docs/data.md says how much pixels differ."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be decoded stops the run (`error`), or is left out and counted (`skip`)."""
    workers: int = 2
    """Processes that decode images (none are needed for small images, which are kept decoded)."""
    streaming: bool = False
    """Read the source row by row during training instead of downloading it first; see docs/streaming.md."""
    shuffle_buffer: int = 10_000
    """For a stream: the number of images, over all processes, among which the next one is drawn."""
    lanes: int = 8
    """For a stream: the number of files read side by side. With as many processes, or a divisor, each reads its own."""
    train_size: int | None = None
    """Number of training images of a stream; by default what the source says."""
    test_size: int | None = None
    """Number of evaluation images of a stream; by default what the source says."""
    num_classes: int | None = None
    """Number of classes where labels are plain integers; by default one more than the largest. A stream needs it."""
    train_limit: int | None = None
    """Train on the first N images only, for a quick look; an even sample over classes if they come class by class."""
    test_limit: int | None = None
    """Evaluate on the first N images only, likewise."""

    def option(self, name: str) -> str:
        """What the user calls a setting, for messages: the training script's name here."""
        return f"data.{name}"
