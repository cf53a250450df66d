"""What the visitor sees, as HTML: small enough to be sent again at every move of the slider."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
import torch
from PIL import Image

from demo.networks import Seen, TopFive

TICKS = '<div class="ticks"><span>¼</span><span>½</span><span>as it is</span><span>2 ×</span><span>4 ×</span></div>'
# Okabe and Ito's, which color-blind readers can tell apart, as in timm_wsms.evaluation.plots
FOR, AGAINST = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)


def picture(seen: Seen, factor: float) -> str:
    """The picture as the WSMS network gets it, pixel by pixel, and how large its object is."""
    wsms, plain = (f"{image.shape[2]}×{image.shape[1]} pixels" for image in seen.images)
    what = f"what both networks get: {wsms}" if wsms == plain else f"WSMS gets {wsms}, its plain backbone {plain}"
    caption = f"<b>× {factor:.2f}</b>{what}"
    return f"<figure>{_pixels(seen)}<figcaption>{caption}</figcaption></figure>"


def answers(seen: Seen, truth: str | None) -> str:
    """Both networks' five likeliest labels, side by side; the true one, if it is known, has a check mark."""
    wsms = _bars("WSMS", f"{len(seen.maps)} resolutions", seen.wsms, truth)
    return f'<div class="pair">{wsms}{_bars("Plain backbone", "1 resolution", seen.plain, truth)}</div>'


def _bars(name: str, what: str, top5: TopFive, truth: str | None) -> str:
    rows = "".join(
        f"<li><span>{'✓ ' if label == truth else ''}{escape(label)}</span><span>{100 * value:.0f} %</span>"
        f'<i style="width:{100 * value:.1f}%"></i></li>'
        for label, value in top5
    )
    return f"<section><h3>{name}<small>{what}</small></h3><ol>{rows}</ol></section>"


def stages(seen: Seen) -> str:
    """A heat map per stage over the picture: where it speaks for the WSMS network's first guess, and where against."""
    strongest = float(seen.maps.abs().max()) or 1.0
    totals = seen.maps.sum((1, 2)).tolist()
    pixels = _pixels(seen)
    figures = "".join(
        f'<figure><div>{pixels}<img class="heat" alt="heat map" src="{_png(_heat(heat / strongest))}"></div>'
        f"<figcaption><b>{total:+.1f}</b>stage {number}<br>{_size(factor)}</figcaption></figure>"
        for number, (heat, total, factor) in enumerate(zip(seen.maps, totals, seen.factors, strict=True), start=1)
    )
    label = escape(seen.wsms[0][0])
    what = f"where each stage of WSMS spoke <i>for</i> {label} or <i>against</i> it, and what that added"
    carrier = 1 + totals.index(max(totals))
    return f"<section><h3>Stage {carrier} carried the decision<small>{what}</small></h3><div>{figures}</div></section>"


def _size(factor: float) -> str:
    if factor == 1:
        return "full size"
    return f"1/{1 / factor:.0f} size" if (1 / factor).is_integer() else f"{factor:g} × the size"


def _pixels(seen: Seen) -> str:
    rgb = (seen.images[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return f'<img class="pixels" alt="the picture" src="{_png(Image.fromarray(rgb))}">'


def _heat(heat: torch.Tensor) -> Image.Image:
    """Values from -1 to 1, (h, w), as a color and how opaque it is."""
    values = heat.numpy()[..., None]
    color = np.where(values > 0, FOR, AGAINST)
    return Image.fromarray(np.concatenate([color, 230 * np.abs(values)], -1).round().astype(np.uint8), "RGBA")


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def message(text: str) -> str:
    """What is wrong with an upload, and that the picture before it stays."""
    return f'<p role="alert">{escape(text)} The picture before it stays.</p>'


def known(labels: list[str]) -> str:
    """What the networks can tell apart: the labels, or their number if there are many."""
    what = escape(", ".join(labels)) if len(labels) <= 20 else f"{len(labels):,} kinds of things"
    return f'<p class="known">They know {what}, and take whatever they see for one of these.</p>'


def scale(plot: bytes | None) -> str:
    """The plot of accuracy against object size, a PNG file's content, or why there is none."""
    if plot is None:
        return "<p>No scale.png came with this model: <code>python -m timm_wsms.object_size</code> draws it.</p>"
    source = "data:image/png;base64," + base64.b64encode(plot).decode()
    return f'<h3>Over the whole test set</h3><img alt="accuracy against object size" src="{source}">'
