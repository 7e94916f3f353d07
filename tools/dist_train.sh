#!/usr/bin/env bash
# Train with GPUS processes on each of NNODES machines; without GPUs, with so many processes on the CPU.
# Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT, as torchrun takes them; PYTHON.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
(($# >= 2)) || usage "bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]"
by_torchrun train.py "$2" "$1" "${@:3}"
