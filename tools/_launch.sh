# Shared by the shell scripts beside it: which Python runs, and how several processes are started.

set -euo pipefail
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$(dirname "$TOOLS")${PYTHONPATH:+:$PYTHONPATH}"

# An activated environment comes first, then the .venv that tools/setup_env.sh makes.
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python
    if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $TOOLS/../.venv/bin/python ]]; then
        PYTHON=$TOOLS/../.venv/bin/python
    fi
fi

usage() {
    echo "usage: $1" >&2
    exit 2
}

# by_torchrun SCRIPT GPUS ARGUMENTS...
by_torchrun() {
    if [[ $2 != 1 ]]; then
        # As torchrun sets it, with a warning.
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    fi
    exec "$PYTHON" "$TOOLS/_torchrun.py" \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$2" \
        "$TOOLS/$1" "${@:3}" --launcher pytorch
}

# by_slurm SCRIPT PARTITION JOB_NAME ARGUMENTS...
by_slurm() {
    local srun_args
    read -ra srun_args <<<"${SRUN_ARGS:-}"
    exec srun -p "$2" \
        --job-name="$3" \
        --gres="gpu:${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        "${srun_args[@]}" \
        "$PYTHON" -u "$TOOLS/$1" "${@:4}" --launcher slurm
}
