#!/usr/bin/env bash
# Measures everything that docs/benchmarks/gpu.md lists. Usage: gpu.sh [folder for the results]
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:${PYTHONPATH:-}"
out=${1:-docs/benchmarks/gpu}
available=$(python -c 'import torch; print(torch.cuda.is_available())')
if [ "$available" != True ]; then
    echo 'not measured: no CUDA device'
    exit
fi
for dtype in float32 bfloat16; do
    for direction in forward backward; do
        flag=$([ "$direction" = backward ] && echo --backward || true)
        python tools/benchmarks/peripheral_conv2d.py --device cuda --dtype "$dtype" --batches 1 8 128 $flag \
            --json "$out/operator-$dtype-$direction.json" --plot "$out/operator-$dtype-$direction.png"
    done
    for batch in 1 128; do
        python tools/benchmarks/backbone.py --device cuda --dtype "$dtype" --batch "$batch" \
            --json "$out/backbone-$dtype-batch$batch.json"
    done
done
python tools/benchmarks/throughput.py --device cuda --tf32 --json "$out/throughput.json" --plot "$out/throughput.png"
