"""Which of a camera's frames to use when only some are wanted: the newest one, or the next where waiting for it gives fresher results."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

WINDOW = 9  # gaps between frames, of which the median is the camera's period
STREAM_S = 0.5  # how long a demand that came too late keeps all frames flowing
SHORT_S = 0.0125  # camera period below which the next frame is not waited for
LOCKED = 1 / 12  # of the period: an age that is as good as none
PATIENCE = 1.5  # camera periods after the last frame; a camera that has not given one by then is not waited for


class FrameDemand:
    """Somebody asks for a frame at a certain time (``ask``), frames arrive (``seen``), and ``wait_s`` tells which to use.

    With a camera period T and results that take S to make, taking the frame at hand instead of the next one spares a wait w but is
    T - w older. Over a long time the mean age of the latest result changes by T - w against w / 2 (renewal reward: while waiting, the
    age is 2 S where its mean is 1.5 S, for S of several T). So a frame is passed over while the next one delays the result by less than
    2/3 T; then the mean age is 1.5 S + T/6, where always taking the newest frame gives 1.5 S + T/2. The waits, 2/9 T in the mean, cost results:
    each per cent of age one per cent of them. With T below SHORT_S, where at most 4 ms of age are to be had, the newest frame is taken.

    That is for frames that are 0 to T old with equal chance. When results take d longer than a multiple of T, for small d, each frame is d older than
    the one before until one is passed over, and that is worth most from sqrt(d T) on: passing over at age a costs a wait of T - a
    once in a / d results, in all a / 2 + d (T - a) / 2 a of mean age, which is least there. Times are seconds of ``clock``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: float | None = None
        self._streams_until = -math.inf
        self._gaps: deque[float] = deque(maxlen=WINDOW)
        self._newest = self._used = math.nan
        self._takes: deque[float] = deque(maxlen=WINDOW)  # from a frame's use, or when it was wanted if it came before, to when the next one is
        self._passes_over_s = math.inf  # frames older than that, for the next one
        self.every = False  # use all frames, whether asked for or not
        self.served = False  # only frames that were asked for arrive: the choice was made where they come from
        self.period_s = 0.0  # of the camera; 0 while it is unknown

    def ask(self, in_s: float) -> None:
        """A frame is wanted in ``in_s``; below 0 the demand comes too late to be met, and all frames are used for a while.

        Of several who ask, the frame for the one who wants it first is everybody's."""
        now, period = self._clock(), self.period_s
        due = now + max(0.0, in_s)
        if period and math.isfinite(self._used):
            self._takes.append(due - self._used)
            usual = median(self._takes)  # less than half of them may be out of the ordinary
            in_step = len(self._takes) > 2 and median(abs(takes - usual) for takes in self._takes) < period / 8
            drift = usual % period if in_step else math.inf
            self._passes_over_s = max(period * LOCKED, math.sqrt(drift * period))
        self._used = math.nan
        self._streams_until = now + STREAM_S if in_s < 0 else -math.inf
        pending = self._due
        self._due = due if pending is None else min(pending, due)  # last: from here on another thread may use a frame

    def seen(self, arrived: float, frames: int = 1) -> None:
        """A frame arrived, the ``frames``-th since the last one that is told here."""
        if arrived > self._newest:
            self._gaps.append((arrived - self._newest) / frames)
            self.period_s = median(self._gaps) if len(self._gaps) > 2 else 0.0
        self._newest = arrived

    def wait_s(self, arrived: float | None = None) -> float:
        """0: use the newest frame, which ``arrived`` then. Otherwise look again after this time, or when another frame arrives.

        Without a frame: the time until one would be of interest, 0 if it is now. Infinite when nobody asks."""
        now, period = self._clock(), self.period_s
        if self.every or now < self._streams_until:
            return 0.0
        due = self._due  # once: another thread may use the frame meanwhile
        if due is None:
            return math.inf
        worth = period - min(period / 3, self._passes_over_s) if period >= SHORT_S and not self.served else 0.0  # of delay, for the next frame
        opens = due + worth - period - now
        if arrived is None:
            return max(0.0, opens)
        patience = arrived + PATIENCE * period - now
        if opens > 0:  # for a later frame, unless none comes
            return max(opens, patience)
        delay = max(due, arrived + period) - max(due, now)
        return patience if delay <= worth and patience > 0 else 0.0

    def expected_s(self) -> float:
        """The time until the frame that will be used, when none is at hand; infinite when nobody asks, the period is not known, or is short."""
        opens, now, period = self.wait_s(), self._clock(), self.period_s
        if period < SHORT_S or math.isinf(opens):
            return math.inf
        return self._newest - now + period * max(1, math.ceil((now + opens - self._newest) / period))

    def used(self) -> None:
        """The frame was used: the demand is met."""
        now, due = self._clock(), self._due
        self._due, self._used = None, now if due is None else max(now, due)
