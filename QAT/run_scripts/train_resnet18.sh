#!/usr/bin/env bash
# Quantization-aware fine-tuning of resnet18 with a published scheme, which SCHEME chooses:
#   SCHEME=modelsize_6.7_a6_75B bash QAT/run_scripts/train_resnet18.sh --path CHECKPOINT --data FOLDER
#   (modelsize_6.7_a6_75B modelsize_6.7_a8_97B)
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

data_options="--data --data_path"
start "$here/../quant_train.py" --arch resnet18 --quant_scheme "${SCHEME:-modelsize_6.7_a6_75B}" --epochs 90 \
    --lr 0.0001 --batch_size 128 --wd 1e-4 --act_range_momentum 0.99 --fix_BN -- "$@"
