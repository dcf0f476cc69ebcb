#!/usr/bin/env bash
# Runs the tests under coverage, their subprocesses too, and holds pipeline/, hardware/ and conversions.py to 95 %, nodes/ to 85 % of lines and branches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf build/coverage
mkdir -p build/coverage
python -m coverage run -m pytest "$@" || { echo 'coverage: tests failed' >&2; failed=1; }
python -m coverage combine -q
python -m coverage report --skip-covered --show-missing
check() { python -m coverage report --include="$1" --fail-under="$2" | tail -n 1; }
echo "pipeline, hardware, conversions: $(check 'edge_resnet/pipeline/*,edge_resnet/hardware/*,edge_resnet/conversions.py' 95)"
echo "nodes: $(check 'edge_resnet/nodes/*' 85)"
exit "${failed:-0}"
