#!/usr/bin/env bash
# Bit configuration of resnet18 at 6.7 MB for QAT.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

search --model resnet18 --dataset imagenet --quant_type QAT --model_size 6.7 --beta 10.0 -- "$@"
