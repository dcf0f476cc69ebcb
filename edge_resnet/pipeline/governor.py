"""Lowers the rate of inference just enough that the board stays below its throttle point, so that latency keeps to what it is when cool.

A Pi that throttles makes every frame slow, by half and more, and at moments of its own choice; one that infers less often makes none slow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

HORIZON_S = 30.0  # how far the slope is drawn out
SLOPE_S = 20.0  # over which the slope is taken; a Pi's sensor has steps of half a degree
GAIN = 0.005  # share of the rate per K and s. A bare Pi 4 (37 K from idle to full load, 120 s) is damped by 0.7 with it, a cooled one by more
LEAST = 0.1  # the share that is always left
ABSURD_C = (-60.0, 200.0)  # no board is at a temperature outside
STALE_S = 10.0  # a temperature that has not come for so long: as without a governor


class Governor:
    """``share``, the part of its time that inference may take, follows temperature and slope so that they end at ``limit_c``; ``allows`` rests
    after each inference accordingly. At 1 it never does."""

    def __init__(self, limit_c: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_c, self._clock = limit_c, clock
        self._seen: deque[tuple[float, float]] = deque(maxlen=256)
        self._next_s = 0.0
        self.share = 1.0
        self.held_back = 0

    def see(self, temperature_c: float) -> None:
        """A new temperature, about one a second; one that can't be is passed over."""
        if not ABSURD_C[0] <= temperature_c <= ABSURD_C[1]:
            return
        now = self._clock()
        passed_s = min(STALE_S, now - self._seen[-1][0]) if self._seen else 0.0
        self._seen.append((now, temperature_c))
        while now - self._seen[0][0] > SLOPE_S:
            self._seen.popleft()
        times, temperatures = np.array(self._seen).T
        slope = float(np.polyfit(times - now, temperatures, 1)[0]) if len(times) > 2 else 0.0
        self.share = float(np.clip(self.share + GAIN * passed_s * (self._limit_c - temperature_c - HORIZON_S * slope), LEAST, 1.0))

    def allows(self) -> bool:
        """Whether a frame may be inferred now."""
        now = self._clock()
        if self._seen and now - self._seen[-1][0] > STALE_S:
            self.share = 1.0
        self.held_back += now < self._next_s
        return now >= self._next_s

    def rest_s(self) -> float:
        """How long it takes until a frame may be inferred."""
        return max(0.0, self._next_s - self._clock())

    def worked(self, busy_s: float) -> None:
        """An inference of ``busy_s`` has just ended."""
        self._next_s = self._clock() + busy_s * (1 / self.share - 1)
