#!/usr/bin/env bash
# Train on a Slurm cluster. Environment: GPUS (in all, default 8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
(($# >= 3)) || usage "bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]"
by_slurm train.py "$@"
