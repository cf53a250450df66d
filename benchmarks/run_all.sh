#!/usr/bin/env bash
# Every measurement behind a figure in the README and docs/, most of them hours long: run the lines you want.
#
#   CIFAR10=../shared/data/cifar10 MNIST=../shared/data/mnist benchmarks/run_all.sh
#
# Each writes a file to benchmarks/results/. An interrupted one continues where it stopped, except where a script says
# otherwise. Needs `make install`; PYTHON chooses another interpreter.
#
# Older results files name their scripts by earlier paths:
#   cifar10_resnet20.py → cifar10/resnet20.py        cifar10_stages.py → cifar10/stage_ablation.py
#   cifar10_why.py → cifar10/variants.py             recalibrate.py → cifar10/recalibrate.py
#   scale_resnet20.py → object_size/kept_models.py   hub_models.py → cifar10/kept_accuracy.py
#   unseen_sizes.py → object_size/from_scratch.py    mean_stages.py → object_size/per_stage.py
#   finetune_sizes.py → object_size/finetune.py      mean_without_training.py → object_size/untrained_average.py
#   mnist_scale.py → mnist_scale/train.py            mnist_search.py → mnist_scale/variants.py
#   mnist_sizes.py → mnist_scale/by_digit_size.py    timm_suite.py → backbones/timm_tests.py
#   forward_cost.py → speed/forward.py               forward_stages.py → speed/forward_by_stage.py
#   forward_batch1.py → speed/forward_batch1.py      fourier_cost.py → speed/fourier_cost.py
#   scaling.py → speed/data_parallel.py              train_overhead.py → speed/training_loop.py
#   stream.py → reliability/stream.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CIFAR10=${CIFAR10:-uoft-cs/cifar10}
MNIST=${MNIST:-ylecun/mnist}
PYTHON=${PYTHON:-.venv/bin/python}
FLOWERS=${FLOWERS:-../shared/data/flowers}
IMAGENETTE=${IMAGENETTE:-../shared/data/imagenette160}
TIMM=${TIMM:-outputs/timm-1.0.31} # timm's source, for its tests

# Objects of every size (docs/results.md)
"$PYTHON" -m benchmarks.object_size.kept_models --source "$CIFAR10"
"$PYTHON" -m benchmarks.object_size.untrained_average --source "$CIFAR10"
"$PYTHON" -m benchmarks.object_size.from_scratch --source "$CIFAR10"
"$PYTHON" -m benchmarks.object_size.plot
"$PYTHON" -m benchmarks.object_size.plot_sizes
"$PYTHON" -m benchmarks.object_size.per_stage --source "$CIFAR10" # of the networks of from_scratch.py
"$PYTHON" -m benchmarks.object_size.stage_one --source "$CIFAR10" # trains what the repository does not have
"$PYTHON" -m benchmarks.object_size.stage_one --source "$CIFAR10" --jitter
"$PYTHON" -m benchmarks.object_size.finetune --source "$CIFAR10"
# On a CPU with --fourier, for kernels of 7×7, and with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000
# GLIBC_TUNABLES=glibc.malloc.hugetlb=1, so that a step's memory stays with the process, in large pages.
"$PYTHON" -m benchmarks.mnist_scale.train --source "$MNIST"
"$PYTHON" -m benchmarks.mnist_scale.by_digit_size --source "$MNIST" # of its records and networks
"$PYTHON" -m benchmarks.speed.fourier_cost
"$PYTHON" -m benchmarks.mnist_scale.variants --source "$MNIST"
"$PYTHON" -m benchmarks.cifar10.gpu_data --source "$CIFAR10"         # a folder of parquet files
"$PYTHON" -m benchmarks.cifar10.paper_table2                          # wants a GPU (docs/gpu.md)
"$PYTHON" -m benchmarks.cifar10.paper_table2 --report outputs/gpu/state/table2.json
"$PYTHON" -m benchmarks.object_size.report_tables # prints the tables of docs/results.md and the README

# Accuracy
"$PYTHON" -m benchmarks.cifar10.resnet20 --source "$CIFAR10"
"$PYTHON" -m benchmarks.cifar10.stage_ablation --source "$CIFAR10"
"$PYTHON" -m benchmarks.cifar10.variants --source "$CIFAR10" --train_limit 8000
"$PYTHON" -m benchmarks.cifar10.recalibrate --source "$CIFAR10"
"$PYTHON" -m benchmarks.cifar10.kept_accuracy --source "$CIFAR10"

# Photographs: the runs take some 15 minutes each on one core; each command does what no record is there for
"$PYTHON" -m benchmarks.photographs_data --flowers "$FLOWERS" --imagenette "$IMAGENETTE"
"$PYTHON" -m benchmarks.demo_photographs --flowers "$FLOWERS" # are they in the data?
# A form, how it is trained, and its folds: those of validation images, and those of test images.
while IFS='|' read -r data form regime lr validated tested; do
  for fold in $validated; do
    "$PYTHON" -m benchmarks.photographs --data "$data" --form "$form" --regime "$regime" --lr "$lr" --fold "$fold" </dev/null
  done
  for fold in $tested; do
    "$PYTHON" -m benchmarks.photographs --data "$data" --form "$form" --regime "$regime" --lr "$lr" --fold "$fold" --tested </dev/null
  done
done <<'RUNS'
flowers|plain|narrow|2e-3|0|
flowers|mean|narrow|1e-3|0|
flowers|mean at 128|narrow|1e-3|0|
flowers|plain|default|5e-4|0|
flowers|plain|default|1e-3|0|
flowers|plain|default|2e-3|0 1 2 3 4|0 1 2 3 4
flowers|plain|default|4e-3|0|
flowers|plain, trained again|default|2e-3|0 2 3 4|0 2 3 4
flowers|plain, larger image|default|2e-3|0|0
flowers|plain at 112|default|2e-3|0 1 2 3 4|0 1 2 3 4
flowers|plain at 112, trained again|default|2e-3|0 2 3 4|0 2 3 4
flowers|plain at 96|default|2e-3|0 2 3 4|0 2 3 4
flowers|plain at 80|default|2e-3|0 2 3 4|0 2 3 4
flowers|plain at 64|default|2e-3|0 2 3 4|0 2 3 4
flowers|plain longer|default|2e-3|0 1 2 3 4|0 1 2 3 4
flowers|lite1|default|2e-3|0|0
flowers|one size per batch|default|5e-4|0|
flowers|one size per batch|default|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|one size per batch|default|2e-3|0|
flowers|concat|default|1e-3|0|
flowers|mean|default|5e-4|0|
flowers|mean|default|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean|default|2e-3|0|
flowers|mean at 128|default|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean, lite1|default|1e-3|0|0
flowers|mean, one size per batch|default|1e-3|0|
flowers|mean, distilled|default|1e-3|0|0
flowers|mean at 128, distilled|default|1e-3|0|0
flowers|mean, consistent|default|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean of three|default|1e-3|0|
flowers|mean of larger|default|1e-3|0|
flowers|plain|jitter|5e-4|0|
flowers|plain|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|plain|jitter|2e-3|0|
flowers|plain, trained again|jitter|1e-3|0 2 3 4|0 2 3 4
flowers|plain at 112|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|plain at 96|jitter|1e-3|0 2 3 4|0 2 3 4
flowers|plain at 80|jitter|1e-3|0 2 3 4|0 2 3 4
flowers|plain at 64|jitter|1e-3|0 2 3 4|0 2 3 4
flowers|plain longer|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|one size per batch|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean, consistent|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean at 128|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean, distilled|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
flowers|mean at 128, distilled|jitter|1e-3|0 1 2 3 4|0 1 2 3 4
imagenette|plain|default|2e-3|0|0
imagenette|plain|default|4e-3|0 1 2|0 1 2
imagenette|plain|default|8e-3|0|0
imagenette|plain, larger image|default|4e-3|0|0
imagenette|plain at 112|default|4e-3|0|0
imagenette|plain at 96|default|4e-3|0 1 2|0 1 2
imagenette|plain at 80|default|4e-3|0|0
imagenette|plain at 64|default|4e-3|0 1 2|0 1 2
imagenette|plain longer|default|4e-3|0|0
imagenette|next larger backbone|default|4e-3|0|0
imagenette|one size per batch|default|4e-3|0 1 2|0 1 2
imagenette|mean|default|2e-3|0|0
imagenette|mean|default|4e-3|0 1 2|0 1 2
imagenette|mean at 128|default|4e-3|0 1 2|0 1 2
imagenette|mean at 128|default|8e-3|0|0
imagenette|mean at 128, distilled|default|4e-3|0|0
imagenette|mean, resnet14t|default|4e-3|0|0
imagenette|plain|jitter|4e-3|0 1 2|0 1 2
imagenette|plain at 112|jitter|4e-3|0|0
imagenette|plain at 96|jitter|4e-3|0|0
imagenette|plain at 80|jitter|4e-3|0|0
imagenette|plain at 64|jitter|4e-3|0|0
imagenette|plain longer|jitter|4e-3|0|0
imagenette|one size per batch|jitter|4e-3|0 1 2|0 1 2
imagenette|mean at 128|jitter|4e-3|0 1 2|0 1 2
imagenette|mean at 128, distilled|jitter|4e-3|0 1|0 1
imagenette|plain|20 epochs|4e-3|0|0
imagenette|plain at 96|20 epochs|4e-3|0|0
imagenette|plain at 64|20 epochs|4e-3|0|0
imagenette|plain longer|20 epochs|4e-3|0|0
imagenette|one size per batch|20 epochs|4e-3|0|0
imagenette|mean|20 epochs|4e-3|0|0
imagenette|mean at 128|20 epochs|4e-3|0|0
RUNS
"$PYTHON" -m benchmarks.photographs_report
"$PYTHON" -m benchmarks.photographs_cascade
"$PYTHON" -m benchmarks.photographs_plot # pictures of the README and docs/cascade.md
"$PYTHON" -m benchmarks.photographs_borders --folds 2 3 4
"$PYTHON" -m benchmarks.photographs_borders --folds 2 3 4 --networks jitter
"$PYTHON" -m benchmarks.photographs_borders --folds 0 1 2 --networks "imagenette jitter"
"$PYTHON" -m benchmarks.photographs_calibration
"$PYTHON" -m benchmarks.photographs_documents # the tables of the README and docs/

# Every backbone
"$PYTHON" -m benchmarks.backbones.all_backbones
"$PYTHON" -m tests.clients # docs/compatibility.md; needs the extra `clients`, as does the next
"$PYTHON" -m benchmarks.backbones.sharing_table # the table of docs/architecture.md; needs the extra `clients`
[ -d "$TIMM" ] || (mkdir -p outputs && cd outputs && pip download timm==1.0.31 --no-binary :all: --no-deps && tar xzf timm-1.0.31.tar.gz)
"$PYTHON" -m benchmarks.backbones.timm_tests --timm "$TIMM"
"$PYTHON" -m benchmarks.backbones.timm_tests --timm "$TIMM" --max_params 60e6 \
	--names "resne*" "efficientnet*" "convnext*" "swin*" "densenet*" "mobilenet*" "vit_*"

# Speed: on a quiet machine
"$PYTHON" -m benchmarks.speed.forward --compiled 0
"$PYTHON" -m benchmarks.speed.forward --compiled 1 --lines_only --out benchmarks/results/forward_cost_compiled.json
"$PYTHON" -m benchmarks.speed.forward --models swin_tiny_patch4_window7_224 vit_small_patch16_224 convnext_tiny --batch 16 \
	--modes training --compiled 1 --lines_only --seconds 60 --out benchmarks/results/forward_cost_per_stage.json
"$PYTHON" -m benchmarks.speed.forward --models --rounds 9 --out benchmarks/results/start_cost.json
"$PYTHON" -m benchmarks.speed.forward --device cuda --bf16 --batch 256 --compiled 0 --lines_only # wants a GPU
"$PYTHON" -m benchmarks.speed.forward_batch1_gpu # likewise
"$PYTHON" -m benchmarks.speed.forward_batch1
"$PYTHON" -m benchmarks.speed.forward_batch1 --seconds 6 --out benchmarks/results/forward_parallel_stages.json
"$PYTHON" -m benchmarks.speed.forward_by_stage --models resnet50 convnext_tiny densenet121 mobilenetv3_large_100 swin_tiny_patch4_window7_224
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 \
	"$PYTHON" -m benchmarks.speed.forward_by_stage --models swin_tiny_patch4_window7_224 --compiled 1
"$PYTHON" -m benchmarks.speed.training_loop --source "$CIFAR10"
"$PYTHON" -m benchmarks.speed.input_pipeline --source "$CIFAR10"
"$PYTHON" -m benchmarks.speed.cascade # wants the folds of benchmarks.photographs_data
"$PYTHON" -m benchmarks.speed.cascade --data imagenette # wants two of the networks of benchmarks.photographs
"$PYTHON" -m benchmarks.speed.data_parallel

# Nothing is lost
"$PYTHON" -m benchmarks.reliability.faults
"$PYTHON" -m benchmarks.reliability.stream
"$PYTHON" -m benchmarks.reliability.shared_memory # needs `unshare`
"$PYTHON" -m benchmarks.reliability.write_faults # needs `strace`
"$PYTHON" -m benchmarks.reliability.file_systems # needs root; FAT, quota and NFS: benchmarks/reliability/user_mode_linux.sh
"$PYTHON" -m benchmarks.reliability.machines # needs root and network namespaces
"$PYTHON" -m benchmarks.reliability.slurm # needs root, network namespaces, slurm-wlm and munge
"$PYTHON" -m benchmarks.reliability.machine_table # the table of docs/scaling.md
"$PYTHON" -m benchmarks.reliability.soak --hours 1 # needs strace and the right to mount
"$PYTHON" -m benchmarks.reliability.fuzz --minutes 10
