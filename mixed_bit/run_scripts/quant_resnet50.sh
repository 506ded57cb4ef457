#!/usr/bin/env bash
# Bit configuration of resnet50 at 16.0 MB for QAT.
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

start "$here/../feature_extract.py" --model resnet50 --dataset imagenet --quant_type QAT --model_size 16.0 --beta 10.0 -- "$@"
