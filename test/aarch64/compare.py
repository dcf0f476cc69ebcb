"""Calibrate and classify with this machine's Python and with an emulated Raspberry Pi's, and compare: see scripts/test-aarch64.sh.

What must hold for every bundle, image and runtime: the same label, and a score within two quantisation steps of the output. Only where
an image shows none of the bundle's classes, so that no label is right, two that such steps can exchange may change places.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'test'))

from tiny_model import FLAGS, LABELS, patch, tiny_float_model  # noqa: E402

from edge_resnet.pipeline.bundle import Bundle, load_bundle  # noqa: E402

STEPS = 2
LARGE_BYTES = 10_000_000  # a model of this size takes seconds an inference in the emulator
TIMEOUT_S = 7200
HEADER = ('model', 'runtime', 'images', 'same label', 'input off by', 'output off by', 'in', 'score off by')

Record = dict[str, Any]
Job = tuple[Path, dict[Path, str]]  # a bundle's folder; its images with their true labels


@dataclass(frozen=True)
class Machine:
    """A Python to run the project's code with."""

    name: str
    python: str
    environment: dict[str, str]

    def run(self, *arguments: object) -> None:
        """SystemExit names what failed, after what it said itself on stderr."""
        command = [self.python, *map(str, arguments)]
        done = subprocess.run(command, env={**self.environment, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S)
        if done.returncode:
            raise SystemExit(f'test-aarch64: FAILED: on {self.name}, exit code {done.returncode}: {" ".join(command)}')

    def calibrate(self, work: Path) -> Path:
        """The tiny model in ``work``, calibrated with the project's tool; the new bundle."""
        out = work / f'calibrated_on_{self.name}'
        self.run('-m', 'edge_resnet.tools.calibrate', '--model', work / 'float.tflite', '--labels', work / 'labels.txt', *FLAGS,
                 '--output-kind', 'softmax', '--frames', work / 'frames', '--out', out)
        return out

    def classify(self, jobs: list[Job], work: Path) -> dict[tuple[Path, str], list[Record]]:
        """What classify.py found, by bundle and runtime."""
        request, answer = work / 'jobs.json', work / self.name
        request.write_text(json.dumps([(str(model), [str(image) for image in images]) for model, images in jobs]))
        self.run(Path(__file__).with_name('classify.py'), request, answer)
        found: dict[tuple[Path, str], list[Record]] = {}
        for record in json.loads((answer / 'results.json').read_text()):
            found.setdefault((Path(record['model']), record['runtime']), []).append(record)
        return found


def write_patches(folder: Path, count: int, seed: int) -> dict[Path, str]:
    """``count`` images for the tiny model, with their labels."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    written = {folder / f'{number:02}.png': label for number, label in zip(range(count), itertools.cycle(LABELS))}
    for path, label in written.items():
        cv2.imwrite(str(path), cv2.cvtColor(patch(label, rng), cv2.COLOR_RGB2BGR))
    return written


def shipped(short: bool, full: bool) -> Iterator[Job]:
    """The bundles of models/, the smallest first, each with the samples to try it on."""
    with (ROOT / 'samples' / 'labels.csv').open(newline='') as file:
        samples = {ROOT / 'samples' / row['file']: row['label'] for row in csv.DictReader(file)}
    few = {path: label for label, path in {label: path for path, label in reversed(samples.items())}.items()}  # the first of each label
    models = sorted(ROOT.glob('models/*/model.tflite'), key=lambda path: path.stat().st_size)
    for path in models[:1] if short else models:
        yield path.parent, few if short or (path.stat().st_size > LARGE_BYTES and not full) else samples


def log_odds(score: float) -> float:
    inside = min(max(score, 1e-5), 1 - 1e-5)
    return math.log(inside / (1 - inside))


def fault(bundle: Bundle, truth: str, one: Record, other: Record) -> str:
    """What is wrong between two machines' records of one image, empty when nothing is."""
    if one['label'] != other['label']:
        first, second = (one['output'][bundle.labels.index(record['label']) + bundle.label_offset] for record in (one, other))
        if truth in bundle.labels or first - second > 2 * STEPS:  # two steps down for the first and two up for the second
            return f'labels differ, {first - second:g} steps apart'
    if bundle.output == 'softmax':
        alike = abs(one['score'] - other['score']) <= STEPS * one['step'] + 1e-6
    else:  # what two steps do to a score that comes of softmax: its own logit goes up and all the others down
        alike = abs(log_odds(one['score']) - log_odds(other['score'])) <= 2 * STEPS * one['step'] + 1e-2
    return '' if alike else f'scores are further apart than {STEPS} steps of {one["step"]:.4g} explain'


def compare(truths: list[str], ours: list[Record], theirs: list[Record], name: str = '') -> tuple[list[str], list[str]]:
    """(a row of the table, a line for each fault) of one bundle and runtime."""
    bundle, runtime = load_bundle(ours[0]['model']), ours[0]['runtime']
    name = name or bundle.name
    pairs = list(zip(ours, theirs, strict=True))
    inputs = [np.abs(np.subtract(*(np.load(record['input']).astype(float) for record in pair))).max() for pair in pairs]
    outputs = [np.abs(np.subtract(one['output'], other['output'])).max() for one, other in pairs]
    scores = [abs(one['score'] - other['score']) for one, other in pairs]
    same = sum(one['label'] == other['label'] for one, other in pairs)
    worst = int(np.argmax(outputs))
    row = [name, runtime, str(len(pairs)), str(same),
           f'{max(inputs):.3g}', f'{outputs[worst]:.3g} steps', Path(ours[worst]['image']).name, f'{max(scores):.4f}']
    lines = []
    for truth, (one, other) in zip(truths, pairs, strict=True):
        if found := fault(bundle, truth, one, other):
            lines.append(f'{Path(one["image"]).name}, {name}, {runtime}: {platform.machine()} says {one["label"]} {one["score"]:.4f}, '
                         f'aarch64 {other["label"]} {other["score"]:.4f}: {found}')
    return row, lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser('test-aarch64', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('python', help='of the emulated machine')
    parser.add_argument('--short', action='store_true', help='only the smallest bundle, and one sample of each label')
    parser.add_argument('--full', action='store_true', help='every sample for large models too')
    args = parser.parse_args(argv)
    paths = {name: os.environ[name] for name in ('PATH', 'HOME') if name in os.environ}  # not this machine's libraries
    here = Machine(platform.machine(), sys.executable, dict(os.environ))
    there = Machine('aarch64', args.python, {**paths, 'PYTHONPYCACHEPREFIX': str(Path(args.python).parents[3] / 'bytecode')})

    with tempfile.TemporaryDirectory(prefix='aarch64.') as folder:
        work = Path(folder)
        tiny_float_model(work / 'float.tflite')
        (work / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
        write_patches(work / 'frames', 60, seed=1)
        patches = write_patches(work / 'patches', 12, seed=2)
        made = [machine.calibrate(work) for machine in (here, there)]
        jobs = [*((bundle, patches) for bundle in made), *shipped(args.short, args.full)]
        ours, theirs = (machine.classify(jobs, work) for machine in (here, there))
        results = [compare(list(images.values()), ours[model, runtime], theirs[model, runtime])
                   for model, images in jobs for which, runtime in theirs if which == model and (model, runtime) in ours]
        # What a Pi calibrates against what this machine calibrates, both run here.
        results.append(compare(list(patches.values()), ours[made[0], 'litert'], ours[made[1], 'litert'], 'calibrated there for here'))
        identical = made[0].joinpath('model.tflite').read_bytes() == made[1].joinpath('model.tflite').read_bytes()
    rows, faults = [HEADER, *(row for row, _ in results)], [line for _, lines in results for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f'the model calibrated on aarch64 is {"the same, byte for byte" if identical else "not the same bytes"} as on {here.name}')
    missing = {runtime for _, runtime in theirs} - {runtime for _, runtime in ours}
    if missing:
        print(f'not compared, since {here.name} has no {", ".join(missing)} here: its results on aarch64')
    for line in faults:
        print(f'test-aarch64: FAILED: {line}', file=sys.stderr)
    return 1 if faults else 0


if __name__ == '__main__':
    raise SystemExit(main())
