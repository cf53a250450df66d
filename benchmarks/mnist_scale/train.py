"""MNIST-scale (Sosnovik et al. 2020), the field's controlled test: a plain CNN and WSMS forms, up to 0.5 M parameters.

    python -m benchmarks.mnist_scale.train --source ../shared/data/mnist --groups 28 --seeds 0 1

At 28×28 and with the images upsampled to 56×56, without and with ("+") scale augmentation, for the recipe's 8 epochs
and for 60; and at 100×100, where the plain CNN takes as much arithmetic as averaging over 1.4, 1, 0.7 does at 56. A
seed is a realization of the data and the network's seed. Errors in % of 50,000 test images; each form is compared with
the plain CNN of the same seed. Finished runs are not repeated.
"""

from dataclasses import replace
from pathlib import Path

from benchmarks.common.size_sweep import collect, parser, train_all
from benchmarks.common.sweep import PLAIN, Form, choose
from benchmarks.mnist_scale import data as mnist_scale_data

RECIPE = "recipes/mnist_scale.yaml"
WSMS, MEAN = "wsms_mnist_cnn", ("--model_kwargs.fusion", "mean")
FEWER = ("--model_kwargs.channels", "[31, 61, 92]")  # with these the integration layer fits into 0.5 M parameters


def mean(pyramid: str, *, each: bool = False) -> Form:
    """Whole stages, their logits averaged; trained by the loss of each stage too, if so wanted."""
    words = (*MEAN, "--model_kwargs.pyramid", f"[{pyramid.replace(' ', ', ')}]")
    return (
        Form(f"mean {pyramid}, each", WSMS, (*words, "--stage_loss", "1"))
        if each
        else Form(f"mean {pyramid}", WSMS, words)
    )


FORMS = [
    Form(PLAIN, "mnist_cnn"),
    Form("concat", WSMS, FEWER),
    Form("concat, 2 stages", WSMS, (*FEWER, "--model_kwargs.stages", "2")),
    Form("ms", "ms_mnist_cnn", ("--model_kwargs.channels", "[28, 55, 83]")),
    mean("1 0.5"),
    mean("1 0.7 0.5"),
    mean("2 1"),
    mean("1.4 1 0.7"),
    mean("1.4 1 0.7", each=True),
    mean("2 1 0.5"),
    mean("2 1.4 1 0.7"),
]
LARGER = ("--data.input_size", "[1, 56, 56]")
LARGEST = ("--data.input_size", "[1, 100, 100]")
JITTER = ("--data.scale_jitter", "[0.5, 2]", "--data.scale_border", "edge")
LONG = ("--epochs", "60")  # as Sosnovik et al. trained
GROUPS = {
    "28": (),
    "28+": JITTER,
    "56": LARGER,
    "56+": (*LARGER, *JITTER),
    "100": LARGEST,
    "100+": (*LARGEST, *JITTER),
    "28, 60 epochs": LONG,
    "56+, 60 epochs": (*LARGER, *JITTER, *LONG),
}


def main() -> None:
    options = parser(__doc__, "mnist_scale", seeds=(0, 1)).parse_args()
    options.limit = 50_000
    runs = [
        replace(run, source=str(data(options.outputs, run.seed)), watched="validation")
        for run in choose(FORMS, GROUPS, options)
    ]
    for seed in [] if options.only_collect else options.seeds:
        if not data(options.outputs, seed).exists():
            mnist_scale_data.make(options.source or "ylecun/mnist", seed, data(options.outputs, seed))
    train_all(runs, [1.0], RECIPE, options)
    collect(FORMS, GROUPS, "MNIST-scale, top-1 in % of 50,000 test images (the error is 100 less that)", options)


def data(outputs: Path, seed: int) -> Path:
    """Where a realization lies."""
    return outputs / "data" / f"seed{seed}"


if __name__ == "__main__":
    main()
