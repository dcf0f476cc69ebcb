"""What a .tflite says about itself, and that no damage gets past as another error than ModelError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import LABELS, model_bytes, packed, unpacked, with_metadata

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline import tflite_file
from edge_resnet.pipeline.tflite_file import TfliteFile

PLAIN = model_bytes()
DESCRIBED = with_metadata(PLAIN, (123.5, 116.25, 103.5), (58.5, 57.0, 57.5), '\n'.join(LABELS))


@pytest.mark.parametrize('dtype', ['float32', 'int8', 'uint8'])
def test_input_and_output(dtype):
    assert tflite_file.read(model_bytes(dtype)) == TfliteFile((1, 32, 32, 3), dtype, (1, 3))


def test_metadata():
    assert tflite_file.read(DESCRIBED) == TfliteFile((1, 32, 32, 3), 'float32', (1, 3), (123.5, 116.25, 103.5), (58.5, 57.0, 57.5), LABELS)


def test_one_mean_for_all_channels():
    described = tflite_file.read(with_metadata(PLAIN, (127.5,), (128.0,), 'a\nb\nc\n'))
    assert (described.mean, described.std, described.labels) == ((127.5,) * 3, (128.0,) * 3, ('a', 'b', 'c'))


@pytest.mark.parametrize(('data', 'message'), [
    (b'', "not a TFLite model: bytes 4 to 8 are b''"), (b'\x89PNG\r\n\x1a\n' * 9, "expected b'TFL3'"), (b'\x08\0\0\0TFL3', 'damaged TFLite model'),
    (b'\xff\xff\xff\xffTFL3' + bytes(100), 'damaged TFLite model'), (b'version https://git-lfs.github.com/spec/v1', 'not a TFLite model'),
], ids=['empty', 'PNG', 'header only', 'wild offset', 'Git LFS pointer'])
def test_other_files_are_refused(data, message):
    with pytest.raises(ModelError, match=message):
        tflite_file.read(data)


def test_an_input_that_is_no_image_is_refused():
    model = unpacked(PLAIN)
    model.subgraphs[0].tensors[0].type = 4  # INT64
    with pytest.raises(ModelError, match=r'tensor type 4 of schema.fbs, expected one of float32, uint8, int8'):
        tflite_file.read(packed(model))


def test_a_label_file_that_is_not_in_the_archive_is_named():
    with pytest.raises(ModelError, match=r"label file 'classes.txt', which can't be read"):
        tflite_file.read(with_metadata(PLAIN, (0.0,), (1.0,), 'a\nb\nc', labels_name='classes.txt'))


def test_a_label_file_that_unpacks_to_megabytes_is_refused():
    bomb = with_metadata(PLAIN, (0.0,), (1.0,), 'a' * 4_000_001)
    assert len(bomb) < 20_000
    with pytest.raises(ModelError, match='over 4000000 bytes'):
        tflite_file.read(bomb)


def test_every_truncation_is_refused_or_read():
    for length in range(len(DESCRIBED)):
        try:
            tflite_file.read(DESCRIBED[:length])
        except ModelError:
            pass
        else:
            pytest.fail(f'read from {length} of {len(DESCRIBED)} bytes, though the labels are at the end')


@settings(max_examples=1500, deadline=None)
@given(flips=st.lists(st.integers(0, 8 * len(DESCRIBED) - 1), min_size=1, max_size=8))
def test_any_flipped_bits_are_refused_or_read(flips):
    data = bytearray(DESCRIBED)
    for bit in flips:
        data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ModelError):
        assert isinstance(tflite_file.read(bytes(data)), TfliteFile)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_behind_the_right_magic(rest):
    with contextlib.suppress(ModelError):
        assert isinstance(tflite_file.read(b'\x10\0\0\0TFL3' + rest), TfliteFile)
