"""What a set of calibration frames covers: histograms, brightness range, near duplicates. Pure NumPy.

INT8 ranges come from these frames, so what they leave out is clipped or blurred at run time. Frames are (H, W, 3) uint8
RGB of the network's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 32
THUMBNAIL = 8
ALIKE_LEVELS = 3.0  # sensor noise averages out in a thumbnail's cells to well below 1; a hand-width's move gives 5 and more
MIN_DISTINCT, ENOUGH_DISTINCT = 20, 60  # TFLite's guide asks for 100 or so; with 60 the traffic-light ResNet50 lost nothing
DARK_LEVEL, BRIGHT_LEVEL = 85, 170  # thirds of the range; frames at a tenth of their brightness cost 25 points of accuracy
MAX_CLIPPED_SHARE = 0.25
MAX_ALIKE_SHARE = 0.5
SHARPNESS_STEP = 8  # every 8th row and column is enough


@dataclass(frozen=True)
class FrameStatistics:
    """``histograms``: (3, 32), rows red, green, blue, each summing to 1. Brightness is a pixel's mean of its channels,
    0 to 255. ``clipped_share``: of all channel values, those that are 0 or 255. ``distinct``: frames left without near duplicates.
    ``sharpness``: the median of theirs."""

    count: int
    distinct: int
    histograms: np.ndarray
    brightness_mean: float
    brightness_std: float
    brightness_p1: float
    brightness_p99: float
    clipped_share: float
    sharpness: float


def statistics(frames: Sequence[np.ndarray]) -> FrameStatistics:
    """Pooled over all pixels of all ``frames``, of which there must be one or more."""
    values, brightness = np.zeros((3, 256)), np.zeros(256)
    for frame in frames:
        values += [np.bincount(frame[..., channel].ravel(), minlength=256) for channel in range(3)]
        brightness += np.bincount(np.rint(frame.mean(axis=-1)).astype(np.uint8).ravel(), minlength=256)
    levels, share = np.arange(256), brightness / brightness.sum()
    mean = float(share @ levels)
    low, high = (float(np.searchsorted(share.cumsum(), part)) for part in (0.01, 0.99))
    return FrameStatistics(
        len(frames), len(distinct(thumbnail(frame) for frame in frames)), values.reshape(3, BINS, -1).sum(axis=2) / values.sum(axis=1, keepdims=True),
        mean, float(np.sqrt(share @ (levels - mean) ** 2)), low, high, float(values[:, [0, 255]].sum() / values.sum()),
        float(np.median([sharpness(frame) for frame in frames])))


def sharpness(frame: np.ndarray) -> float:
    """How fine the finest detail of ``frame`` is: the mean square of the second differences of green over that of the first ones,
    along rows and along columns, the smaller of both, since a camera that moves blurs in one direction only.

    Contrast and brightness cancel out. White noise has 3, photographs in focus 0.6 to 2.1, out of focus (Gaussian of 4 px at
    640x480, then resized to 224x224) 0.1 to 0.3, a frame without any detail 0.
    """
    green = frame[..., 1]
    return min(_fineness(green[::SHARPNESS_STEP]), _fineness(green[:, ::SHARPNESS_STEP].T))


def _fineness(lines: np.ndarray) -> float:
    if lines.shape[1] < 3:
        return 0.0
    first = np.diff(lines.astype(np.float32))
    return float(np.square(np.diff(first)).mean() / (np.square(first).mean() + 0.5))  # 0.5: rounding to whole levels is no detail


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """(8, 8, 3) float: the means of an 8x8 grid of cells of ``frame``."""
    for axis in (0, 1):
        edges = np.arange(THUMBNAIL + 1) * frame.shape[axis] // THUMBNAIL
        sizes = np.maximum(np.diff(edges), 1).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))  # an empty cell shows its one neighbour
        frame = np.add.reduceat(frame.astype(np.float64), edges[:-1], axis=axis) / sizes
    return frame


def alike(seen: Sequence[np.ndarray], candidate: np.ndarray) -> bool:
    """Whether one of the thumbnails ``seen`` differs from ``candidate`` by a mean of less than ALIKE_LEVELS of 255 levels."""
    return bool(seen) and np.abs(np.stack(seen) - candidate).mean(axis=(1, 2, 3)).min() < ALIKE_LEVELS


def distinct(thumbnails: Iterable[np.ndarray]) -> list[int]:
    """Indices of the ``thumbnails`` that are no near duplicate of one kept before."""
    kept: list[int] = []
    seen: list[np.ndarray] = []
    for index, candidate in enumerate(thumbnails):
        if not alike(seen, candidate):
            kept.append(index)
            seen.append(candidate)
    return kept


def concerns(frames: FrameStatistics) -> list[str]:
    """What makes these frames poor for calibrating, one sentence with numbers each; empty when nothing does."""
    found = []
    alike = 1 - frames.distinct / frames.count
    if frames.distinct < ENOUGH_DISTINCT:
        found.append(f'few frames: {frames.distinct} different ones of {frames.count}, {ENOUGH_DISTINCT} or more are better')
    if alike > MAX_ALIKE_SHARE:
        found.append(f'frames too alike: {alike:.0%} are within {ALIKE_LEVELS:g} of 255 levels of another, at most {MAX_ALIKE_SHARE:.0%} is better')
    if frames.brightness_p99 < DARK_LEVEL:
        found.append(f'frames too dark: 99 % of the pixels are below {frames.brightness_p99 + 1:.0f} of 255, at least {DARK_LEVEL} is better')
    if frames.brightness_p1 > BRIGHT_LEVEL:
        found.append(f'frames too bright: 99 % of the pixels are above {frames.brightness_p1 - 1:.0f} of 255, at most {BRIGHT_LEVEL} is better')
    if frames.clipped_share > MAX_CLIPPED_SHARE:
        found.append(f'range clipped: {frames.clipped_share:.0%} of the values are 0 or 255, at most {MAX_CLIPPED_SHARE:.0%} is better')
    return found
