"""8-bit integers and back, and the table that stands for normalising and quantising every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline.preprocessing import Preprocessing, normalize
from edge_resnet.pipeline.quantization import Quantization, dequantize, input_table, quantize

INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)


def test_values_by_hand():
    """TFLite's specification: real = scale * (quantized - zero_point)."""
    quantization = Quantization(0.5, 3)
    assert quantize(np.float32([0, 0.5, -1, 10]), quantization, INT8).tolist() == [3, 4, 1, 23]
    assert dequantize(np.int8([3, 4, 1, -128]), quantization).tolist() == [0, 0.5, -1, -65.5]


@pytest.mark.parametrize(('dtype', 'zero', 'ends'), [(INT8, 0, [-128, 127]), (UINT8, 128, [0, 255])])
def test_saturates_instead_of_wrapping_round(dtype, zero, ends):
    assert quantize(np.float32([-1e9, 1e9]), Quantization(0.1, zero), dtype).tolist() == ends


def test_ties_go_up_so_that_every_grey_level_stays_apart():
    assert quantize(np.float32([0.5, 1.5, 2.5, -0.5]), Quantization(1.0, 0), INT8).tolist() == [1, 2, 3, 0]
    table = input_table(Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3), Quantization(1 / 127.5, -1), INT8)
    assert table[:, 0].tolist() == list(range(-128, 128))


def test_dequantizing_does_not_overflow():
    assert dequantize(np.int8([-128]), Quantization(1.0, 127)).tolist() == [-255]
    assert dequantize(np.uint8([0]), Quantization(1.0, 255)).tolist() == [-255]


@settings(deadline=None)
@given(scale=st.floats(1e-4, 10), zero=st.integers(-128, 127), dtype=st.sampled_from([INT8, UINT8]))
def test_every_integer_survives_the_round_trip(scale, zero, dtype):
    quantization = Quantization(scale, zero + (128 if dtype == UINT8 else 0))
    every = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    np.testing.assert_array_equal(quantize(dequantize(every, quantization), quantization, dtype), every)


@settings(deadline=None)
@given(value=st.floats(-12, 12), scale=st.floats(0.1, 1))
def test_quantizing_is_off_by_half_a_step_at_most(value, scale):
    quantization = Quantization(scale, 0)
    assert abs(dequantize(quantize(np.float32([value]), quantization, INT8), quantization)[0] - value) <= scale * 0.501


SPECS = {
    'usual': Preprocessing(), 'ImageNet, each channel its own': Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    'Caffe': Preprocessing(color_order='bgr', mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)),
    '0 to 1': Preprocessing(mean=(0.0,) * 3, std=(255.0,) * 3)}


@pytest.mark.parametrize('spec', SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(('dtype', 'quantization'), [
    (INT8, Quantization(0.0078431377, -1)), (INT8, Quantization(0.0186584, -14)), (UINT8, Quantization(0.0186584, 114)), (INT8, Quantization(1.0, 0)),
    (np.dtype(np.float32), Quantization(0.0, 0))], ids=['int8', 'int8 wide', 'uint8', 'int8 unit', 'float32'])
def test_the_table_is_normalizing_and_quantizing_for_every_pixel_value(spec, dtype, quantization):
    """Bit by bit: the frames that calibration saw as floats are the frames that the model gets as integers."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)  # the same grey in each channel, so the order does not matter
    real = normalize(ramp, spec)
    expected = real if dtype == np.float32 else quantize(real, quantization, dtype)
    table = input_table(spec, quantization, dtype)
    assert table.dtype == dtype
    np.testing.assert_array_equal(table, expected)


def test_an_integer_input_without_a_scale_is_refused():
    with pytest.raises(ModelError, match='input is int8 but its scale is 0.0, expected above 0'):
        input_table(Preprocessing(), Quantization(0.0, 0), INT8)
