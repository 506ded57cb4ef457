#!/usr/bin/env bash
# Bit configuration of mobilenetv2 at 1.5 MB for PTQ.
set -euo pipefail
here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
source "$here/../../ompq/shell/start.sh"

start "$here/../feature_extract.py" --model mobilenetv2 --dataset imagenet --quant_type PTQ --model_size 1.5 --beta 10.0 -- "$@"
