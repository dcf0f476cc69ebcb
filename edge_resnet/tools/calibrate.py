"""Make an INT8 bundle of a float TFLite model and frames of the camera that it will see through. No TensorFlow needed.

    ros2 run edge_resnet calibrate --model build/resnet50_traffic_lights --frames frames/ --out models/resnet50_traffic_lights
    ros2 run edge_resnet calibrate --model my.tflite --labels labels.txt --resize stretch --color-order rgb --output-kind softmax
        --mean 127.5 127.5 127.5 --std 127.5 127.5 127.5 --frames frames/ --out models/my --eval photos/test

--model is a .tflite, or a folder with float.tflite; labels.txt and export.json (of export_model) or training.json beside it are
read. Some frames are held out from calibration, to compare the result with the float model on them. Writes model.tflite,
labels.txt and card.yaml, all or nothing, and never over something else. Needs litert-quantizer (requirements/tools.txt).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edge_resnet.exceptions import EdgeResnetError, ModelError, ParameterError
from edge_resnet.pipeline import calibration, tflite_file
from edge_resnet.pipeline.bundle import OUTPUTS, Bundle, preprocessing_from, read_labels
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.preprocessing import COLOR_ORDERS, RESIZE_MODES, Preprocessing, normalize, resize
from edge_resnet.tools import report
from edge_resnet.tools.bias_correction import FRAMES, correct
from edge_resnet.tools.dataset import images, labelled, progress, read_rgb

METHODS = ('int8', 'dynamic', 'int16', 'float16')
LIBRARIES = ('litert_quantizer', 'ai_edge_quantizer')  # the newer name first; the same API
BOUNDS = {'held_out': (0.01, 0.9), 'min_agreement': (0, 1), 'count': (2, 100_000), 'seed': (0, 2 ** 32)}
LATENCY_RUNS, LAYER_FRAMES, LAYERS = 15, 2, 5
CARD_HEADER = """\
# How this model was made and what it expects, written by edge_resnet's calibrate. mean, std and brightness are in 0-255 units;
# histograms: the shares of 32 equal bins of 0-255 of all pixels of the calibration frames at the network's size; sharpness: their
# median, see pipeline/calibration.py; agreement, top1 and clipped_share: shares, 0-1; drift: difference in the score, 0-1, of the
# float model's first class; latency: CPU time of one thread.
"""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('calibrate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', type=Path, required=True, help='float .tflite, or a folder with float.tflite')
    parser.add_argument('--frames', type=Path, required=True, help='folder of images, of any size')
    parser.add_argument('--out', type=Path, required=True, help='bundle to make, e.g. models/NAME; must not be there yet')
    parser.add_argument('--labels', type=Path, help='file with one label a line (default: labels.txt beside the model)')
    parser.add_argument('--resize', choices=RESIZE_MODES, help='how the training fitted images into the input')
    parser.add_argument('--color-order', choices=COLOR_ORDERS)
    parser.add_argument('--mean', type=float, nargs=3, metavar='X', help='what the training subtracted from each channel, in 0-255 units')
    parser.add_argument('--std', type=float, nargs=3, metavar='X', help='what the training then divided each channel by')
    parser.add_argument('--output-kind', dest='output', choices=OUTPUTS)
    parser.add_argument('--label-offset', type=int, help='outputs before the first label (default: 0)')
    parser.add_argument('--count', type=int, default=250, help='frames to use at most, held-out ones included (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=7, help='of the choice of frames (default: %(default)s)')
    parser.add_argument('--held-out', type=float, default=0.2, metavar='SHARE', help='of the frames, kept for the comparison (default: %(default)s)')
    parser.add_argument('--eval', type=Path, metavar='PHOTOS', help='labelled folder or CSV: the accuracy of both models on it goes into the card')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=['int8'], help='the first is written, others only compared (default: int8)')
    parser.add_argument('--min-agreement', type=float, default=0.95, metavar='SHARE', help='top-1, on held-out frames (default: %(default)s)')
    parser.add_argument('--layers', action='store_true', help=f'also find the {LAYERS} worst layers')
    parser.add_argument('--force', action='store_true', help='go on with too few frames')
    parser.add_argument('--licence', help='of weights and data (default: what export.json says)')
    parser.add_argument('--source', help='of weights and data (default: what export.json says)')
    parser.add_argument('--json', action='store_true', help='print the card as JSON')
    return parser.parse_args(argv)


def library(module: str) -> Any:
    """The quantizer's ``module`` (quantizer, calibrator, ...), under whichever of its names it is installed."""
    os.environ.setdefault('TQDM_DISABLE', '1')  # progress is told here; the library's bars count operators
    warnings.filterwarnings('ignore', '.*experimental_preserve_all_tensors', UserWarning)
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            return importlib.import_module(f'{name}.{module}')
    raise ModelError('litert-quantizer is not installed: pip install -r requirements/tools.txt')


def versions(*packages: str) -> str:
    """Those of ``packages`` that are installed, with their versions."""
    found = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f'{name} {importlib.metadata.version(name)}')
    return ', '.join(found)


def processor() -> str:
    """The board's or the CPU's name; INT8 on x86 is only faster than float with VNNI, so that is told too."""
    board, cpu = Path('/proc/device-tree/model'), Path('/proc/cpuinfo')
    if board.is_file():
        return board.read_text().strip('\0')
    text = cpu.read_text() if cpu.is_file() else ''
    name = re.search(r'model name\s*: (.+)', text)
    return f'{name[1]} {"with" if "vnni" in text else "without"} VNNI' if name else platform.machine()


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``, empty without one."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ParameterError(f'{path}: {error}') from error
    if not isinstance(found, dict):
        raise ParameterError(f'{path}: a {type(found).__name__}, expected an object')
    return found


def float_bundle(args: argparse.Namespace) -> tuple[Bundle, dict[str, Any]]:
    """(the float model of ``args`` with its settings, what is said of it beside it); ParameterError names what is missing."""
    path = args.model / 'float.tflite' if args.model.is_dir() else args.model
    if not path.is_file():
        raise ModelError(f'{path}: there is no such model')
    said = {**read_json(path.with_name('training.json')), **read_json(path.with_name('export.json'))}
    described = tflite_file.read(path.read_bytes())
    if described.input_dtype != 'float32' or len(described.input_shape) != 4:
        raise ModelError(f'{path}: input is {described.input_dtype} {list(described.input_shape)}, expected float32 [1, height, width, 3]')
    found: dict[str, Any] = {'mean': described.mean or None, 'std': described.std or None, 'label_offset': 0, **said, **said.get('preprocessing', {})}
    needed = ('resize', 'color_order', 'mean', 'std', 'output', 'label_offset')
    found.update({name: getattr(args, name) for name in needed if getattr(args, name) is not None})
    found.update(height=described.input_shape[1], width=described.input_shape[2])
    missing = ['--output-kind' if name == 'output' else f'--{name.replace("_", "-")}' for name in needed if found.get(name) is None]
    if missing:
        raise ParameterError(f'{path}: nothing beside it says how it was trained; expected {" ".join(missing)}')
    labels = described.labels if described.labels and not args.labels else read_labels(args.labels or path.with_name('labels.txt'))
    return Bundle(args.out.name, path, preprocessing_from(found, str(path)), labels, found['output'], found['label_offset']), said


def choose(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """(frames to calibrate on, frames held out), the same for the same folder, count and seed."""
    files = images(args.frames)
    order = np.random.default_rng(args.seed).permutation(len(files))[:args.count]
    held = max(1, round(len(order) * args.held_out))
    if held == len(order):
        raise ParameterError(f'{args.frames}: {len(files)} image, too few to hold one out')
    return [files[index] for index in sorted(order[held:])], [files[index] for index in sorted(order[:held])]


class Quantization:
    """Quantises ``model`` by several methods; ``measure`` comes first."""

    def __init__(self, model: bytes, spec: Preprocessing) -> None:
        self._model, self._spec = model, spec

    def _input(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        return {self._argument: normalize(frame, self._spec)[None]}

    def measure(self, frames: Sequence[np.ndarray]) -> None:
        """Find the smallest and the largest value of every activation over ``frames``, one frame in memory at a time."""
        # Profiler mode keeps no activations: 0.3 GB for ResNet50, 0.7 GB with all of them. Minima and maxima don't depend on the
        # order of the frames, unlike the library's default, a moving average that after 20 frames still is to 38 % the first one.
        module = library('calibrator')
        mode, update = module.CalibrationMode.CALIBRATION_PROFILER_BASED, library('utils.qsv_utils').min_max_update
        calibrator = module.Calibrator(self._model, num_threads=max(1, (os.cpu_count() or 2) // 2), mode=mode, qsv_update_func=update)
        signatures = calibrator.get_signature_list()
        if len(signatures) != 1:
            raise ModelError(f'the model has {len(signatures)} signatures, expected one: convert it anew with TensorFlow 2.7 or later')
        self._signature, (self._argument,) = next((name, entry['inputs']) for name, entry in signatures.items())
        recipes = self._quantizer('int8')._recipe_manager
        for frame in progress(frames, 'calibrating, frame'):
            calibrator.calibrate({self._signature: [self._input(frame)]}, recipes)
        self._ranges = calibrator.get_model_qsvs()
        ends = normalize(np.array([[[0] * 3, [255] * 3]], np.uint8), self._spec)  # all that an 8-bit image can hold: no input clips
        name = calibrator._tfl_interpreter.get_input_details()[0]['name']
        self._ranges[name] = {'min': np.array([ends.min()]), 'max': np.array([ends.max()])}

    def _quantizer(self, method: str) -> Any:
        made = library('quantizer').Quantizer(self._model)
        operations, algorithms = library('qtyping').TFLOperationName, library('algorithm_manager').AlgorithmName
        if method == 'dynamic':
            made.add_dynamic_config('.*', operations.ALL_SUPPORTED, 8)
        elif method == 'float16':
            made.add_weight_only_config('.*', operations.ALL_SUPPORTED, 16, algorithm_key=algorithms.FLOAT_CASTING)
        else:
            made.add_static_config('.*', operations.ALL_SUPPORTED, 8 if method == 'int8' else 16, 8)
        if method == 'int16':  # float input and output: an 8-bit image has no use for 16 bits, nor has the classifier
            for operation in (operations.INPUT, operations.OUTPUT):
                made.update_quantization_recipe('.*', operation, None, algorithms.NO_QUANTIZE)
        return made

    def quantize(self, method: str) -> bytes:
        """The model quantised by ``method``; ``measure`` came before."""
        quantizer = self._quantizer(method)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of the library that nothing else turns off
            result = quantizer.quantize(self._ranges if quantizer.need_calibration else None, enable_progress_report=False)
        return bytes(result.quantized_model)

    def worst_layers(self, quantized: bytes, frames: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The layers of ``quantized`` whose output has the lowest signal-to-noise ratio against the float one's."""
        metric = library('utils.validation_utils').ValidationErrorMetric.SNR
        data = {self._signature: [self._input(frame) for frame in frames]}
        result = library('model_validator').compare_model(self._model, quantized, data, [metric], num_threads=1)
        layers = result.get_signature_comparison_result(self._signature)
        ratios = {name: max(values[metric.value], 1e-9) for name, values in {**layers.intermediate_tensors, **layers.output_tensors}.items()}
        worst = sorted(ratios, key=ratios.__getitem__)[:LAYERS]
        return [{'layer': name, 'signal_to_noise_db': round(10 * math.log10(ratios[name]), 1)} for name in worst]


def compare(reference: Classifier, candidate: Classifier, frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """Agreement and drift of ``candidate`` against ``reference`` on ``frames``; the time of both, taken in turns."""
    pair = (reference, candidate)
    scores = np.array([[model.classify(frame) for model in pair] for frame in progress(frames, 'comparing, frame')])
    best = scores.argmax(axis=-1)
    drift = np.abs(np.diff(np.take_along_axis(scores, best[:, :1, None], axis=-1)[..., 0]))
    taken = np.zeros((LATENCY_RUNS, 2))
    for run in range(-2, LATENCY_RUNS):  # two to warm up
        for which, model in enumerate(pair):
            start = time.thread_time()  # one thread's own time: as on an idle machine, however busy this one is
            model.classify(frames[run % len(frames)])
            taken[max(run, 0), which] = 1000 * (time.thread_time() - start)
    latency, sizes = np.median(taken, axis=0).tolist(), [model.bundle.model_path.stat().st_size for model in pair]
    return {
        'agreement': round(float((best[:, 0] == best[:, 1]).mean()), 4), 'drift_mean': round(float(drift.mean()), 4),
        'drift_max': round(float(drift.max()), 4), 'size_ratio': round(sizes[1] / sizes[0], 4),
        'latency_float_ms': round(latency[0], 2), 'latency_ms': round(latency[1], 2), 'latency_ratio': round(latency[1] / latency[0], 3)}


def accuracy(model: Classifier, photos: list[tuple[Path, int]]) -> float:
    spec = model.bundle.preprocessing
    right = [model.classify(resize(read_rgb(path), spec)).argmax() == truth for path, truth in progress(photos, 'evaluating, photo')]
    return round(float(np.mean(right)), 4)


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Write the bundle ``args.out``, whole or not at all, and return its card; EdgeResnetError refuses."""
    report.check(args, BOUNDS)
    if os.path.lexists(args.out):
        raise ParameterError(f'out is {args.out}, which is there already; expected the name of a new bundle')
    if not re.fullmatch(r'[\w-]+', args.out.name):
        raise ParameterError(f'out is {args.out}; expected a name of letters, digits, "_" and "-"')
    bundle, said = float_bundle(args)
    spec, photos = bundle.preprocessing, labelled(args.eval, bundle.labels) if args.eval else []
    paths, held_paths = choose(args)
    frames, held = ([resize(read_rgb(path), spec) for path in some] for some in (paths, held_paths))
    covered = calibration.statistics(frames)
    if covered.distinct < calibration.MIN_DISTINCT and not args.force:
        raise ParameterError(f'{args.frames}: {covered.distinct} different frames of {covered.count} to calibrate on, expected '
                             f'{calibration.MIN_DISTINCT} or more besides the {len(held)} held out (--force goes on)')
    concerns = calibration.concerns(covered)
    for concern in concerns:
        print(f'calibrate: warning: {concern}', file=sys.stderr)
    digests = ''.join(f'{path.relative_to(args.frames).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n' for path in paths)
    captured = {name: value for name, value in read_json(args.frames / 'manifest.json').items() if name not in ('frames', 'histograms')}
    calibrated = {
        'frames': args.frames.resolve().name, 'count': covered.count, 'distinct': covered.distinct, 'held_out': len(held), 'seed': args.seed,
        'frames_sha256': hashlib.sha256(digests.encode()).hexdigest(), 'library': versions(*LIBRARIES), 'warnings': concerns,
        **{name: round(value, 4) for name, value in vars(covered).items() if isinstance(value, float)},
        'histograms': {color: row.round(5).tolist() for color, row in zip(('red', 'green', 'blue'), covered.histograms, strict=True)},
        **({'manifest': captured} if captured else {})}
    quantization, reference = Quantization(bundle.read_model(), spec), Classifier(bundle)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{args.out.name}.', dir=args.out.parent) as temp:
        compared: dict[str, dict[str, Any]] = {}
        try:
            quantization.measure(frames)
            evaluated = {'evaluated': len(photos), 'top1_float': accuracy(reference, photos)} if photos else {}
            for method in args.methods:
                path = Path(temp) / method / 'model.tflite'
                path.parent.mkdir()
                path.write_bytes(quantization.quantize(method))
                candidate = Classifier(replace(bundle, model_path=path))
                if method == 'int8':
                    pairs = [(normalize(frame, spec)[None], candidate.network_input(frame)) for frame in frames[::max(1, len(frames) // FRAMES)]]
                    path.write_bytes(correct(bundle.read_model(), path.read_bytes(), pairs))
                    candidate = Classifier(replace(bundle, model_path=path))
                compared[method] = {**compare(reference, candidate, held), **evaluated, **({'top1': accuracy(candidate, photos)} if photos else {})}
                if args.layers:
                    compared[method]['worst_layers'] = quantization.worst_layers(path.read_bytes(), held[:LAYER_FRAMES])
        except (EdgeResnetError, OSError):
            raise
        except Exception as error:  # the library raises all kinds
            raise ModelError(f'{bundle.model_path}: {versions(*LIBRARIES)}: {" ".join(str(error).split())[:300]}') from error
        measured, folder = compared.pop(args.methods[0]), Path(temp) / args.methods[0]
        if measured['agreement'] < args.min_agreement:
            raise ModelError(f'top-1 agreement with the float model is {measured["agreement"]:.1%} on {len(held)} held-out frames, expected '
                             f'{args.min_agreement:.1%} or more (score drift up to {measured["drift_max"]}); nothing was written')
        model = (folder / 'model.tflite').read_bytes()
        card = {
            'name': args.out.name, 'sha256': hashlib.sha256(model).hexdigest(), 'size_bytes': len(model), 'method': args.methods[0],
            'licence': args.licence or said.get('weights_licence', 'unknown'), 'source': args.source or said.get('weights_source', 'unknown'),
            'preprocessing': {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(spec).items()},
            'output': bundle.output, 'label_offset': bundle.label_offset, 'float_sha256': hashlib.sha256(bundle.read_model()).hexdigest(),
            'measured': {**measured, 'host': f'{processor()}, {candidate.runtime}', **({'compared': compared} if compared else {})},
            'calibration': calibrated}
        (folder / 'labels.txt').write_text('\n'.join(bundle.labels) + '\n', encoding='utf-8')
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, default_flow_style=None, width=140)
        (folder / 'card.yaml').write_text(CARD_HEADER + text, encoding='utf-8')
        folder.rename(args.out)
    return card


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def work() -> int:
        card = calibrate(args)
        lines = [f'written to {args.out}', f'size_bytes: {card["size_bytes"]}', *(f'{name}: {value}' for name, value in card['measured'].items())]
        print(json.dumps(card, indent=2) if args.json else '\n'.join(lines))
        return 0

    return report.run('calibrate', work)


if __name__ == '__main__':
    raise SystemExit(main())
