#!/usr/bin/env bash
# Measures all of docs/benchmarks/gpu.md. Usage: gpu.sh [folder for the results [steps]]
# Steps: correctness operator networks profile. Each ends within 8 minutes, keeps every result at once, and goes on
# where it stopped when it is called again. Needs torch, and timm for the peers.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}"
out=${1:-docs/benchmarks/gpu}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- correctness operator networks profile
mkdir -p "$out"
status=0
for step; do
    echo "== $step"
    # Networks are also measured on CPUs.
    script=tools/benchmarks/gpu_$step.py
    [ "$step" = networks ] && script=tools/benchmarks/networks.py
    timeout --kill-after=10 470 "${PYTHON:-python}" "$script" --device cuda --json "$out/$step.json" || {
        echo "$step ended with status $?; the same command goes on with the rest" >&2
        status=1
    }
done
exit $status
