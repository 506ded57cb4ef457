#!/usr/bin/env bash
# Quantization-aware fine-tuning of resnet50 with a published scheme, which SCHEME chooses:
#   SCHEME=modelsize_16.0_a5_141BOP bash QAT/run_scripts/train_resnet50.sh --path CHECKPOINT --data FOLDER
#   (modelsize_16.0_a5_141BOP modelsize_18.7_a5_156BOP modelsize_21.2_a7_226BOP)
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

data_options="--data --data_path"
start "$here/../quant_train.py" --arch resnet50 --quant_scheme "${SCHEME:-modelsize_16.0_a5_141BOP}" --epochs 90 \
    --lr 0.0001 --batch_size 128 --wd 1e-4 --act_range_momentum 0.99 --fix_BN -- "$@"
