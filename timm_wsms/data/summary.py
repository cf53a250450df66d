"""What was found in the data, so that a mistake in it is seen before training and not after."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from timm_wsms.data import class_names
from timm_wsms.data.decode import decode, open_head
from timm_wsms.data.settings import DataSettings
from timm_wsms.data.split import Split
from timm_wsms.data.split_names import parse_split
from timm_wsms.data.stream import Stream
from timm_wsms.foreign import clean, printable, read_json, understood

FILE = "data.json"
SAMPLE = 1000  # images of a split whose mode and size are looked at
DECODED, LARGE = 8, 2**24  # images of a split that are decoded, and the pixels of one that is too large for that
BLACK = 1  # of 255: as the brightest value of all images it is a mistake
EXAMPLES = 3  # files named among those that are passed over


def look_at(split: Split) -> Split:
    """A split with what the headers of its images say, or those of an even sample: modes and sizes, in `found`."""
    modes: Counter[str] = Counter()
    sizes = []
    places = _evenly(len(split), SAMPLE)
    for place in places:
        value = split.undecoded(place)
        try:
            with open_head(value) as image:
                modes[image.mode] += 1
                sizes.append(image.size)
        except Exception:  # whatever is wrong with it is reported when it is decoded
            modes["unreadable"] += 1
    found = {"looked_at": len(places), "modes": dict(modes.most_common()), "brightest": _brightest(split)}
    if sizes:
        found |= {
            name: [int(min(sides)), int(max(sides))]
            for name, sides in zip(("width", "height"), zip(*sizes, strict=True), strict=True)
        }
    return replace(split, found={**split.found, **found})


def _brightest(split: Split) -> list[int]:
    """The brightest value, of 255, of each of a few images."""
    found = []
    for place in _evenly(len(split), DECODED):
        value = split.undecoded(place)
        with suppress(Exception), open_head(value) as head:  # as above
            if head.width * head.height < LARGE:
                image = np.asarray(decode(value, split.name, place, split.value_range))  # (H, W, 3)
                found.append(int(image.max()))
    return found


def _evenly(count: int, most: int) -> list[int]:
    """Places from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def describe(splits: Mapping[str, Split | Stream], settings: DataSettings) -> dict[str, Any]:
    """All there is to say about the data, for JSON and for `lines`.

    Args:
        splits: by what they are for: "train" and "test", or "test" alone.
        settings: those they were loaded with.

    Returns:
        `source`, without this machine's path; `classes`; for each split its `name`, number of `images`,
        `images_per_class` (not of streams), `passed_over`, and `modes`, `width` and `height` of `looked_at` images;
        `only_in`, the classes that are in one split only; `remarks`.
    """
    source = Path(settings.source).expanduser()
    found = next(iter(splits.values())).found
    described = {part: _of_split(split) for part, split in splits.items()}
    result: dict[str, Any] = {
        "source": source.resolve().name if source.exists() else settings.source,
        "classes": list(next(iter(splits.values())).class_names),
        "splits": described,
        "only_in": _only_in(described),
        "beside": _counted(found.get("beside", {})),
        "remarks": [*_remarks(splits, settings), *found.get("remarks", [])],
    }
    return result


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The same in a few lines, to be printed: control characters in names are escaped."""
    summary = clean(dict(summary))
    classes = summary["classes"]
    result = [f"data {summary['source']}: {class_names.listed(classes)}"]
    for part, split in summary["splits"].items():
        what = f"  {part}: {split['images']:,} images of split {split['name']!r}"
        if counts := split.get("images_per_class"):
            least, most = min(counts.values()), max(counts.values())
            what += f", {least} of each class" if least == most else f", {least} to {most} per class"
        result.append(what + _appearance(split))
        result += [f"    passed over: {_files(why, files)}" for why, files in split["passed_over"].items()]
    result += [f"  passed over: {_files(why, files)}" for why, files in summary["beside"].items()]
    for part, names in summary["only_in"].items():
        result.append(f"  WARNING: only in {part}: {class_names.listed(names)}")
    return result + [f"  {remark}" for remark in summary["remarks"]]


def card_lines(path: Path) -> list[str]:
    """The same for a model card, as items of a list; none if a model's folder has no such file."""
    if not path.is_file():
        return []
    found = read_json(path)
    with understood(path):
        first, *rest = lines(found)
    return [first.removeprefix("data "), *(line.strip() for line in rest)]


def evaluated_split(path: Path) -> str | None:
    """The name of the split that a run was evaluated on, which may be another than its settings name.

    Args:
        path: path of the run's data.json, which a model's folder may lack.
    """
    if not path.is_file():
        return None
    found = read_json(path)
    with understood(path):
        return printable(str(found["splits"]["test"]["name"]))


def _of_split(split: Split | Stream) -> dict[str, Any]:
    result: dict[str, Any] = {"name": split.name, "images": len(split)}
    if isinstance(split, Split):
        counts = np.bincount(split.labels, minlength=len(split.class_names)).tolist()
        result["images_per_class"] = {name: n for name, n in zip(split.class_names, counts, strict=True) if n}
        if split.skipped:
            result["not_decoded"] = split.skipped
        if split.pixels is not None and "modes" not in split.found:
            height, width = split.pixels.shape[1:3]
            result |= {"modes": {"RGB": len(split)}, "width": [width] * 2, "height": [height] * 2}
    result |= {key: split.found[key] for key in ("looked_at", "modes", "width", "height") if key in split.found}
    return {**result, "passed_over": _counted(split.found.get("passed_over", {}))}


def _only_in(described: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Classes that one split has images of and the other does not."""
    counts = {part: of_split.get("images_per_class") for part, of_split in described.items()}
    if len(counts) < 2 or None in counts.values():
        return {}
    result = {}
    for part, own in counts.items():
        others = {name for other, names in counts.items() if other != part for name in names or {}}
        if names := [name for name in own or {} if name not in others]:
            result[part] = names
    return result


def _remarks(splits: Mapping[str, Split | Stream], settings: DataSettings) -> list[str]:
    remarks = []
    if settings.holdout is None:
        for part, split in splits.items():
            asked = parse_split(getattr(settings, f"{part}_split")).name
            if parse_split(split.name).name != asked:
                remarks.append(f"there is no split {asked!r}; {parse_split(split.name).name!r} is taken")
    for split in splits.values():
        brightest = split.found.get("brightest")
        if brightest and max(brightest) <= BLACK:
            remarks.append(
                f"WARNING: {len(brightest)} images of split {split.name!r} were decoded, and are black: the brightest"
                f" value is {max(brightest)} of 255. Were values from 0 to 1 saved as bytes?"
            )
    train, test = splits.get("train"), splits.get("test")
    if isinstance(train, Split):
        remarks += class_names.remarks(train.class_names, train.labels, train.name)
    if train is not None and test is not None and parse_split(train.name).name == parse_split(test.name).name:
        both = len(test)
        if isinstance(train, Split) and isinstance(test, Split):
            both = len(np.intersect1d(train.source_rows, test.source_rows))
        if both and settings.holdout is None:
            remarks.append(
                f"WARNING: {both:,} of {len(test):,} images that are evaluated on are trained on too, so that the"
                f" accuracy says nothing about new images; set {settings.option('test_split')}, or"
                f" {settings.option('holdout')}=0.2"
            )
    return remarks


def _counted(passed_over: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    return {why: {"files": len(files), "first": files[:EXAMPLES]} for why, files in passed_over.items()}


def _files(why: str, files: Mapping[str, Any]) -> str:
    more = files["files"] - len(files["first"])
    return f"{files['files']:,} {why}: {', '.join(files['first'])}{f' and {more:,} more' if more else ''}"


def _appearance(split: Mapping[str, Any]) -> str:
    if "width" not in split:
        return ""
    modes = ", ".join(split["modes"])
    sizes = [f"{low}" if low == high else f"{low}–{high}" for low, high in (split["width"], split["height"])]
    sampled = (
        f" ({split['looked_at']:,} looked at)" if split.get("looked_at", split["images"]) < split["images"] else ""
    )
    return f"; {modes}, {' × '.join(sizes)} pixels (width × height){sampled}"
