"""Calibrate and classify with this machine's Python and with an emulated Raspberry Pi's, and compare: see scripts/test-aarch64.sh.

What must hold for every bundle, image and runtime: the same label; network-sized images of which no value differs by more than one
(OpenCV's averages of other than whole pixels are floats, summed in the order of each processor's vector unit); and when both are given the one
that the emulated machine made, scores within two quantisation steps of the output. What goes
beyond that is a fault, but for one thing that is only noted: tflite-runtime 2.14 runs INT8 with TFLite's own kernels, whose Arm variants
round halves in another direction, layer by layer. There up to five steps may be those of the logits, which softmax then amplifies; and where an
image shows none of the bundle's classes, so that no label is right, two labels that such steps exchange may change places. LiteRT, which
the project prefers, has no need of that.
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
from edge_resnet.pipeline.interpreter import RUNTIMES  # noqa: E402

STEPS, LEVELS = 2, 1  # of the output, and of the network-sized image
ROUNDED_STEPS = 5  # of the logits, by tflite-runtime's layer by layer: 5 were the most in the samples, of MobileNetV3 small minimalistic
LARGE_BYTES = 10_000_000  # a model of this size takes seconds an inference in the emulator
TIMEOUT_S = 7200
HEADER = ('model', 'runtime', 'images', 'same label', 'image off by', 'score off by', 'on the same image', 'worst in')

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
        request, answer = work / 'jobs.json', Path(tempfile.mkdtemp(prefix=f'{self.name}.', dir=work)) / 'answer'
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


def judge(bundle: Bundle, truth: str, one: Record, other: Record) -> tuple[str, bool]:
    """(what goes beyond the two steps between two machines' records of one image or nothing, whether it is only to be noted)."""
    rounding = one['runtime'] == 'tflite_runtime'
    if one['label'] != other['label']:
        first, second = (one['output'][bundle.labels.index(record['label']) + bundle.label_offset] for record in (one, other))
        # Two steps down for the first and two up for the second exchange them.
        return f'labels differ, {first - second:g} steps apart', rounding and truth not in bundle.labels and first - second <= 2 * STEPS
    # Steps of each logit do most to a score when its own goes up and all the others go down.
    of_each_logit = (abs(log_odds(one['score']) - log_odds(other['score'])) - 1e-2) / 2
    if bundle.output == 'logits':
        return '' if of_each_logit <= STEPS * one['logit_step'] else f'scores differ by more than {STEPS} steps of the logits explain', False
    steps = abs(one['score'] - other['score']) / one['step']
    return '' if steps <= STEPS + 1e-3 else f'scores differ by {steps:.0f} steps', rounding and of_each_logit <= ROUNDED_STEPS * one['logit_step']


def compare(truths: list[str], ours: list[Record], theirs: list[Record], same: list[Record],
            name: str = '') -> tuple[list[str], list[str], list[str]]:
    """(a row of the table, a line for each fault, a line for each note) of one bundle and runtime. ``same``: ours, of their fitted images."""
    bundle, runtime = load_bundle(ours[0]['model']), ours[0]['runtime']
    name = name or bundle.name
    levels, outputs, faults, notes = [], [], [], []
    for truth, one, other, given in zip(truths, ours, theirs, same, strict=True):
        levels.append(np.abs(np.subtract(*(cv2.imread(record['fitted']).astype(int) for record in (one, other)))).max())
        outputs.append(np.abs(np.subtract(given['output'], other['output'])).max())
        found, excused = judge(bundle, truth, given, other)
        if not found and one['label'] != other['label']:
            found, excused = judge(bundle, truth, one, other)
        if levels[-1] > LEVELS:
            found, excused = f'network-sized images differ by {levels[-1]}', False
        if found:
            line = (f'{Path(one["image"]).name}, {name}, {runtime}: {platform.machine()} says {one["label"]} {one["score"]:.4f}, '
                    f'from the same image {given["score"]:.4f}, aarch64 {other["label"]} {other["score"]:.4f}: {found}')
            (notes if excused else faults).append(line)
    scores = [abs(one['score'] - other['score']) for one, other in zip(ours, theirs, strict=True)]
    alike = sum(one['label'] == other['label'] for one, other in zip(ours, theirs, strict=True))
    worst = int(np.argmax(outputs))
    row = [name, runtime, len(ours), alike, max(levels), f'{max(scores):.4f}', f'{outputs[worst]:.3g} steps', Path(ours[worst]['image']).name]
    return [str(cell) for cell in row], faults, notes


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
        fitted = {model: {Path(record['fitted']): '' for record in records} for (model, _), records in theirs.items()}
        same = here.classify(list(fitted.items()), work)
        results = [compare(list(images.values()), ours[model, runtime], theirs[model, runtime], same[model, runtime])
                   for model, images in jobs for runtime in RUNTIMES if (model, runtime) in ours and (model, runtime) in theirs]
        # What a Pi calibrates against what this machine calibrates, both run here.
        one, other = (ours[model, 'litert'] for model in made)
        results.append(compare(list(patches.values()), one, other, one, 'calibrated there for here'))
        identical = made[0].joinpath('model.tflite').read_bytes() == made[1].joinpath('model.tflite').read_bytes()
    rows, faults, notes = [HEADER, *(row for row, _, _ in results)], *([line for result in results for line in result[which]] for which in (1, 2))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f'the model calibrated on aarch64 has {"the same" if identical else "other"} bytes as on {here.name}')
    for runtime in RUNTIMES:
        if runtime not in {name for _, name in theirs}:
            faults.append(f'{runtime} does not run on aarch64')
        elif runtime not in {name for _, name in ours}:
            print(f'{runtime} is not installed on {here.name}: its results on aarch64 were compared with nothing')
    for line in notes:
        print(f'note, rounding of TFLite kernels: {line}')
    for line in faults:
        print(f'test-aarch64: FAILED: {line}', file=sys.stderr)
    return 1 if faults else 0


if __name__ == '__main__':
    raise SystemExit(main())
