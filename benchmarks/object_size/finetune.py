"""From a plain checkpoint to a WSMS network: CIFAR-10, three epochs of fine-tuning with scale jitter, and none at all.

    python -m benchmarks.object_size.finetune --source ../shared/data/cifar10

Every network starts from hub/models/resnet20_cifar10, a plain ResNet-20 that was trained at one size; the plain form is
fine-tuned in the same way. Tested at 0.35 to 2.8 times the size. Finished runs are not repeated.
"""

import json

from benchmarks.common.size_sweep import collect, parser, train_all
from benchmarks.common.sweep import PLAIN, Form, choose
from benchmarks.object_size.from_scratch import MEAN, RECIPE, SIZES

START = "hub/models/resnet20_cifar10/model.safetensors"  # from the root, where the runs are started
OVERLAY = json.dumps({"file": START, "num_classes": 10})
WARM = ("--model_kwargs.pretrained", "true", "--model_kwargs.pretrained_cfg_overlay", OVERLAY)
WSMS = "wsms_resnet20_cifar"
FORMS = [
    Form(PLAIN, "resnet20_cifar", WARM),
    Form("concat, residual", WSMS, (*WARM, "--model_kwargs.residual", "true")),
    Form("mean", WSMS, (*WARM, *MEAN)),
    Form("mean 1 .5", WSMS, (*WARM, *MEAN, "--model_kwargs.pyramid", "[1, 0.5]")),
]
COMMON = ("--precision", "no", "--epochs", "3", "--eval_every", "3", "--lr", "0.02")
GROUPS = {"jitter": (*COMMON, "--data.scale_jitter", "[0.5, 2]")}


def main() -> None:
    options = parser(__doc__, "finetune_sizes", seeds=(0, 1)).parse_args()
    train_all(choose(FORMS, GROUPS, options), SIZES, RECIPE, options)
    collect(FORMS, GROUPS, "CIFAR-10, warm-started and fine-tuned; top-1 in % against the size of objects", options)


if __name__ == "__main__":
    main()
