#!/usr/bin/env bash
# Every measurement behind a figure in the README, docs/ and REPORT.md, most of them hours long: run the lines you want.
#
#   CIFAR10=../shared/data/cifar10 MNIST=../shared/data/mnist benchmarks/run_all.sh
#
# Each writes benchmarks/results/<its name>.json (coverage: .csv). What was interrupted goes on where it stopped, except
# where a script says otherwise. Needs `make install`; PYTHON chooses another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CIFAR10=${CIFAR10:-uoft-cs/cifar10}
MNIST=${MNIST:-ylecun/mnist}
PYTHON=${PYTHON:-.venv/bin/python}
TIMM=${TIMM:-outputs/timm-1.0.31} # timm's source, for its tests

# Objects of every size (REPORT.md)
"$PYTHON" benchmarks/scale_resnet20.py --source "$CIFAR10"
"$PYTHON" benchmarks/mean_without_training.py --source "$CIFAR10"
"$PYTHON" benchmarks/unseen_sizes.py --source "$CIFAR10"
"$PYTHON" benchmarks/plot_unseen_sizes.py
"$PYTHON" benchmarks/mean_stages.py --source "$CIFAR10" # of the networks of unseen_sizes.py
"$PYTHON" benchmarks/finetune_sizes.py --source "$CIFAR10"
# On a CPU with --fourier, for kernels of 7×7, and with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000
# GLIBC_TUNABLES=glibc.malloc.hugetlb=1, so that a step's memory stays with the process, in large pages.
"$PYTHON" benchmarks/mnist_scale.py --source "$MNIST"
"$PYTHON" benchmarks/mnist_sizes.py --source "$MNIST" # of its records and networks
"$PYTHON" benchmarks/fourier_cost.py
"$PYTHON" benchmarks/mnist_search.py --source "$MNIST"
"$PYTHON" benchmarks/table2.py --source "$CIFAR10" # wants a GPU
"$PYTHON" benchmarks/report_tables.py # prints the tables of REPORT.md

# Accuracy
"$PYTHON" benchmarks/cifar10_resnet20.py --source "$CIFAR10"
"$PYTHON" benchmarks/cifar10_stages.py --source "$CIFAR10"
"$PYTHON" benchmarks/cifar10_why.py --source "$CIFAR10"
"$PYTHON" benchmarks/recalibrate.py --source "$CIFAR10"
"$PYTHON" benchmarks/hub_models.py --source "$CIFAR10"

# Every backbone
"$PYTHON" benchmarks/coverage.py
[ -d "$TIMM" ] || (mkdir -p outputs && cd outputs && pip download timm==1.0.31 --no-binary :all: --no-deps && tar xzf timm-1.0.31.tar.gz)
"$PYTHON" benchmarks/timm_suite.py --timm "$TIMM"
"$PYTHON" benchmarks/timm_suite.py --timm "$TIMM" --max_params 60e6 \
	--names "resne*" "efficientnet*" "convnext*" "swin*" "densenet*" "mobilenet*" "vit_*"

# Speed: on a quiet machine
"$PYTHON" benchmarks/forward_cost.py --compiled 0
"$PYTHON" benchmarks/forward_cost.py --compiled 1 --lines_only --out benchmarks/results/forward_cost_compiled.json
"$PYTHON" benchmarks/forward_cost.py --device cuda --bf16 --batch 256 --compiled 0 --lines_only # wants a GPU
"$PYTHON" benchmarks/forward_batch1.py
"$PYTHON" benchmarks/forward_stages.py --models resnet50 convnext_tiny densenet121 mobilenetv3_large_100 swin_tiny_patch4_window7_224
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 \
	"$PYTHON" benchmarks/forward_stages.py --models swin_tiny_patch4_window7_224 --compiled 1
"$PYTHON" benchmarks/train_overhead.py --source "$CIFAR10"
"$PYTHON" benchmarks/input_pipeline.py --source "$CIFAR10"
"$PYTHON" benchmarks/scaling.py

# Nothing is lost
"$PYTHON" benchmarks/faults.py
"$PYTHON" benchmarks/stream.py
