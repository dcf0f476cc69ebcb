"""A whole TFLite classifier in 2 kB, made here: tells green, red and yellow 32x32 patches apart. For tests of everything that takes a model."""

from __future__ import annotations

import functools
import hashlib
import io
import tempfile
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import yaml
from ai_edge_litert import schema_py_generated as tflite

SIZE = 32
LABELS = ('green', 'red', 'yellow')
COLORS = {'green': (30, 200, 60), 'red': (220, 40, 30), 'yellow': (230, 210, 40)}  # RGB
MEAN_STD = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}
FLAGS = ['--mean', '127.5', '127.5', '127.5', '--std', '127.5', '127.5', '127.5', '--resize', 'stretch', '--color-order', 'rgb']


def tiny_float_model(path: Path, *, signature: bool = True, softmax: bool = True) -> bytes:
    """Write a float model to ``path``: input (1, 32, 32, 3) normalised with MEAN_STD, output (1, 3) scores in the order of LABELS.

    Four 3x3 averages (red and green, above and below the middle), a global average, one fully connected layer.
    """
    kernel = np.zeros((4, 3, 3, 3), np.float32)  # output channel, height, width, input channel
    for out, (channel, sign) in enumerate(((0, 1), (1, 1), (0, -1), (1, -1))):
        kernel[out, :, :, channel] = sign / 9
    dense = np.array([[-1, 4, 4, 0], [4, -1, 0, 4], [4, 4, 0, 0]], np.float32)  # green, red, yellow of (red, green, not red, not green)
    buffers, tensors = [np.empty(0, np.uint8)], []

    def tensor(name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        made = tflite.TensorT()
        made.name, made.shape, made.quantization = name, list(shape), tflite.QuantizationParametersT()
        made.type = tflite.TensorType.INT32 if data is not None and data.dtype == np.int32 else tflite.TensorType.FLOAT32
        made.buffer = len(buffers)
        buffers.append(np.empty(0, np.uint8) if data is None else np.frombuffer(data.tobytes(), np.uint8))
        tensors.append(made)
        return len(tensors) - 1

    def operator(code: int, kind: str, inputs: list[int], output: int, **options: int | float | bool) -> tflite.OperatorT:
        made = tflite.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        made.builtinOptionsType = getattr(tflite.BuiltinOptions, kind)
        made.builtinOptions = getattr(tflite, f'{kind}T')()
        for name, value in options.items():
            setattr(made.builtinOptions, name, value)
        return made

    half = SIZE // 2
    image = tensor('image', (1, SIZE, SIZE, 3))
    maps, means, logits = tensor('maps', (1, half, half, 4)), tensor('means', (1, 4)), tensor('logits', (1, 3))
    weights, bias = tensor('kernel', kernel.shape, kernel), tensor('bias', (4,), np.zeros(4, np.float32))
    axes = tensor('axes', (2,), np.array([1, 2], np.int32))
    dense_weights, dense_bias = tensor('dense', dense.shape, dense), tensor('dense_bias', (3,), np.zeros(3, np.float32))
    output = tensor('scores', (1, 3)) if softmax else logits
    relu = tflite.ActivationFunctionType.RELU
    operators = [
        operator(0, 'Conv2DOptions', [image, weights, bias], maps, padding=tflite.Padding.SAME, strideW=2, strideH=2, fusedActivationFunction=relu),
        operator(1, 'ReducerOptions', [maps, axes], means, keepDims=False),
        operator(2, 'FullyConnectedOptions', [means, dense_weights, dense_bias], logits),
        operator(3, 'SoftmaxOptions', [logits], output, beta=1.0)][:4 if softmax else 3]

    graph = tflite.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, operators, [image], [output]
    model = tflite.ModelT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], [], []
    for data in buffers:
        model.buffers.append(tflite.BufferT())
        model.buffers[-1].data = data if data.size else None
    for name in ('CONV_2D', 'MEAN', 'FULLY_CONNECTED', 'SOFTMAX'):
        code = tflite.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(tflite.BuiltinOperator, name)
        code.version = 1
        model.operatorCodes.append(code)
    if signature:
        entry = tflite.SignatureDefT()
        entry.signatureKey, entry.subgraphIndex = 'serving_default', 0
        for side, name, index in (('inputs', 'image', image), ('outputs', 'scores', output)):
            pair = tflite.TensorMapT()
            pair.name, pair.tensorIndex = name, index
            setattr(entry, side, [pair])
        model.signatureDefs = [entry]
    data = packed(model)
    path.write_bytes(data)
    return data


def packed(model: tflite.ModelT) -> bytes:
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b'TFL3')
    return bytes(builder.Output())


def unpacked(data: bytes) -> tflite.ModelT:
    return tflite.ModelT.InitFromPackedBuf(data, 0)


@functools.cache
def model_bytes(dtype: str = 'float32', *, softmax: bool = True) -> bytes:
    """The classifier with input and output of ``dtype``: float32, int8 or uint8."""
    if dtype == 'uint8':
        return _with_uint8_ends(model_bytes('int8', softmax=softmax))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.tflite'
        data = tiny_float_model(path, softmax=softmax)
    return _quantized(data) if dtype == 'int8' else data


def _quantized(data: bytes) -> bytes:
    from edge_resnet.tools.calibrate import library

    rng = np.random.default_rng(1)
    frames = [patch(label, rng) for label in LABELS * 20]
    quantizer = library('quantizer').Quantizer(data)
    quantizer.add_static_config('.*', library('qtyping').TFLOperationName.ALL_SUPPORTED, 8, 8)
    ranges = quantizer.calibrate({'serving_default': [{'image': (np.float32(frame)[None] - 127.5) / 127.5} for frame in frames]})
    return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)


def _with_uint8_ends(data: bytes) -> bytes:
    """The int8 model ``data`` between two QUANTIZE operators: uint8 is int8 with a zero point 128 higher."""
    model = unpacked(data)
    graph, code = model.subgraphs[0], tflite.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tflite.BuiltinOperator.QUANTIZE
    code.version = 1
    model.operatorCodes.append(code)
    model.signatureDefs = []
    for side in ('inputs', 'outputs'):
        (inside,), outer, operator = getattr(graph, side), tflite.TensorT(), tflite.OperatorT()
        inner = graph.tensors[inside]
        outer.name, outer.shape, outer.type = 'uint8_' + side, inner.shape, tflite.TensorType.UINT8
        outer.quantization = tflite.QuantizationParametersT()
        outer.quantization.scale, outer.quantization.zeroPoint = inner.quantization.scale, inner.quantization.zeroPoint + 128
        outside = len(graph.tensors)
        graph.tensors.append(outer)
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = ([outside], [inside]) if side == 'inputs' else ([inside], [outside])
        operator.builtinOptionsType, operator.builtinOptions = tflite.BuiltinOptions.QuantizeOptions, tflite.QuantizeOptionsT()
        graph.operators.insert(0 if side == 'inputs' else len(graph.operators), operator)
        setattr(graph, side, [outside])
    return packed(model)


def crashing_model(runtime: str) -> bytes:
    """A sound FlatBuffer that ``runtime`` takes and then dies of: an operator without the constant it needs."""
    model = unpacked(model_bytes())
    operators = model.subgraphs[0].operators
    if runtime == 'litert':
        operators[0].inputs = [operators[0].inputs[0], -1, -1]  # CONV_2D without weights
    else:
        operators[1].inputs = [operators[1].inputs[0], -1]  # MEAN without axes
    return packed(model)


def with_metadata(data: bytes, mean: tuple[float, ...], std: tuple[float, ...], labels: str, labels_name: str = 'labels.txt') -> bytes:
    """The model ``data`` with TFLite Metadata as TFLite Support writes it: normalisation of the input, a label file in a zip behind."""
    builder = flatbuffers.Builder(1024)

    def table(slots: int, **fields: tuple[int, int]) -> int:  # name=(slot, offset); a field named kind is a byte
        builder.StartObject(slots)
        for name, (slot, value) in fields.items():
            (builder.PrependInt8Slot if name == 'kind' else builder.PrependUOffsetTRelativeSlot)(slot, value, 0)
        return builder.EndObject()

    def tables(*items: int) -> int:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    numbers = [builder.CreateNumpyVector(np.float32(values)) for values in (mean, std)]
    normalization = table(2, mean=(0, numbers[0]), std=(1, numbers[1]))
    units = tables(table(2, kind=(0, 1), options=(1, normalization)))
    files = tables(table(4, name=(0, builder.CreateString(labels_name)), kind=(2, 2)))
    source, result = tables(table(7, process_units=(4, units))), tables(table(7, files=(6, files)))
    graphs = tables(table(4, inputs=(2, source), outputs=(3, result)))
    builder.Finish(table(4, graphs=(3, graphs)), b'M001')

    model, entry, buffer = unpacked(data), tflite.MetadataT(), tflite.BufferT()
    buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = 'TFLITE_METADATA', len(model.buffers) - 1
    model.metadata = [entry]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('labels.txt', labels)
    return packed(model) + archive.getvalue()


def write_bundle(folder: Path, dtype: str = 'float32', **card: object) -> Path:
    """A whole bundle in ``folder``, its card changed by ``card``; a value of None leaves the field out."""
    folder.mkdir(parents=True)
    data = model_bytes(dtype, softmax=card.get('output') != 'logits')
    (folder / 'model.tflite').write_bytes(data)
    (folder / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
    preprocessing = {'width': SIZE, 'height': SIZE, 'resize': 'stretch'}
    whole = {'sha256': hashlib.sha256(data).hexdigest(), 'output': 'softmax', 'preprocessing': preprocessing, **card}
    (folder / 'card.yaml').write_text(yaml.safe_dump({name: value for name, value in whole.items() if value is not None}))
    return folder


def patch(label: str, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8 RGB: a light of ``label``'s colour on a background of its own, noisy; no two are alike."""
    blocks = rng.integers(-60, 60, (8, 8, 3)).repeat(size // 8, 0).repeat(size // 8, 1)
    return np.clip(np.array(COLORS[label]) * rng.uniform(0.7, 1.2) + blocks + rng.normal(0, 4, (size, size, 3)), 0, 255).astype(np.uint8)
