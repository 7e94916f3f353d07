#!/usr/bin/env bash
# Test on a Slurm cluster. Environment: GPUS (in all, default 8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
(($# >= 4)) || usage "bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]"
by_slurm test.py "$@"
