#!/usr/bin/env bash
# Runs the tests under coverage, their subprocesses too, and holds pipeline/, hardware/ and conversions.py to 95 %, nodes/ to 85 % of lines and branches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rm -rf build/coverage
mkdir -p build/coverage
python -m coverage run -m pytest "$@" || { echo 'coverage: tests failed' >&2; failed=1; }
python -m coverage combine -q
python -m coverage report --skip-covered --show-missing
check() {  # name, files, least per cent
  python -m coverage report --include="$2" --fail-under="$3" >build/coverage/part || failed=1
  echo "$1: $(grep TOTAL build/coverage/part), at least $3 %"
}
check 'pipeline, hardware, conversions' 'edge_resnet/pipeline/*,edge_resnet/hardware/*,edge_resnet/conversions.py' 95
check nodes 'edge_resnet/nodes/*' 85
exit "${failed:-0}"
