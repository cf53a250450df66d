"""Opens what a visitor uploads: any picture within bounds, or one line that says what is wrong with it.

And finds the example pictures, each in a folder that is named after what it shows.
"""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from timm_wsms.errors import UserError

MOST_MEGAPIXELS = 25  # takes up to 0.5 GB for a moment
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no reader that runs other programs


def find_examples() -> list[Path]:
    """The pictures `<class>/<name>` of the folder that EXAMPLES names, else those that come with the demo, by class.

    Raises:
        UserError: The folder has no such pictures, or one that cannot be shown.
    """
    folder = _folder()
    found = sorted(
        path for path in folder.glob("[!.]*/[!.]*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    )
    if not found:
        raise UserError(
            f"there are no pictures in {folder}/<class>/; python hub/space/make_examples.py puts some there"
        )
    for path in found:
        try:
            open_picture(path)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return found


def read_credits() -> str:
    """Whose pictures these are, in Markdown: the README.md of the folder of examples, if there is one."""
    path = _folder() / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _folder() -> Path:
    return Path(os.environ.get("EXAMPLES") or EXAMPLES)


def open_picture(path: str | Path) -> Image.Image:
    """Opens a picture, upright, its transparent parts white; for an animation, its first frame.

    Its size is read from its header, before anything is decoded.

    Args:
        path: What the visitor uploaded.

    Returns:
        The picture in RGB.

    Raises:
        UserError: It is not a picture, is too large, or is damaged. The message is for the visitor.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is lower
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"This picture is too large: {MOST_MEGAPIXELS} megapixels at most.") from error
    except Exception as error:  # Pillow's readers may raise anything
        raise UserError(f"This file is not a picture: give one of {', '.join(FORMATS)}.") from error
    with image:
        megapixels = image.width * image.height / 1e6
        if megapixels > MOST_MEGAPIXELS:
            raise UserError(f"This picture is too large: {megapixels:.0f} megapixels, {MOST_MEGAPIXELS} at most.")
        try:
            return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:
            raise UserError("This picture is damaged: its file ends too early or is not what it says.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
