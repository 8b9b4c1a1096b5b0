#!/usr/bin/env bash
# Speed on one CUDA card, in at most eight minutes and without a network: results/bench/gpu.csv (docs/gpu.md).
# The project need not be installed; PYTHON chooses the interpreter. trl is used where it is there.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
for package in torch transformers accelerate pydantic; do
  "$python" -c "import sys, importlib.util as u; sys.exit(not u.find_spec('$package'))" ||
    { echo "gpu.sh: $python has no $package; pip install torch transformers accelerate pydantic" >&2; exit 1; }
done
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}" HF_HUB_OFFLINE=1 PYTHONPATH=.
exec timeout 480 "$python" benchmarks/gpu.py "$@"
