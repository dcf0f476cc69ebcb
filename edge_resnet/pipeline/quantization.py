"""Between 8-bit integers and real numbers, with the model's own scale and zero point.

The affine scheme of TFLite's quantization specification: real = scale * (quantized - zero_point).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline.preprocessing import Preprocessing, normalize

TIE = 1e-4  # of a step: what float32 makes of a tie is within it


@dataclass(frozen=True)
class Quantization:
    """Per-tensor ``scale`` and ``zero_point``; a scale of 0 means that the tensor is not quantised."""

    scale: float
    zero_point: int


def quantize(values: np.ndarray, quantization: Quantization, dtype: np.dtype) -> np.ndarray:
    """Real ``values`` to the nearest ``dtype`` (int8 or uint8), ties upwards, saturating at its ends.

    With mean = std = 127.5 and INT8 every grey level is a tie; rounded to even, a quarter of the 256 levels would be lost.
    """
    limits = np.iinfo(dtype)
    steps = np.floor(values / np.float64(quantization.scale) + (0.5 + TIE)) + quantization.zero_point
    return np.clip(steps, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, quantization: Quantization) -> np.ndarray:
    """Quantised ``values`` to float32."""
    return (values.astype(np.float32) - quantization.zero_point) * np.float32(quantization.scale)


def input_table(spec: Preprocessing, quantization: Quantization, dtype: np.dtype) -> np.ndarray:
    """(256, 3) ``dtype``: the network's input for every 8-bit pixel value, per channel in the model's colour order.

    256 values a channel is all that an 8-bit image can hold, so normalising and quantising is one look-up.
    """
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    real = normalize(ramp, Preprocessing(mean=spec.mean, std=spec.std))  # columns are the model's channels already
    if dtype == np.float32:
        return real
    if quantization.scale <= 0:
        raise ModelError(f'input is {np.dtype(dtype).name} but its scale is {quantization.scale}, expected above 0')
    return quantize(real, quantization, dtype)
