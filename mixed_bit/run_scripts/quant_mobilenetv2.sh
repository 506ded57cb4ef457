#!/usr/bin/env bash
# Bit configuration of mobilenetv2 at 1.5 MB for PTQ.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

search --model mobilenetv2 --dataset imagenet --quant_type PTQ --model_size 1.5 --beta 10.0 -- "$@"
