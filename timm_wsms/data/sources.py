"""From a name or a folder to images and labels."""

from dataclasses import replace

import numpy as np

from timm_wsms.data import columns, sampling
from timm_wsms.data.decode import undecoded
from timm_wsms.data.digits import CANVAS, SMALLEST, Digits, load_digits
from timm_wsms.data.hub_source import NoSuchSplitError, open_source, pick_split
from timm_wsms.data.keep_decoded import keep_decoded
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split import Split
from timm_wsms.data.split_names import parse_split
from timm_wsms.data.stream import Stream, open_streams
from timm_wsms.data.summary import look_at
from timm_wsms.errors import UserError

AUTO_HOLDOUT = 0.2  # of the training images


def resolve_holdout(settings: DataSettings) -> DataSettings:
    """Replaces `holdout: auto` with what it means for the source, so that the settings of a run say what was done.

    Raises:
        UserError: the source cannot be opened.
    """
    if settings.holdout != "auto":
        return settings
    missing = False
    if settings.source != "digits" and not settings.streaming and settings.test_split == DataSettings.test_split:
        try:
            pick_split(open_source(settings).splits, settings, "test_split")
        except NoSuchSplitError:
            missing = True
    return replace(settings, holdout=AUTO_HOLDOUT if missing else None)


def load_data(settings: DataSettings, seed: int) -> tuple[Split, Split] | tuple[Stream, Stream]:
    """What `load_splits` does; or, if `streaming` is set, opens streams (the embedded digits never are).

    Args:
        settings: those of `load_splits` and those about streams are used.
        seed: as there.

    Raises:
        UserError: as there, or because it is not known how many images or classes a stream has.
    """
    if not settings.streaming or settings.source == "digits":
        return load_splits(settings, seed)
    _check(settings)
    return open_streams(settings)


def load_splits(settings: DataSettings, seed: int) -> tuple[Split, Split]:
    """Loads the images and labels to train on and to evaluate on.

    Args:
        settings: `source`, `config`, the names of splits and columns, `holdout`, `value_range`, `on_bad_image` and the
            limits are used.
        seed: of the embedded digits and of `holdout`; nothing else depends on it.

    Returns:
        (train, test), with the same class names.

    Raises:
        UserError: if the source, a split or a column is missing, the images have a single class, or one cannot be
            decoded.
    """
    settings = resolve_holdout(settings)
    _check(settings)
    wanted = ("train_split", "test_split") if settings.holdout is None else ("train_split",)
    opened = _open(settings, seed, wanted)
    train, test = opened["train_split"], opened[wanted[-1]]
    one_for_both = train is test and settings.holdout is None
    if settings.holdout is not None:
        train, test = _hold_out(train, settings, seed)
    classes = np.union1d(train.labels, test.labels)
    if len(classes) == 1 and len(train.class_names) == 1:
        raise UserError(
            f"The data has a single class, {train.class_names[0]!r}, so that there is nothing to learn; an image folder"
            " is split/class/image or class/image."
        )
    if settings.train_limit is not None:
        train = train.take(sampling.first(train.labels, settings.train_limit))
    if settings.test_limit is not None:
        test = test.take(sampling.first(test.labels, settings.test_limit))
    if one_for_both and np.array_equal(train.source_rows, test.source_rows):  # the same images, decoded once
        train = test = _decoded(train, settings)
        return train, test
    return _decoded(train, settings), _decoded(test, settings)


def load_split(settings: DataSettings, *, limit: int | None = None, seed: int = 0) -> Split:
    """Loads the images and labels to evaluate on. Nothing else of the source is read.

    Args:
        settings: as for `load_splits`; of its splits, `test_split` is used, or `train_split` with `holdout`.
        limit: number of images, an even sample over classes; None: all.
        seed: as there.

    Raises:
        UserError: as there.
    """
    settings = resolve_holdout(settings)
    _check(settings)
    if limit is not None and limit < 1:
        raise UserError(f"{settings.option('limit')} is {limit}; give at least 1.")
    setting = "test_split" if settings.holdout is None else "train_split"
    split = _open(settings, seed, (setting,))[setting]
    if settings.holdout is not None:
        split = _hold_out(split, settings, seed)[1]
    if limit is not None:
        split = split.take(sampling.even(split.labels, limit))
    return _decoded(split, settings)


def load_validation(settings: DataSettings, besides: Split, seed: int = 0) -> Split | None:
    """The validation split, under any of its usual names, for choices that are then evaluated on `besides`.

    Args:
        settings: as for `load_splits`; its splits and `holdout` are not used.
        besides: the split that is evaluated.
        seed: as there.

    Returns:
        None if the source has none, or if `besides` is a part of it.
    """
    wanted = replace(settings, test_split="validation", holdout=None)
    try:
        split = _open(wanted, seed, ("test_split",))["test_split"]
    except NoSuchSplitError:
        return None
    return None if parse_split(besides.name).name == split.name else _decoded(split, settings)


def _open(settings: DataSettings, seed: int, wanted: tuple[str, ...]) -> dict[str, Split]:
    """Splits, or the parts of them that the settings name, none decoded; the same object for the same split."""
    if settings.source == "digits":
        if seed < 0:
            raise UserError(f"seed is {seed}; give a number that is not negative.")
        smallest, largest = settings.digit_sizes
        if not SMALLEST <= smallest <= largest <= CANVAS:
            raise UserError(
                f"{settings.option('digit_sizes')} is [{smallest}, {largest}]; give the smallest and the largest side,"
                f" from {SMALLEST} to {CANVAS}."
            )
        digits = dict(zip(("train", "test"), load_digits(seed, settings.digit_sizes), strict=True))
        names = {setting: pick_split(digits, settings, setting) for setting in wanted}
        wholes = {name: _from_digits(digits[name], name) for name in set(names.values())}
    else:
        source = open_source(settings)
        names = {setting: pick_split(source.splits, settings, setting) for setting in wanted}
        tables = {name: source.splits[name] for name in dict.fromkeys(names.values())}
        both = source.find_columns(next(iter(tables)), settings)
        remarks = [*source.remarks, *source.unused(tables)]
        labels, class_names = columns.read_labels(tables, settings, both.label, source.names_in(both.label))
        wholes = {
            name: Split(
                name,
                labels[name],
                class_names,
                rows=undecoded(table, both.image),
                image_column=both.image,
                value_range=settings.value_range,
                found={
                    "passed_over": source.passed_over.get(name, {}),
                    "beside": source.passed_over.get("", {}),
                    "remarks": remarks,
                },
            )
            for name, table in tables.items()
        }
    return _parts(wholes, names, settings)


def _parts(wholes: dict[str, Split], names: dict[str, str], settings: DataSettings) -> dict[str, Split]:
    """The requested parts of the named splits."""
    parts: dict[str, Split] = {}
    chosen = {}
    for setting, name in names.items():
        spec = parse_split(getattr(settings, setting))
        text = f"{name}{spec.text[len(spec.name) :]}"
        if text not in parts:
            whole = wholes[name]
            parts[text] = replace(whole.take(sampling.part(whole.labels, spec)), name=text) if spec.is_part else whole
            if not len(parts[text]):
                raise UserError(f"{settings.option(setting)} {text!r} holds none of {len(whole)} images; set another.")
        chosen[setting] = parts[text]
    return chosen


def _hold_out(train: Split, settings: DataSettings, seed: int) -> tuple[Split, Split]:
    """What is left to train on, and what is kept back to evaluate on."""
    assert isinstance(settings.holdout, float)
    rest, kept = sampling.holdout(train.labels, settings.holdout, seed)
    if not len(kept) or not len(rest):
        raise UserError(
            f"{settings.option('holdout')} {settings.holdout:g} of {len(train)} images leaves none for one part; set"
            " another, or give more images."
        )
    return train.take(rest), replace(train.take(kept), name=f"{train.name}, {settings.holdout:g} held out")


def _decoded(split: Split, settings: DataSettings) -> Split:
    return keep_decoded(look_at(split), settings) if split.pixels is None else split


def _check(settings: DataSettings) -> None:
    sizes = ("train_limit", "test_limit", "train_size", "test_size", "num_classes", "shuffle_buffer", "lanes")
    if settings.train_sizes is not None and min(settings.train_sizes, default=0) < 1:
        raise UserError(
            f"{settings.option('train_sizes')} is {settings.train_sizes}; give sides in pixels, such as [96, 128]."
        )
    for key, least in (*((key, 1) for key in sizes), ("workers", 0)):
        value = getattr(settings, key)
        if value is not None and value < least:
            raise UserError(f"{settings.option(key)} is {value}; give at least {least}.")
    if isinstance(settings.holdout, (int, float)) and not 0 < settings.holdout < 1:
        raise UserError(
            f"{settings.option('holdout')} is {settings.holdout:g}; give a part between 0 and 1, such as 0.2."
        )
    if settings.value_range is not None and settings.value_range[0] == settings.value_range[1]:
        raise UserError(
            f"{settings.option('value_range')} is {settings.value_range}; give black and white, such as [0, 4095]."
        )


def _from_digits(digits: Digits, name: str) -> Split:
    class_names = [str(digit) for digit in range(10)]
    return Split(name, digits.labels, class_names, pixels=digits.pixels, object_sizes=digits.object_sizes)
