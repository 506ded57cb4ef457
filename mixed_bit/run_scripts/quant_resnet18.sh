#!/usr/bin/env bash
# Bit configuration of resnet18 at 6.7 MB for QAT.
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

start "$here/../feature_extract.py" --model resnet18 --dataset imagenet --quant_type QAT --model_size 6.7 --beta 10.0 -- "$@"
