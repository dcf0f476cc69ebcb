#!/usr/bin/env bash
# Writes requirements/*.lock from requirements/*.txt: every package that pip may install, by version and sha256, for Python 3.10 to 3.12.
# To be run after a change of requirements/*.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
UV=uv==0.13.9

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "$UV"
compile() { "$work/venv/bin/uv" pip compile -q --universal --python-version 3.10 --no-annotate --no-header --no-emit-index-url "$@"; }
compile requirements/*.txt -o "$work/all"  # together first, so that no two files want different versions
for file in requirements/*.txt; do
  { echo "# Made by scripts/lock.sh from $(basename "$file"): do not edit."
    compile "$file" -c "$work/all" --generate-hashes; } > "$work/lock"
  cp "$work/lock" "${file%.txt}.lock"
done
