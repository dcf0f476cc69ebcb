"""Which frames of a camera are worth calibrating on: spread over time and over content. Pure NumPy."""

from __future__ import annotations

import math

import numpy as np

from edge_resnet.pipeline import calibration

DARK_LEVEL = 32  # of 255; a frame with less than 1 % of its pixels above this shows nothing but noise
BLURRED_SHARE = 0.5  # of the median sharpness of the frames kept; a blur of 4 px at 640x480 leaves 0.1 to 0.3
FLAT_SHARPNESS = 0.05  # below this there is no detail at all, however soft the lens
JUDGE_BLUR_FROM = 5  # frames kept, before which the lens isn't known yet


class Selection:
    """Judges frames, (H, W, 3) uint8 RGB of the network's size, by what has been kept before."""

    def __init__(self) -> None:
        self._thumbnails: list[np.ndarray] = []
        self._sharpness: list[float] = []
        self._last: np.ndarray | None = None

    def judge(self, frame: np.ndarray) -> str:
        """Why to pass ``frame`` over: 'frozen' (no bit differs from the frame judged before), 'dark', 'blurred', 'alike' (a near
        duplicate of one kept); '' for a frame to keep."""
        last, self._last = self._last, frame.copy()
        if last is not None and np.array_equal(last, frame):
            return 'frozen'
        if np.percentile(frame.mean(axis=-1), 99) < DARK_LEVEL:
            return 'dark'
        usual = float(np.median(self._sharpness)) if len(self._sharpness) >= JUDGE_BLUR_FROM else 0.0
        if calibration.sharpness(frame) < max(FLAT_SHARPNESS, BLURRED_SHARE * usual):
            return 'blurred'
        return 'alike' if calibration.alike(self._thumbnails, calibration.thumbnail(frame)) else ''

    def keep(self, frame: np.ndarray) -> None:
        self._thumbnails.append(calibration.thumbnail(frame))
        self._sharpness.append(calibration.sharpness(frame))


class Schedule:
    """When to look for the next of ``count`` frames between ``start_s`` and ``end_s``.

    The time is cut into ``count`` equal slots. A frame is looked for from a random moment in the first half of its slot, so that a
    scene with a rhythm of its own, such as a traffic light, is not always met in the same phase; one that is passed over is made up
    for by the next. Without an end, every ``interval_s``; with one, that is the least time between two looks.
    """

    def __init__(self, count: int, start_s: float, end_s: float | None, interval_s: float, seed: int) -> None:
        self._starts = None
        if end_s is not None:
            slots = np.arange(count) + np.random.default_rng(seed).uniform(0, 0.5, count)
            self._starts = start_s + slots / count * (end_s - start_s)
        self._interval_s, self._looked_s, self._kept = interval_s, -math.inf, 0

    def due(self, now_s: float) -> bool:
        """Whether to look at a frame of ``now_s``."""
        if now_s - self._looked_s < self._interval_s or (self._starts is not None and now_s < self._starts[self._kept]):
            return False
        self._looked_s = now_s
        return True

    def kept(self) -> None:
        """The frame last looked at was kept; there is no asking for more after ``count``."""
        self._kept += 1
