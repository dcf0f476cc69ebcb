#!/usr/bin/env python3
"""Mutation testing, with mutmut, of what safety hangs on: the decision gate and the validation of images. Works in build/mutation.

    make mutation

Prints the mutants that no test noticed, and ends with exit code 1 when there are any (one that was not checked counts; one that
made the tests run out of time was noticed).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {  # module -> (its tests, the functions whose mutants count)
    'edge_resnet/pipeline/decision.py': (('test/unit/test_decision.py',), ''),
    'edge_resnet/conversions.py': (('test/unit/test_conversions.py',), r'check_image|read_image|_rows|_read_text|_read_header|read_results'),
}


def run(module: str, tests: tuple[str, ...], functions: str) -> list[str]:
    """The surviving mutants of ``module`` in ``functions``, as mutmut names them, with their differences."""
    folder = ROOT / 'build' / 'mutation' / Path(module).stem
    shutil.rmtree(folder, ignore_errors=True)
    for name in ('edge_resnet', 'pyproject.toml', 'package.xml', 'test/conftest.py', 'test/clock.py', *tests):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / name, folder / name) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, folder / name)
    (folder / 'setup.cfg').write_text(f'[mutmut]\npaths_to_mutate={module}\nalso_copy=\n    test\n    package.xml\n')
    shutil.copytree(folder / 'edge_resnet', folder / 'mutants' / 'edge_resnet')  # what it imports
    (folder / 'mutants' / module).unlink()
    mutmut = [sys.executable, '-P', '-m', 'mutmut']  # -P: not the package in this folder but the mutated one
    environment = {**os.environ, 'PYTHONPATH': str(folder / 'mutants')}
    with (folder / 'mutmut.log').open('w') as log:
        subprocess.run([*mutmut, 'run', '--max-children', '2'], cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    results = subprocess.run([*mutmut, 'results', '--all', 'true'], cwd=folder, capture_output=True, text=True, check=True).stdout
    states = [(name, state) for name, state in re.findall(r'^\s+(\S+): (.+)$', results, re.M) if re.search(functions, name)]
    if all(state == 'not checked' for _, state in states):
        raise SystemExit(f'{module}: no mutants were tried, see {folder}/mutmut.log')
    survivors = [name for name, state in states if state not in ('killed', 'timeout')]
    print(f'{module}: {len(states)} mutants, {len(states) - len(survivors)} noticed, {len(survivors)} survived', flush=True)
    for name in survivors:
        shown = subprocess.run([*mutmut, 'show', name], cwd=folder, capture_output=True, text=True, check=False).stdout
        print(name, *[line for line in shown.splitlines() if re.match(r'[+-](?![+-])', line)], sep='\n  ', flush=True)
    return survivors


if __name__ == '__main__':
    found = [name for module, (tests, functions) in TARGETS.items() for name in run(module, tests, functions)]
    print(f'{len(found)} survived')
    raise SystemExit(1 if found else 0)
