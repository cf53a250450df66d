"""The paper's Table 2 on CIFAR-10: ResNet-110 in its plain, WSMS and MS forms, 164 epochs each. It wants a GPU.

    python -m benchmarks.cifar10.paper_table2 --source ../shared/data/cifar10
    timeout 540 python -m benchmarks.cifar10.paper_table2 --source ../shared/data/cifar10   # the next call goes on

Every run is recipes/cifar10_resnet110.yaml, compiled and in bf16. Interrupted runs have saved where they are and go on
exactly there; finished ones are not repeated. Forms that are not finished are reported as not run.
"""

from benchmarks.common.size_sweep import collect, parser, train_all
from benchmarks.common.sweep import PLAIN, Form, choose

RECIPE = "recipes/cifar10_resnet110.yaml"
GROUPS = {"164 epochs": ("--precision", "bf16", "--compile", "true", "--channels_last", "true", "--eval_every", "164")}
WSMS, INTEGRATION = "wsms_resnet110_cifar", "--model_kwargs.integration"
PAPER = {PLAIN: 6.61, "WSMS 1x1": 6.36, "WSMS none": 7.23, "WSMS 3x3": 6.41, "MS 1x1": 6.41}  # error in %, five runs
FORMS = [
    Form(PLAIN, "resnet110_cifar"),
    Form("WSMS 1x1", WSMS, (INTEGRATION, "conv1x1")),
    Form("WSMS none", WSMS, (INTEGRATION, "none")),
    Form("WSMS 3x3", WSMS, (INTEGRATION, "conv3x3")),
    Form("MS 1x1", "ms_resnet110_cifar", (INTEGRATION, "conv1x1")),
]


def main() -> None:
    options = parser(__doc__, "table2", seeds=range(5)).parse_args()
    train_all(choose(FORMS, GROUPS, options), [1.0], RECIPE, options)
    report = collect(FORMS, GROUPS, "CIFAR-10, top-1 in % (the paper's table has errors, 100 less that)", options)
    for row in report["forms"]:
        error = "not run" if not row["n"] else f"{100 - row['at_one']['mean']:.2f} % error (n = {row['n']})"
        print(f"{row['form']:10} {error}; the paper: {PAPER[row['form']]:.2f} %")


if __name__ == "__main__":
    main()
