"""Whether the camera still looks like the calibration frames: what the model sees now against the statistics in its card. Pure NumPy.

The INT8 ranges were taken from the calibration frames, so a camera that shows something else is classified worse without any error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline import calibration

COLORS = ('red', 'green', 'blue')
PERIOD_S = 0.5  # a frame is looked at twice a second
SPAN = 30  # frames that the exponential window is worth
MIN_FRAMES = 10  # before that nothing is said
SUSTAINED_S = 5.0
SAMPLED_PIXELS = 12_000  # of a frame at most, about

# Measured, 300 windows each: the card from 200 traffic-light training photos composed into 640x480 frames, the live frames from the
# 297 test photos; windows of 30 / 10 / 3 / 1 different scenes. The share of windows out of bounds, and median (p5 to p95) at 10 scenes:
#   clean                   0, 0.3, 10, 20 %     levels 11 (4 to 24)    colours 5 (1 to 13) %    sharpness 98 (80 to 118) %
#   darkened x0.4           100, 100, 100, 97 %  levels 58 (49 to 65)   (x0.6: 30 to 45 % of the windows)
#   red x1.3, blue x0.7     100, 100, 100, 99 %  colours 80 (67 to 98) %   (x1.2, x0.8: 100, 99, 91, 85 % of the windows)
#   Gaussian blur of 4 px   100 % at all         sharpness 17 (15 to 19) %   (2 px: 34 %, horizontal motion over 21 px: 18 %)
# A street video, calibrated on its first half, second half live: clean none, x0.4, colours as above and 4 px all windows. So a camera
# that stands still before a scene unlike most of its calibration frames is a false alarm at times.
MAX_LEVELS, MAX_CAST_PERCENT, MIN_SHARPNESS_PERCENT = 40.0, 30.0, 50.0

LEVELS = 256 / calibration.BINS
CENTRES = np.arange(calibration.BINS) * LEVELS + (LEVELS - 1) / 2


@dataclass(frozen=True)
class Drift:
    """``levels``: how far the values of a channel would have to be moved on average to have the calibration frames' histogram (1-D
    Wasserstein distance), mean of the channels, of 255 levels. ``cast_percent``: how much more the strongest channel has gained than
    the weakest one, by their means. ``sharpness_percent``: of the calibration frames' median; None when the card doesn't tell it."""

    levels: float
    cast_percent: float
    sharpness_percent: float | None

    def exceeded(self) -> list[str]:
        """What is out of bounds, with value and bound; empty when nothing is."""
        found = []
        if self.levels > MAX_LEVELS:
            found.append(f'brightness is off by {self.levels:.0f} levels, expected at most {MAX_LEVELS:.0f}')
        if self.cast_percent > MAX_CAST_PERCENT:
            found.append(f'colours are off by {self.cast_percent:.0f} %, expected at most {MAX_CAST_PERCENT:.0f} %')
        if self.sharpness_percent is not None and self.sharpness_percent < MIN_SHARPNESS_PERCENT:
            found.append(f'sharpness is {self.sharpness_percent:.0f} %, expected at least {MIN_SHARPNESS_PERCENT:.0f} %')
        return found


class DriftMonitor:
    """Keeps an exponentially weighted histogram and sharpness of the frames it is shown, and compares them with the card's."""

    def __init__(self, histograms: np.ndarray, sharpness: float | None = None) -> None:
        """``histograms``: (3, 32) shares, rows red, green, blue; ``sharpness``: median of the calibration frames'."""
        self._expected, self._expected_sharpness = histograms / histograms.sum(axis=1, keepdims=True), sharpness
        self.reset()

    @classmethod
    def of_card(cls, card: Mapping[str, Any], where: str) -> DriftMonitor | None:
        """For the calibration in ``card``, None when it has no histograms; ModelError names ``where`` and what is wrong with them."""
        calibrated = card.get('calibration')
        if not isinstance(calibrated, Mapping) or calibrated.get('histograms') is None:
            return None
        sharpness = calibrated.get('sharpness')
        try:
            histograms = np.array([calibrated['histograms'][color] for color in COLORS], np.float64)
            sums = histograms.sum(axis=1)
            good = histograms.shape == (3, calibration.BINS) and np.isfinite(sums).all() and histograms.min() >= 0 and sums.min() > 0
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise ModelError(f'{where}: calibration.histograms are not understood, expected {calibration.BINS} shares each for {", ".join(COLORS)}')
        if sharpness is not None and not (isinstance(sharpness, int | float) and 0 < sharpness < math.inf):
            raise ModelError(f'{where}: calibration.sharpness is {sharpness!r}, expected a number above 0')
        return cls(histograms, sharpness)

    def reset(self) -> None:
        """Forget all frames."""
        self._counts, self._log_sharpness, self._weight, self._frames = np.zeros_like(self._expected), 0.0, 0.0, 0
        self._due_s = -math.inf
        self._exceeded_since_s: float | None = None
        self.sustained = False  # out of bounds for SUSTAINED_S or longer without a break
        self.drift: Drift | None = None  # unknown until MIN_FRAMES were seen

    def due(self, now_s: float) -> bool:
        """Whether a frame should be shown at ``now_s``, of any steady clock."""
        return now_s >= self._due_s

    def see(self, frame: np.ndarray, now_s: float) -> None:
        """Take ``frame``, (H, W, 3) uint8 RGB of the network's size, into account. About 0.5 ms at 224x224."""
        self._due_s = now_s + PERIOD_S
        step = max(1, math.ceil(math.sqrt(frame.shape[0] * frame.shape[1] / SAMPLED_PIXELS)))
        pixels = frame[::step, ::step].reshape(-1, 3) >> 3
        counts = np.stack([np.bincount(pixels[:, channel], minlength=calibration.BINS) for channel in range(3)]) / len(pixels)
        keep = 1 - 2 / (SPAN + 1)
        self._weight = keep * self._weight + 1
        self._counts = keep * self._counts + counts
        self._log_sharpness = keep * self._log_sharpness + math.log(max(calibration.sharpness(frame), 0.01))
        self._frames += 1
        if self._frames < MIN_FRAMES:
            return
        self.drift = self._compare(self._counts / self._weight, math.exp(self._log_sharpness / self._weight))
        if not self.drift.exceeded():
            self._exceeded_since_s = None
        elif self._exceeded_since_s is None:
            self._exceeded_since_s = now_s
        self.sustained = self._exceeded_since_s is not None and now_s - self._exceeded_since_s >= SUSTAINED_S

    def _compare(self, histograms: np.ndarray, sharpness: float) -> Drift:
        levels = np.abs(np.cumsum(histograms - self._expected, axis=1)).sum(axis=1).mean() * LEVELS
        gains = (histograms @ CENTRES) / (self._expected @ CENTRES)
        share = 100 * sharpness / self._expected_sharpness if self._expected_sharpness else None
        return Drift(float(levels), 100 * float(gains.max() / gains.min() - 1), share)
