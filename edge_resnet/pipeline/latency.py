"""Joins what the stages report about a frame, by the frame's capture stamp, into latencies of that same frame."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CAPTURED, FRAME_READY, INFERENCE_STARTED = 'captured', 'frame_ready', 'inference_started'
INFERENCE_DONE, ACTUATOR_COMMANDED = 'inference_done', 'actuator_commanded'
STAGES = (CAPTURED, FRAME_READY, INFERENCE_STARTED, INFERENCE_DONE, ACTUATOR_COMMANDED)  # in the order a frame meets them
SLICES = ('camera_to_frame_ready', 'frame_to_inference_done', 'inference_to_actuator', 'total')
ABSURD_MS = 60_000.0  # no frame is a minute old: that is a clock, not a latency


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0 to 100), linear between neighbours; NaN when there are no values."""
    return float(np.percentile(values, q)) if len(values) else float('nan')


@dataclass(frozen=True)
class FrameLatency:
    """One frame's way through the pipeline, all in ms; the three slices add up to ``total``."""

    stamp_ns: int
    camera_to_frame_ready: float
    frame_to_inference_done: float
    inference_to_actuator: float
    total: float


class StageJoiner:
    """Collects stage records until a frame is through. Remembers ``capacity`` unfinished frames, the oldest go first.

    ``clock_faults`` counts frames with a negative or absurd slice; they are reported, never averaged in. ``last_stage``
    counts, for frames that were given up, the stage that they got to.
    """

    def __init__(self, capacity: int = 256, window: int = 300) -> None:
        self._open: OrderedDict[int, dict[str, int]] = OrderedDict()
        self._done: deque[int] = deque(maxlen=capacity)
        self._capacity = capacity
        self.recent: deque[FrameLatency] = deque(maxlen=window)
        self.clock_faults = 0
        self.last_stage: Counter[str] = Counter()

    def add(self, source: str, stamp_ns: int, time_ns: int) -> FrameLatency | None:
        """Stage ``source`` finished the frame of ``stamp_ns`` at ``time_ns``; the frame's latency once it is complete."""
        if source not in STAGES or stamp_ns in self._done:
            return None
        times = self._open.setdefault(stamp_ns, {})
        times[source] = time_ns
        if all(stage in times for stage in (FRAME_READY, INFERENCE_DONE, ACTUATOR_COMMANDED)):
            del self._open[stamp_ns]
            self._done.append(stamp_ns)
            return self._complete(stamp_ns, times)
        while len(self._open) > self._capacity:
            _, left = self._open.popitem(last=False)
            self.last_stage[max(left, key=STAGES.index)] += 1
        return None

    def _complete(self, stamp_ns: int, times: dict[str, int]) -> FrameLatency | None:
        marks = (stamp_ns, times[FRAME_READY], times[INFERENCE_DONE], times[ACTUATOR_COMMANDED])
        slices = [(later - earlier) / 1e6 for earlier, later in pairwise(marks)]
        if stamp_ns <= 0 or min(slices) < 0 or max(slices) > ABSURD_MS:
            self.clock_faults += 1
            return None
        latency = FrameLatency(stamp_ns, slices[0], slices[1], slices[2], (marks[3] - stamp_ns) / 1e6)
        self.recent.append(latency)
        return latency
