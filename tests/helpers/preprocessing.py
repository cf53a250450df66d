"""What images are prepared for, as `timm.data.resolve_data_config` returns it."""

from typing import Any


def preprocessing(height: int, width: int | None = None, **changes: Any) -> dict[str, Any]:
    """Of `height` × `width` pixels, square if only one is given; mean and standard deviation differ by channel."""
    config = {
        "input_size": (3, height, width or height),
        "interpolation": "bilinear",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.25),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    return config | changes
