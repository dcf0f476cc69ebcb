"""A model in use: the same answer from every number format, runtime and thread, and no answer from a model that does not fit its card."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_model import LABELS, SIZE, model_bytes, packed, patch, unpacked, write_bundle

from edge_resnet.exceptions import ImageError, ModelError, ResultError
from edge_resnet.pipeline.bundle import Bundle, load_bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.preprocessing import Preprocessing, normalize

RUNTIMES = ['litert', 'tflite_runtime']
MODULES = {'litert': 'ai_edge_litert', 'tflite_runtime': 'tflite_runtime'}
SPEC = Preprocessing(SIZE, SIZE)


@pytest.fixture(scope='module')
def patches() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [patch(label, rng) for label in LABELS * 10]


@pytest.fixture(scope='module')
def truth(patches) -> np.ndarray:
    """The float model's scores."""
    model = classifier()
    return np.array([model.classify(image) for image in patches])


class MemoryBundle(Bundle):
    """A bundle without files."""

    def read_model(self) -> bytes:
        return self.card['model']


def bundle_of(model: bytes, **options: object) -> MemoryBundle:
    fields = {'preprocessing': SPEC, 'labels': LABELS, 'card': {'model': model}, **options}
    return MemoryBundle('tiny', Path('tiny.tflite'), **fields)


def classifier(dtype: str = 'float32', runtime: str = 'auto', **options: object) -> Classifier:
    pytest.importorskip(MODULES.get(runtime, 'numpy'))
    return Classifier(bundle_of(model_bytes(dtype, softmax=options.get('output') != 'logits'), **options), runtime, trial=False)


@pytest.mark.parametrize('output', ['softmax', 'logits'])
@pytest.mark.parametrize('dtype', ['float32', 'int8', 'uint8'])
@pytest.mark.parametrize('runtime', RUNTIMES)
def test_every_format_and_runtime_sees_the_same(runtime, dtype, output, patches, truth):
    model = classifier(dtype, runtime, output=output)
    assert model.runtime == runtime
    assert model.input_dtype == dtype
    found = np.array([model.classify(image) for image in patches])
    assert found.argmax(axis=1).tolist() == [0, 1, 2] * 10
    assert found.shape == (30, 3)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=0.012)  # three steps of an 8-bit softmax
    np.testing.assert_allclose(found, truth, atol=1e-5 if dtype == 'float32' else 0.15)


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_uint8_is_int8_moved_by_128(runtime, patches):
    signed, unsigned = classifier('int8', runtime), classifier('uint8', runtime)
    for image in patches:
        np.testing.assert_array_equal(unsigned.network_input(image).astype(int), signed.network_input(image).astype(int) + 128)
        np.testing.assert_array_equal(unsigned.classify(image), signed.classify(image))


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'float32'])
def test_a_made_input_is_taken_as_the_image_that_it_was_made_of(dtype, patches):
    model = classifier(dtype)
    for image in patches:
        np.testing.assert_array_equal(model.classify(model.network_input(image)), model.classify(image))


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('mean', [(127.5,) * 3, (123.675, 116.28, 103.53)], ids=['one table', 'a table a channel'])
def test_the_network_gets_what_normalize_says(patches, order, mean):
    spec = Preprocessing(SIZE, SIZE, color_order=order, mean=mean, std=(58.0, 57.0, 56.0) if mean[0] != mean[1] else (127.5,) * 3)
    tensor = classifier(preprocessing=spec).network_input(patches[0])
    assert tensor.shape == (1, SIZE, SIZE, 3)
    np.testing.assert_array_equal(tensor[0], normalize(patches[0], spec))


def test_a_bgr_model_sees_red_where_red_is():
    """Fed the wrong way round, red and blue would be exchanged; the tiny model then takes a red patch for anything but red."""
    rng = np.random.default_rng(0)
    model = unpacked(model_bytes())
    kernel = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == b'kernel')
    data = np.frombuffer(model.buffers[kernel.buffer].data.tobytes(), np.float32).reshape(4, 3, 3, 3)[..., ::-1]
    model.buffers[kernel.buffer].data = np.frombuffer(data.tobytes(), np.uint8)
    bgr = Classifier(bundle_of(packed(model), preprocessing=Preprocessing(SIZE, SIZE, color_order='bgr')), trial=False)
    rgb = classifier()
    for label in LABELS:
        image = patch(label, rng)
        np.testing.assert_allclose(bgr.classify(image), rgb.classify(image), atol=1e-6)


def test_eight_threads_get_what_one_gets(patches):
    model = classifier('int8')
    expected = [model.classify(image) for image in patches]
    wrong, together = [], threading.Barrier(8)

    def work(offset: int) -> None:
        together.wait()
        for step in range(1000):
            index = (step * 7 + offset) % len(patches)
            if not np.array_equal(model.classify(patches[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_more_threads_and_no_delegate_give_the_same(patches):
    expected = classifier().classify(patches[0])
    for options in ({'num_threads': 4}, {'default_delegate': False}):
        np.testing.assert_allclose(Classifier(bundle_of(model_bytes()), trial=False, **options).classify(patches[0]), expected, atol=1e-6)


def test_a_leading_background_class_is_left_out(patches):
    whole = classifier().classify(patches[1])
    offset = Classifier(bundle_of(model_bytes(), labels=LABELS[1:], label_offset=1), trial=False)
    np.testing.assert_array_equal(offset.classify(patches[1]), whole[1:])


def test_from_files_with_a_trial(tmp_path, patches):
    model = Classifier(load_bundle(str(write_bundle(tmp_path / 'lights', 'int8'))))
    model.warm_up()
    assert LABELS[model.classify(patches[1]).argmax()] == 'red'


# What does not fit together

@pytest.mark.parametrize(('options', 'message'), [
    ({'labels': (*LABELS, 'blue')}, 'tiny: 3 outputs, but 4 labels and label_offset 0'),
    ({'labels': LABELS[:2]}, '3 outputs, but 2 labels'),
    ({'label_offset': 1}, '3 outputs, but 3 labels and label_offset 1'),
    ({'preprocessing': Preprocessing(224, 224)}, r'tiny: input shape is \[1, 32, 32, 3\], the card says \[1, 224, 224, 3\]'),
    ({'preprocessing': Preprocessing(32, 33)}, r'the card says \[1, 33, 32, 3\]'),
])
def test_a_card_for_another_model(options, message):
    with pytest.raises(ModelError, match=message):
        Classifier(bundle_of(model_bytes(), **options), trial=False)


def test_a_model_with_two_outputs():
    model = unpacked(model_bytes())
    graph = model.subgraphs[0]
    graph.outputs = [*graph.outputs, next(number for number, tensor in enumerate(graph.tensors) if tensor.name == b'logits')]
    model.signatureDefs = []
    with pytest.raises(ModelError, match=r'tiny: outputs are \[float32, float32\], expected one of int8, uint8 or float32'):
        Classifier(bundle_of(packed(model)), trial=False)


def test_a_model_that_is_refused_is_named():
    with pytest.raises(ModelError, match='tiny.tflite: litert refuses the model'):
        Classifier(bundle_of(b'TFL3' * 50), trial=False)


@pytest.mark.parametrize(('shape', 'dtype'), [((32, 33, 3), 'uint8'), ((32, 32), 'uint8'), ((32, 32, 3), 'float32'), ((0, 0, 3), 'uint8'),
                                               ((1, 32, 32, 3), 'uint8')])
def test_another_image_than_the_network_takes(shape, dtype):
    with pytest.raises(ImageError, match=r'image is .*, the model takes uint8 \[32, 32, 3\]'):
        classifier().classify(np.zeros(shape, dtype))


def test_scores_that_are_not_finite_are_refused(patches):
    """A weight that became infinite: the model loads and runs, and its output is NaN."""
    model = unpacked(model_bytes())
    bias = next(tensor for tensor in model.subgraphs[0].tensors if tensor.name == b'dense_bias')
    model.buffers[bias.buffer].data = np.frombuffer(np.float32([np.inf, -np.inf, np.nan]).tobytes(), np.uint8)
    with pytest.raises(ResultError, match='not finite'):
        Classifier(bundle_of(packed(model)), trial=False).classify(patches[0])
