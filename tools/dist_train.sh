#!/usr/bin/env bash
# Train on several GPUs of one machine: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
set -euo pipefail
config=$1
gpus=$2
python -m torch.distributed.run --nproc_per_node="$gpus" --master_port="${PORT:-29500}" \
  "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
