"""Joins what the stages report about a frame, by the frame's capture stamp, into latencies of that same frame."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

CAPTURED, PREPROCESS_STARTED, FRAME_READY = 'captured', 'preprocess_started', 'frame_ready'
INFERENCE_STARTED, INFERENCE_DONE = 'inference_started', 'inference_done'
ACTUATOR_STARTED, ACTUATOR_COMMANDED = 'actuator_started', 'actuator_commanded'
# In the order a frame meets them; and what passes before each of them: work in a node, or the wait for the next one.
STAGES = (CAPTURED, PREPROCESS_STARTED, FRAME_READY, INFERENCE_STARTED, INFERENCE_DONE, ACTUATOR_STARTED, ACTUATOR_COMMANDED)
PARTS = ('capture', 'wait_for_preprocess', 'preprocess', 'wait_for_inference', 'inference', 'wait_for_actuator', 'actuator')
SLICES = ('camera_to_frame_ready', 'frame_to_inference_done', 'inference_to_actuator', 'total')
ENDS = (FRAME_READY, INFERENCE_DONE, ACTUATOR_COMMANDED)  # of the three slices
# The keys under which nodes tell on /diagnostics what they missed, and what that is called here. A frame that nobody asked for is no drop.
SUPERSEDED, LOST, OVERWRITTEN = 'Input superseded', 'Input lost in transport', 'Overwritten before publishing'
DROPS = {SUPERSEDED: 'superseded', LOST: 'lost', OVERWRITTEN: 'overwritten'}
NOT_ASKED = 'Not asked for'
ABSURD_MS = 60_000.0  # no frame is a minute old: that is a clock, not a latency
SETTLE_S = 5.0  # after which a frame that is not through is given up
JUMP_S = 0.5  # of a clock against the steady one
QUANTILES = {'p50': 50.0, 'p95': 95.0, 'p99': 99.0, 'max': 100.0}


def percentiles(values: Sequence[float] | np.ndarray, qs: Sequence[float]) -> list[float]:
    """The percentiles ``qs`` (0 to 100), linear between neighbours; NaN when there are no values."""
    return [float(value) for value in np.percentile(values, qs)] if len(values) else [math.nan] * len(qs)


def percentile(values: Sequence[float] | np.ndarray, q: float) -> float:
    """The ``q``-th percentile (0 to 100), linear between neighbours; NaN when there are no values."""
    return percentiles(values, (q,))[0]


class FrameLatency(NamedTuple):
    """One frame's way through the pipeline, all in ms. The three slices add up to ``total``, the parts to the slices but for rounding;
    a part whose stages were not reported (a camera driver of another's) is NaN. ``frame_age_at_inference`` is from capture to its start."""

    stamp_ns: int
    camera_to_frame_ready: float
    frame_to_inference_done: float
    inference_to_actuator: float
    total: float
    frame_age_at_inference: float
    capture: float
    wait_for_preprocess: float
    preprocess: float
    wait_for_inference: float
    inference: float
    wait_for_actuator: float
    actuator: float


METRICS = FrameLatency._fields[1:]


class StageJoiner:
    """Collects stage records until a frame is through or, after SETTLE_S of ``clock``, given up; remembers ``capacity`` frames at most.

    ``ended`` counts frames by the last stage that they got to, once each: ACTUATOR_COMMANDED those that got through, at once, the others when
    they are given up. ``faults`` counts by name the frames whose times can't be true: they are reported, never averaged in. ``late`` are records
    of frames that were given up, ``busy_ns`` and ``results`` what inference did.
    """

    def __init__(self, capacity: int = 4096, window: int = 300, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self.recent: deque[FrameLatency] = deque(maxlen=window)
        self.ended: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.late = self.busy_ns = self.results = 0
        self.forget()

    def forget(self) -> None:
        """Drop the frames that are on their way: their times are of a clock that has jumped since."""
        self._open: OrderedDict[int, tuple[float, dict[str, int]]] = OrderedDict()
        self._settled: OrderedDict[int, None] = OrderedDict()

    def add(self, source: str, stamp_ns: int, time_ns: int) -> FrameLatency | None:
        """Stage ``source`` finished the frame of ``stamp_ns`` at ``time_ns``; the frame's latency once it is complete."""
        if source not in STAGES:
            return None
        if stamp_ns <= 0:
            self.faults['zero stamp'] += source == FRAME_READY
            return None
        if stamp_ns in self._settled:
            self.late += 1
            return None
        _, times = self._open.setdefault(stamp_ns, (self._clock(), {}))
        if source in times:
            return None
        times[source] = time_ns
        if source == INFERENCE_DONE:
            self.results += 1
            self.busy_ns += max(0, time_ns - times.get(INFERENCE_STARTED, time_ns))
        if source in ENDS and all(stage in times for stage in ENDS):
            self.ended[ACTUATOR_COMMANDED] += 1
            return self._complete(stamp_ns, times)
        return None

    def settle(self, at_once: bool = False) -> None:
        """Give up the frames that have had their time, with ``at_once`` all, and those over ``capacity``; call it now and then."""
        until = math.inf if at_once else self._clock() - SETTLE_S
        while self._open and (len(self._open) > self._capacity or next(iter(self._open.values()))[0] < until):
            stamp_ns, (_, times) = self._open.popitem(last=False)
            if not times.keys() >= {*ENDS}:  # which was counted already
                self.ended[max(times, key=STAGES.index)] += 1
            self._settled[stamp_ns] = None
        while len(self._settled) > self._capacity:
            self._settled.popitem(last=False)

    def _complete(self, stamp_ns: int, times: dict[str, int]) -> FrameLatency | None:
        marks = [stamp_ns, *(times.get(stage) for stage in STAGES)]
        parts = [(later - earlier) / 1e6 if earlier is not None and later is not None else math.nan for earlier, later in pairwise(marks)]
        ready, done, commanded = ((later - earlier) / 1e6 for earlier, later in pairwise((stamp_ns, *(times[stage] for stage in ENDS))))
        known = (*zip(PARTS, parts, strict=True), *zip(SLICES, (ready, done, commanded), strict=False))
        negative = next((f'negative {name}' for name, value in known if value < 0), '')
        if negative or ready + done + commanded > ABSURD_MS:
            self.faults[negative or 'older than a minute'] += 1
            return None
        age = (times[INFERENCE_STARTED] - stamp_ns) / 1e6 if INFERENCE_STARTED in times else math.nan
        latency = FrameLatency(stamp_ns, ready, done, commanded, ready + done + commanded, age, *parts)
        self.recent.append(latency)
        return latency


class LatencyStatistics:
    """Percentiles of every metric: exact over the last ``window_s`` (of at most 10,000 frames), and since the start in buckets 2 % wide, so
    to 1 %. 90 kB whatever the number of frames. (The hdrhistogram package does no better in this range and is on no apt index.)"""

    LEAST_MS, GROWTH, MOST = 1e-3, math.log(1.02), 10_000

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._clock = window_s, clock
        self._window: deque[tuple[float, np.ndarray]] = deque()  # (when, frames x METRICS) as they were added
        self._held = 0  # frames in it
        self._counts = np.zeros((len(METRICS), 2 + int(math.log(ABSURD_MS / self.LEAST_MS) / self.GROWTH)), np.int64)
        self._max = np.full(len(METRICS), np.nan)

    def add(self, frames: Sequence[FrameLatency]) -> None:
        if not frames:
            return
        now, values = self._clock(), np.array([frame[1:] for frame in frames])
        self._window.append((now, values))
        self._held += len(values)
        while self._held > self.MOST:
            self._forget_oldest()
        self._max = np.fmax(self._max, np.fmax.reduce(values))
        rows, known = np.broadcast_to(np.arange(len(METRICS)), values.shape), ~np.isnan(values)
        buckets = (np.log(np.maximum(values[known], self.LEAST_MS) / self.LEAST_MS) / self.GROWTH).astype(int)
        np.add.at(self._counts, (rows[known], buckets), 1)

    def window(self) -> dict[str, list[float]]:
        """Metric -> QUANTILES of the window, in ms."""
        while self._window and self._clock() - self._window[0][0] > self._window_s:
            self._forget_oldest()
        table = np.concatenate([np.empty((0, len(METRICS))), *(values for _, values in self._window)])
        if len(table) and not np.isnan(table).any():  # all of them at once, which is several times as quick
            return dict(zip(METRICS, np.percentile(table, [*QUANTILES.values()], axis=0).T.tolist(), strict=True))
        return {name: percentiles(column[~np.isnan(column)], [*QUANTILES.values()]) for name, column in zip(METRICS, table.T, strict=True)}

    def _forget_oldest(self) -> None:
        self._held -= len(self._window.popleft()[1])

    def since_start(self) -> dict[str, list[float]]:
        """Metric -> QUANTILES since the start, in ms."""
        result = {}
        for name, counts, most in zip(METRICS, self._counts, self._max, strict=True):
            sums, found = counts.cumsum(), []
            for q in QUANTILES.values():
                bucket = int(np.searchsorted(sums, max(1, math.ceil(q / 100 * sums[-1]))))
                middle = self.LEAST_MS * math.exp((bucket + 0.5) * self.GROWTH)
                found.append(math.nan if not sums[-1] else float(most) if q == 100 else min(middle, float(most)))
            result[name] = found
        return result


class ClockWatch:
    """Tells when a clock jumped: the ROS clock against the steady one or, for a simulated clock, which runs as it likes, backwards."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def jump_s(self, now_ns: int, steady_s: float, simulated: bool) -> float:
        """By how much the clock jumped since the last call, s; 0 when it did not."""
        last, self._last = self._last, (now_ns, steady_s)
        if last is None:
            return 0.0
        passed_s = (now_ns - last[0]) / 1e9
        jump_s = min(0.0, passed_s) if simulated else passed_s - (steady_s - last[1])
        return jump_s if abs(jump_s) > (0 if simulated else JUMP_S) else 0.0
