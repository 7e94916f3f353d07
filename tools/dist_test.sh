#!/usr/bin/env bash
# Test with GPUS processes on each of NNODES machines; without GPUs, with so many processes on the CPU.
# Environment: NNODES, NODE_RANK, MASTER_ADDR and PORT, as torchrun takes them; PYTHON.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
(($# >= 3)) || usage "bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]"
by_torchrun test.py "$3" "$1" "$2" "${@:4}"
