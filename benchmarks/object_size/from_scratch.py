"""Objects of sizes never trained on: CIFAR-10, ResNet-20 in its plain and WSMS forms, with and without scale jitter.

    python -m benchmarks.object_size.from_scratch --source ../shared/data/cifar10

Every network is trained by recipes/cifar10_resnet20_short.yaml, at size 1 or with objects of half to twice their size,
and tested at 0.35 to 2.8 times the size. Finished runs are not repeated, and interrupted ones go on. The report
compares each form with the plain backbone of the same seed, image by image. On a GPU: `--jobs 16 --eager`, and NVIDIA's
MPS (`nvidia-cuda-mps-control -d`), without which the processes take turns.
"""

from benchmarks.common.size_sweep import collect, parser, train_all
from benchmarks.common.sweep import PLAIN, Form, choose

RECIPE = "recipes/cifar10_resnet20_short.yaml"
SIZES = [2 ** (step / 2) for step in range(-3, 4)]  # 0.35 to 2.8
MEAN = ("--model_kwargs.fusion", "mean")
TWO = (*MEAN, "--model_kwargs.pyramid", "[1, 0.5]")
EACH = ("--stage_loss", "1")
NORMS = ("--model_kwargs.unshared_norms",)
FORMS = [
    Form(PLAIN, "resnet20_cifar"),
    Form("mean 1 .5", "wsms_resnet20_cifar", TWO),
    Form("mean 1 .5 each", "wsms_resnet20_cifar", (*TWO, *EACH)),
    Form("mean 1 .5 each, shared norms", "wsms_resnet20_cifar", (*TWO, *EACH, *NORMS, "none")),
    Form("mean 1 .5 each, own statistics", "wsms_resnet20_cifar", (*TWO, *EACH, *NORMS, "statistics")),
    Form("concat", "wsms_resnet20_cifar", ("--model_kwargs.residual", "false")),  # the paper's
    Form("mean", "wsms_resnet20_cifar", MEAN),
    Form("deeper", "resnet26_cifar"),  # of the mean form's arithmetic
    Form("ms", "ms_resnet20_cifar", ("--model_kwargs.residual", "false")),
]
# For a CPU without bf16 instructions for matrices: mixed precision is slower there, compiled is faster. Only the final
# accuracy counts.
HERE = ("--precision", "no", "--compile", "true", "--eval_every", "8")
GROUPS = {"size 1": HERE, "jitter": (*HERE, "--data.scale_jitter", "[0.5, 2]")}


def main() -> None:
    options = parser(__doc__, "unseen_sizes", seeds=(0, 1)).parse_args()
    train_all(choose(FORMS, GROUPS, options), SIZES, RECIPE, options)
    collect(FORMS, GROUPS, "CIFAR-10, top-1 in % against the size of objects; the area is over log size", options)


if __name__ == "__main__":
    main()
