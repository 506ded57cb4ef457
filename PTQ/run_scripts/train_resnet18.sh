#!/usr/bin/env bash
# Post-training quantization of resnet18 with a published bit list; SIZE in MB chooses it:
#   SIZE=4.5 bash PTQ/run_scripts/train_resnet18.sh --path CHECKPOINT --data_path FOLDER   (3.0 3.5 4.0 4.5 5.0 5.5)
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

start "$here/../main_imagenet.py" --arch resnet18 --quant_scheme "resnet18_${SIZE:-4.5}" \
    --channel_wise --act_quant --weight 0.01 --test_before_calibration -- "$@"
