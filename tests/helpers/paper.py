"""What the paper's tables say of its networks."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of Table 1 or 2: parameters in millions, multiplications (of the C10 network) in millions.

    `note` is how the paper's parameters follow from ours where they are not ours rounded: "the C10 count" (printed for
    C100 too), "without integration" (its layer is not counted), "cut off" (instead of rounded); for C10 and C100.
    """

    name: str
    integration: str
    depth: int
    paper_c10: float
    c10: float
    paper_c100: float
    c100: float
    paper_multiplications: float | None
    multiplications: float
    note: tuple[str, str] = ("rounded", "rounded")


CIFAR = [
    Row("densenet100_k24_cifar", "", 100, 27.2, 27.249, 27.2, 27.458, 6889, 6889, ("rounded", "the C10 count")),
    Row("densenet100_k26_cifar", "", 100, 31.9, 31.920, 31.9, 32.146, None, 8068, ("rounded", "the C10 count")),
    Row("ms_densenet100_k24_cifar", "conv1x1", 101, 41.3, 41.923, 41.3, 41.934, None, 8455,
        ("without integration", "without integration")),
    Row("wsms_densenet100_k24_cifar", "none", 100, 27.4, 27.402, 27.8, 27.821, None, 8416),
    Row("wsms_densenet100_k24_cifar", "conv3x3", 101, 32.7, 32.721, 32.7, 32.733, None, 8760),
    Row("wsms_densenet100_k24_cifar", "conv1x1", 101, 28.0, 27.953, 28.0, 27.965, 8454, 8455),
    Row("resnet110_cifar", "", 110, 1.73, 1.728, 1.73, 1.734, 252, 253),
    Row("resnet116_cifar", "", 116, 1.82, 1.825, 1.83, 1.831, None, 267, ("cut off", "rounded")),
    Row("resnet122_cifar", "", 122, 1.92, 1.922, 1.93, 1.928, None, 281),
    Row("ms_resnet110_cifar", "conv1x1", 111, 2.23, 2.242, 2.25, 2.253, None, 301, ("without integration", "rounded")),
    Row("wsms_resnet110_cifar", "none", 110, 1.73, 1.733, 1.74, 1.743, None, 301),
    Row("wsms_resnet110_cifar", "conv3x3", 111, 1.86, 1.863, 1.87, 1.874, None, 309),
    Row("wsms_resnet110_cifar", "conv1x1", 111, 1.75, 1.748, 1.76, 1.759, 301, 301),
]  # fmt: skip
