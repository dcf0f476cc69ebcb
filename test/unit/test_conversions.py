"""Camera messages of every encoding, by golden images; hostile ones are refused by name; CDR bytes as the middleware writes them."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import subprocess
import sys
from array import array
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.conversions import (
    ENCODINGS,
    Header,
    ImageView,
    Results,
    Stamp,
    check_image,
    compressed_array,
    image_array,
    read_duration,
    read_image,
    read_results,
    read_stage,
    stamp_ns,
    write_duration,
    write_image,
    write_results,
    write_stage,
)
from edge_resnet.exceptions import ImageError, ResultError
from edge_resnet.pipeline.postprocessing import Score

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 8, 6
RED, GREEN, BLUE, GREY = (200, 30, 40), (20, 180, 60), (10, 40, 220), (128, 128, 128)


def golden() -> np.ndarray:
    """(6, 8, 3) RGB: red, green, blue and grey 4x3 quarters; flat, so that chroma subsampling and demosaicing leave their insides alone."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (top, left), color in (((0, 0), RED), ((0, 4), GREEN), ((3, 0), BLUE), ((3, 4), GREY)):
        image[top:top + 3, left:left + 4] = color
    return image


def view(encoding: str, rows: np.ndarray, width: int = WIDTH, height: int = HEIGHT, pad: int = 0, bigendian: int = 0) -> ImageView:
    """A message of ``rows`` of bytes, each with ``pad`` bytes behind, which must not be seen."""
    rows = np.pad(np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1), ((0, 0), (0, pad)), constant_values=0xEE)
    return ImageView(Header(), height, width, encoding, bigendian, rows.shape[1], memoryview(rows.tobytes()))


def rgb(message: ImageView) -> np.ndarray:
    image, order = image_array(message)
    assert image.dtype == np.uint8
    assert image.shape == (message.height, message.width, 3)
    return image[..., ::-1] if order == 'bgr' else image


pads = pytest.mark.parametrize('pad', [0, 2, 24])


@pads
@pytest.mark.parametrize(('encoding', 'order'), [('rgb8', [0, 1, 2]), ('bgr8', [2, 1, 0]), ('rgba8', [0, 1, 2, 1]), ('bgra8', [2, 1, 0, 1])])
def test_colour(encoding, order, pad):
    np.testing.assert_array_equal(rgb(view(encoding, golden()[..., order], pad=pad)), golden())


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8'])
@pytest.mark.parametrize('pad', [0, 5])
def test_plain_colour_is_not_copied(encoding, pad):
    message = view(encoding, golden(), pad=pad)
    assert np.shares_memory(image_array(message)[0], np.frombuffer(message.data, np.uint8))


@pads
def test_mono8(pad):
    grey = golden()[..., 0]
    np.testing.assert_array_equal(rgb(view('mono8', grey, pad=pad)), np.repeat(grey[..., None], 3, axis=2))


@pads
@pytest.mark.parametrize(('order', 'bigendian'), [('<u2', 0), ('>u2', 1)])
def test_mono16_keeps_the_high_byte(order, bigendian, pad):
    """A 16-bit camera's full range becomes 0 to 255; taking the wrong byte gives noise."""
    grey = golden()[..., 0]
    samples = (grey.astype(np.uint16) << 8 | 0x5A).astype(order)
    np.testing.assert_array_equal(rgb(view('mono16', samples, pad=pad, bigendian=bigendian)), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(('order', 'bigendian'), [('<u2', 0), ('>u2', 1)])
@pytest.mark.parametrize(('encoding', 'channels'), [('rgb16', [0, 1, 2]), ('bgr16', [2, 1, 0]), ('rgba16', [0, 1, 2, 0]), ('bgra16', [2, 1, 0, 0])])
def test_colour_of_16_bits(encoding, channels, order, bigendian):
    samples = (golden()[..., channels].astype(np.uint16) << 8 | 0x5A).astype(order)
    np.testing.assert_array_equal(rgb(view(encoding, samples, bigendian=bigendian)), golden())


def ycc() -> np.ndarray:
    """BT.601 video range (luma 16 to 235), by the standard's numbers: what cameras and V4L2 send as YUYV, UYVY and NV12."""
    r, g, b = np.moveaxis(golden().astype(float), -1, 0)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    cb = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    cr = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    return np.rint(np.stack([y, cb, cr], axis=-1)).astype(np.uint8)


@pads
@pytest.mark.parametrize(('encoding', 'luma'), [('yuv422', 1), ('uyvy', 1), ('yuv422_yuy2', 0), ('yuyv', 0)])
def test_yuv422_in_both_orders(encoding, luma, pad):
    packed = np.zeros((HEIGHT, WIDTH, 2), np.uint8)
    packed[..., luma] = ycc()[..., 0]
    packed[:, 0::2, 1 - luma], packed[:, 1::2, 1 - luma] = ycc()[:, 0::2, 1], ycc()[:, 0::2, 2]
    np.testing.assert_allclose(rgb(view(encoding, packed, pad=pad)).astype(int), golden(), atol=3)


@pads
@pytest.mark.parametrize(('encoding', 'chroma'), [('nv12', [1, 2]), ('nv21', [2, 1])])
def test_nv12_and_nv21(encoding, chroma, pad):
    rows = np.vstack([ycc()[..., 0], ycc()[0::2, 0::2][..., chroma].reshape(HEIGHT // 2, WIDTH)])
    found = rgb(view(encoding, rows, pad=pad)).astype(int)
    for inside in (np.s_[:2], np.s_[4:]):  # rows 2 and 3 share their chroma
        np.testing.assert_allclose(found[inside], golden()[inside], atol=3)


@pads
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('depth', [8, 16])
def test_bayer(pattern, depth, pad):
    """The four letters are the colours of the first two rows' first two pixels; inside a flat area they give back its colour."""
    image = np.repeat(np.repeat(golden(), 4, axis=0), 4, axis=1)
    height, width = image.shape[:2]
    mosaic = np.zeros((height, width), np.uint8)
    for (top, left), color in zip(((0, 0), (0, 1), (1, 0), (1, 1)), pattern, strict=True):
        mosaic[top::2, left::2] = image[top::2, left::2, 'rgb'.index(color)]
    samples = mosaic if depth == 8 else mosaic.astype('<u2') << 8 | 0x5A
    found = rgb(view(f'bayer_{pattern}{depth}', samples, width, height, pad))
    for inside in (np.s_[3:9, 3:13], np.s_[3:9, 19:29], np.s_[15:21, 3:13], np.s_[15:21, 19:29]):
        np.testing.assert_allclose(found[inside].astype(int), image[inside], atol=1)


def test_every_encoding_has_a_test_or_is_an_alias():
    assert set(ENCODINGS) == {
        'rgb8', 'bgr8', 'rgba8', 'bgra8', 'rgb16', 'bgr16', 'rgba16', 'bgra16', 'mono8', 'mono16',
        'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21',
        *(f'bayer_{pattern}{depth}' for pattern in ('rggb', 'bggr', 'gbrg', 'grbg') for depth in (8, 16))}


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_the_smallest_image_of_each_encoding(encoding):
    """Two pixels by two, which the demosaicing of some OpenCV versions can't do: converted or refused, not crashed."""
    rows = np.full((3 if encoding.startswith('nv') else 2, 2 * ENCODINGS[encoding][0]), 128, np.uint8)
    with contextlib.suppress(ImageError):
        assert rgb(view(encoding, rows, 2, 2)).shape == (2, 2, 3)


# Refused by name

def message(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{'height': 6, 'width': 8, 'encoding': 'rgb8', 'is_bigendian': 0, 'step': 24, 'data': bytes(144), **changes})


@pytest.mark.parametrize(('changes', 'text'), [
    ({'encoding': '32FC1'}, "image encoding is '32FC1', expected one of rgb8, bgr8"),
    ({'encoding': ''}, "image encoding is ''"),
    ({'encoding': 'x' * 5000}, f"image encoding is '{'x' * 40}', expected"),
    ({'width': 0}, 'image width is 0, expected 1 to 16384'),
    ({'height': 0}, 'image height is 0'),
    ({'width': 16385}, 'image width is 16385'),
    ({'height': 2 ** 32 - 1}, 'image height is 4294967295, expected 1 to 16384'),
    ({'is_bigendian': 2}, 'image is_bigendian is 2, expected 0 or 1'),
    ({'step': 23}, 'image step is 23, expected at least 24 for 8 px of rgb8'),
    ({'step': 0}, 'image step is 0'),
    ({'encoding': 'rgba8', 'step': 31, 'data': bytes(186)}, 'image step is 31, expected at least 32 for 8 px of rgba8'),
    ({'encoding': 'mono16', 'step': 15, 'data': bytes(90)}, 'image step is 15, expected at least 16 for 8 px of mono16'),
    ({'data': bytes(143)}, r'image data has 143 bytes, expected 144 \(24 a row, 6 rows\)'),
    ({'data': bytes(145)}, 'image data has 145 bytes, expected 144'),
    ({'data': b''}, 'image data has 0 bytes'),
    ({'step': 2 ** 32 - 1}, 'image has 25769803770 bytes, expected at most 50000000'),
    ({'width': 10000, 'height': 10000, 'step': 30000}, 'image has 300000000 bytes'),
    ({'encoding': 'yuv422', 'width': 7, 'step': 14, 'data': bytes(84)}, 'yuv422 image width is 7, expected an even number'),
    ({'encoding': 'nv12', 'height': 5, 'step': 8, 'data': bytes(56)}, 'nv12 image is 8x5, expected even numbers'),
    ({'encoding': 'nv12', 'step': 8, 'data': bytes(48)}, r'image data has 48 bytes, expected 72 \(8 a row, 9 rows\)'),
])
def test_a_wrong_field_is_named(changes, text):
    with pytest.raises(ImageError, match=text):
        image_array(message(**changes))


@pytest.mark.parametrize('changes', [
    {'width': 1, 'step': 3, 'data': bytes(18)}, {'height': 1, 'data': bytes(24)}, {'height': 16384, 'width': 1, 'step': 3, 'data': bytes(49152)},
    {'width': 16384, 'height': 1, 'step': 49152, 'data': bytes(49152)}, {'encoding': 'nv12', 'height': 4, 'step': 8, 'data': bytes(48)},
    {'height': 1, 'step': 50_000_000, 'data': bytes(50_000_000)}])
def test_what_is_just_right_is_taken(changes):
    image = message(**changes)
    assert image_array(image)[0].shape == (image.height, image.width, 3)


edge_sizes = st.one_of(st.integers(0, 40), st.sampled_from([16384, 16385, 2 ** 31, 2 ** 32 - 1]))


@settings(max_examples=1000, deadline=None)
@given(encoding=st.one_of(st.sampled_from(sorted(ENCODINGS)), st.text(max_size=12)), width=edge_sizes, height=edge_sizes, extra=st.integers(-3, 20),
       bigendian=st.integers(0, 255) | st.sampled_from([0, 1]), off=st.sampled_from([0, 0, 0, 0, 1, -1]), fill=st.integers(0, 255))
def test_any_image_is_refused_or_right(encoding, width, height, extra, bigendian, off, fill):
    step = min(2 ** 32 - 1, max(0, width * ENCODINGS.get(encoding, (1,))[0] + extra))
    rows = height * 3 // 2 if encoding.startswith('nv') else height
    data = bytes([fill]) * max(0, min(step * rows, 100_000) + off)
    image = ImageView(Header(), height, width, encoding, bigendian, step, memoryview(data))
    with contextlib.suppress(ImageError):
        assert rgb(image).shape == (height, width, 3)


def test_a_real_message_is_taken_too():
    sensor_msgs = pytest.importorskip('sensor_msgs.msg')
    image = sensor_msgs.Image(height=HEIGHT, width=WIDTH, encoding='rgb8', step=WIDTH * 3, data=array('B', golden().tobytes()))
    np.testing.assert_array_equal(rgb(image), golden())
    image.step = 23
    with pytest.raises(ImageError, match='step is 23'):
        check_image(image)


# CDR bytes

HEADER = Header(Stamp(1700000000, 123456789), 'camera')


@pytest.mark.parametrize('frame_id', ['', 'c', 'ab', 'cam', 'kamera_ü', 'a_long_name_for_a_camera'])
@pytest.mark.parametrize('encoding', ['rgb8', 'mono8'])
def test_written_bytes_are_the_middlewares(frame_id, encoding):
    """As ``rclpy`` serialises the same message, so that any subscriber can read them, for each alignment of the strings."""
    sensor_msgs, serialization = pytest.importorskip('sensor_msgs.msg'), pytest.importorskip('rclpy.serialization')
    pixels = golden() if encoding == 'rgb8' else golden()[..., 0]
    image = sensor_msgs.Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=pixels.size // HEIGHT, data=array('B', pixels.tobytes()))
    image.header.stamp.sec, image.header.stamp.nanosec, image.header.frame_id = 1700000000, 123456789, frame_id
    expected = serialization.serialize_message(image)
    ours = write_image(Header(HEADER.stamp, frame_id), pixels, encoding)
    assert serialization.deserialize_message(ours, sensor_msgs.Image) == image
    for data in (expected, ours):
        found = read_image(data)
        assert (found.header.stamp, found.header.frame_id, found.encoding) == (HEADER.stamp, frame_id, encoding)
        assert (found.height, found.width, found.step, found.is_bigendian) == (HEIGHT, WIDTH, image.step, 0)
        assert bytes(found.data) == pixels.tobytes()


def test_what_is_remembered_of_an_image_is_no_other_images():
    """Those that are alike but for stamp and pixels are read the short way."""
    rng = np.random.default_rng(1)
    images = [(Header(Stamp(n, 10 * n), frame_id), rng.integers(0, 255, shape, np.uint8), encoding)
              for n, (frame_id, shape, encoding) in enumerate([('a', (4, 6, 3), 'rgb8'), ('a', (4, 6, 3), 'bgr8'), ('b', (4, 6, 3), 'bgr8'),
                                                               ('b', (6, 4, 3), 'bgr8'), ('b' * 300, (6, 4, 3), 'bgr8'), ('', (72,), 'mono8')])]
    messages = [(write_image(header, image.reshape(1, -1) if image.ndim == 1 else image, encoding), header, image, encoding)
                for header, image, encoding in images]
    for first in messages:
        for data, header, image, encoding in (first, first, *messages, first):
            for form in (data, memoryview(data)):
                found = read_image(form)
                assert (found.header, found.encoding, bytes(found.data)) == (header, encoding, image.tobytes())
            with pytest.raises(ImageError, match='cut off'):
                read_image(data[:-1])
            assert read_image(data + b'more') == read_image(data)
            swapped = data[:2] + b'\0\7' + data[4:]  # options, which say nothing about an image
            assert read_image(swapped) == read_image(data)
            with pytest.raises(ImageError, match='plain CDR'):
                read_image(b'\0\7' + data[2:])


def test_big_endian_cdr():
    header = b'\0\0\0\0' + struct.pack('>iII', 5, 7, 2) + b'a\0' + b'\0\0'
    data = struct.pack('>III', 1, 2, 6) + b'mono8\0' + b'\1\0' + struct.pack('>II', 2, 2) + b'\x0a\x0b'
    assert read_image(header + data) == ImageView(Header(Stamp(5, 7), 'a'), 1, 2, 'mono8', 1, 2, memoryview(b'\x0a\x0b'))


def test_an_image_that_is_a_view_is_written_as_it_looks():
    flipped = golden()[:, ::-1]
    np.testing.assert_array_equal(rgb(read_image(write_image(HEADER, flipped, 'rgb8'))), flipped)


def test_bytes_after_the_image_are_not_its():
    assert bytes(read_image(write_image(HEADER, golden(), 'rgb8') + b'more').data) == golden().tobytes()


def test_a_message_cut_anywhere_is_refused():
    data = write_image(HEADER, golden(), 'rgb8')
    for length in range(len(data)):
        with pytest.raises(ImageError, match='message (is cut off|starts with)'):
            read_image(data[:length])


@pytest.mark.parametrize('start', [b'\0\2\0\0', b'\1\1\0\0', b'\0\7\0\0', b'{"he'])
def test_another_representation_is_refused(start):
    with pytest.raises(ImageError, match=f'message starts with {start.hex()}, expected a plain CDR header'):
        read_image(start + write_image(HEADER, golden(), 'rgb8')[4:])


@settings(max_examples=500, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), max_size=4), cut=st.integers(0, 200))
def test_any_damaged_bytes_are_refused_or_right(changes, cut):
    data = bytearray(write_image(HEADER, golden(), 'rgb8'))
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(ImageError):
        image = read_image(bytes(data[:len(data) - max(0, cut - 150)]))
        assert rgb(image).shape == (image.height, image.width, 3)


@pytest.mark.parametrize('ns', [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_123_456_789, -1])
def test_stamps(ns):
    assert stamp_ns(Header(Stamp.from_ns(ns))) == ns
    assert 0 <= Stamp.from_ns(ns).nanosec < 1_000_000_000


# Compressed images

@pytest.mark.parametrize(('suffix', 'tolerance'), [('.png', 0), ('.jpg', 40)])
def test_compressed(suffix, tolerance):
    image = np.repeat(np.repeat(golden(), 8, axis=0), 8, axis=1)
    data = array('B', cv2.imencode(suffix, image[..., ::-1])[1].tobytes())
    found, order = compressed_array(data)
    assert order == 'bgr'
    np.testing.assert_allclose(found[2::4, 2::4, ::-1].astype(int), image[2::4, 2::4], atol=tolerance)


@pytest.mark.parametrize(('shape', 'dtype'), [((4, 4), 'uint8'), ((4, 4), 'uint16'), ((4, 4, 4), 'uint8')], ids=['grey', '16 bits', 'alpha'])
def test_other_kinds_of_png_become_colour(shape, dtype):
    assert compressed_array(cv2.imencode('.png', np.zeros(shape, dtype))[1].tobytes())[0].shape == (4, 4, 3)


@pytest.mark.parametrize(('data', 'text'), [
    (b'', 'compressed image has 0 bytes, expected 1 to 50000000'), (b'x', 'starts with 78'),
    (b'\xff\xd8\xff\xe0 no', "can't be decoded, it starts with ffd8ffe0"),
])
def test_what_can_not_be_decoded(data, text):
    with pytest.raises(ImageError, match=text):
        compressed_array(data)


@settings(max_examples=30, deadline=None)  # a flipped size may be one of 16 megapixels, which takes its time
@given(flips=st.lists(st.tuples(st.integers(0, 599), st.integers(0, 255)), max_size=6),
       cut=st.integers(0, 700), suffix=st.sampled_from(['.png', '.jpg']))
def test_damaged_compressed_images(flips, cut, suffix):
    data = bytearray(cv2.imencode(suffix, golden())[1].tobytes()[:max(1, cut)])
    for at, value in flips:
        data[at % len(data)] = value
    with contextlib.suppress(ImageError):
        assert compressed_array(bytes(data))[0].shape[2] == 3


def test_a_small_file_that_unpacks_to_gigabytes_is_refused():
    """The limit must be set before OpenCV is loaded, whichever node of a composed pipeline comes first."""
    code = ('import edge_resnet.nodes.camera_node, edge_resnet.nodes.preprocess_node, zlib, struct, numpy as np, cv2\n'
            'from edge_resnet.conversions import compressed_array\n'
            'from edge_resnet.exceptions import ImageError\n'
            'def chunk(name, data): return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))\n'
            'header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))\n'
            'png = b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", zlib.compress(bytes(9)))\n'
            'try: compressed_array(png)\n'
            'except ImageError as error: print("refused:", error)\n')
    environment = {**os.environ, 'MUTANT_UNDER_TEST': ''}  # in make mutation, the functions as they are
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith('refused: compressed image of'), done.stderr
    assert 'pixels' in done.stdout.lower()


# Classifications

SCORES = [Score('red', 0.75), Score('', 0.0), Score('żółty', 0.25), Score('traffic light', -1e300)]


@pytest.mark.parametrize('count', range(5))
@pytest.mark.parametrize('frame_id', ['', 'c', 'ab', 'cam', 'kamera_ü'])
def test_written_results_are_the_middlewares(frame_id, count):
    messages, serialization = pytest.importorskip('vision_msgs.msg'), pytest.importorskip('rclpy.serialization')
    message = messages.Classification(results=[messages.ObjectHypothesis(class_id=entry.label, score=entry.score) for entry in SCORES[:count]])
    message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id = 1700000000, 123456789, frame_id
    results = Results(Header(HEADER.stamp, frame_id), SCORES[:count])
    assert serialization.deserialize_message(write_results(results), messages.Classification) == message
    assert read_results(serialization.serialize_message(message)) == read_results(write_results(results)) == results
    assert read_results(results) is results, 'what was handed over is taken as it is'


def test_big_endian_results():
    data = b'\0\0\0\0' + struct.pack('>iII', 5, 7, 2) + b'a\0\0\0' + struct.pack('>II', 1, 4) + b'red\0' + b'\0' * 4 + struct.pack('>d', 0.5)
    assert read_results(data) == Results(Header(Stamp(5, 7), 'a'), [Score('red', 0.5)])


def test_a_label_ends_at_its_first_zero_as_for_the_middleware():
    data = write_results(Results(HEADER, [Score('red\0x', 0.5)]))
    assert read_results(data).scores == [Score('red', 0.5)]


def test_results_cut_anywhere_are_refused():
    data = write_results(Results(HEADER, SCORES))
    for length in range(len(data)):
        with pytest.raises(ResultError, match=f'classification of {length} bytes'):
            read_results(data[:length])


def test_an_endless_classification_is_refused():
    head = write_results(Results(HEADER, []))[:-4]
    assert read_results(write_results(Results(HEADER, [Score('a', 0.1)] * 10_000))).scores[-1] == Score('a', 0.1)
    with pytest.raises(ResultError, match='classification has 10001 results, expected at most 10000'):
        read_results(head + struct.pack('<I', 10_001))


@settings(max_examples=500, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=4), cut=st.integers(0, 100))
def test_any_damaged_results_are_refused_or_read(changes, cut):
    data = bytearray(write_results(Results(HEADER, SCORES)))
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(ResultError):
        read_results(bytes(data[:len(data) - max(0, cut - 50)]))


# Durations

@pytest.mark.parametrize('seconds', [0.0, 0.2, 1.0, 1.999999999, -0.25, 86400.5, 2e9, -2e9])
def test_durations_are_the_middlewares(seconds):
    messages, serialization = pytest.importorskip('builtin_interfaces.msg'), pytest.importorskip('rclpy.serialization')
    message = serialization.deserialize_message(write_duration(seconds), messages.Duration)
    assert message.sec + message.nanosec / 1e9 == pytest.approx(seconds, abs=1e-9)
    assert read_duration(serialization.serialize_message(message)) == read_duration(write_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize('seconds', [3e9, -3e9])
def test_a_duration_that_is_too_long_is_the_longest(seconds):
    assert read_duration(write_duration(seconds)) == math.copysign(2e9, seconds)


@pytest.mark.parametrize('data', [b'', b'\0\1', write_duration(1.0)[:-1], b'\0\7' + write_duration(1.0)[2:]])
def test_what_is_no_duration_is_refused(data):
    with pytest.raises(ResultError, match=f'duration of {len(data)} bytes'):
        read_duration(data)


# Stage records

def test_a_stage_record_is_a_time_reference_of_the_middleware():
    pytest.importorskip('rclpy')
    from rclpy.serialization import deserialize_message, serialize_message
    from sensor_msgs.msg import TimeReference

    for frame_id, source, ns in (('camera', 'frame_ready', 1_700_000_000_123_456_789), ('', 'captured', 5), ('lens', 'x', -1)):
        data = write_stage(source, Header(Stamp(1_700_000_000, 999_999_999), frame_id), ns)
        message = deserialize_message(data, TimeReference)
        assert (message.source, message.header.frame_id, message.header.stamp.nanosec) == (source, frame_id, 999_999_999)
        assert message.time_ref.sec * 10 ** 9 + message.time_ref.nanosec == ns
        assert read_stage(serialize_message(message)) == read_stage(data) == (source, 1_700_000_000_999_999_999, ns)


@given(st.binary(max_size=60))
def test_garbage_is_no_stage_record(data):
    with contextlib.suppress(ResultError):
        read_stage(data)
    with pytest.raises(ResultError, match='stage record of'):
        read_stage(write_stage('frame_ready', Header(), 1)[:-3])
