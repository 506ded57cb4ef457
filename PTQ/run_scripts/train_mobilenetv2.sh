#!/usr/bin/env bash
# Post-training quantization of mobilenetv2 with a published bit list; SIZE in MB chooses it:
#   SIZE=1.3 bash PTQ/run_scripts/train_mobilenetv2.sh --path CHECKPOINT --data_path FOLDER   (0.9 1.1 1.3 1.5)
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

start "$here/../main_imagenet.py" --arch mobilenetv2 --quant_scheme "mobilenetv2_${SIZE:-1.3}" \
    --channel_wise --act_quant --weight 0.1 --test_before_calibration -- "$@"
