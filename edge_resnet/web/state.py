"""What the dashboard shows: the newest of everything together with its age, and the last five minutes second by second. Clock injected."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_resnet.pipeline.drift import MAX_CAST_PERCENT, MAX_LEVELS, MIN_SHARPNESS_PERCENT
from edge_resnet.pipeline.latency import DROPS, LOST, OVERWRITTEN, QUANTILES, SLICES, SUPERSEDED, FrameLatency, StageJoiner, percentile, percentiles

HISTORY_S = 300
MAX_STATUSES, MAX_TEXT = 100, 300  # /diagnostics is open to everybody
APART_S = 0.5  # at least, of two reports, for what came between them to make a rate
HOPS = {  # node that counts -> (hop, its rate, what it missed)
    'camera': ('source → camera', 'Frame rate (Hz)', (OVERWRITTEN,)),
    'preprocess': ('camera → preprocess', 'Input rate (Hz)', (SUPERSEDED, LOST)),
    'inference': ('preprocess → inference', 'Input rate (Hz)', (SUPERSEDED, LOST)),
    'actuator': ('inference → actuator', 'Input rate (Hz)', (SUPERSEDED, LOST)),
}
FLAGS = ('Under voltage', 'Frequency capped', 'Throttled', 'Soft temperature limit')  # as thermal_monitor's diagnostics name them
DRIFTS = {'Calibration drift (levels)': MAX_LEVELS, 'Calibration colour drift (%)': MAX_CAST_PERCENT,
          'Sharpness of calibration (%)': MIN_SHARPNESS_PERCENT}


def number(text: str | None) -> float | None:
    """The finite number in a diagnostic value, else None: unknown is never shown as fine."""
    try:
        value = float(text or '')
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class Status:
    """The newest diagnostic of one node, and how fast it misses frames."""

    def __init__(self, level: int, message: str, values: Mapping[str, str], made_s: float, heard_s: float, before: Status | None) -> None:
        self.level, self.message, self.heard_s = level, message[:MAX_TEXT], heard_s
        self.values = {key[:MAX_TEXT]: value[:MAX_TEXT] for key, value in list(values.items())[:MAX_STATUSES]}
        missed = sum(number(self.values.get(name)) or 0.0 for name in DROPS)
        self.counted, self.missed_hz = (made_s, missed), 0.0
        if before is not None:
            passed_s, more = made_s - before.counted[0], missed - before.counted[1]
            if 0 <= passed_s < APART_S and more >= 0:  # one drop in a millisecond is no thousand a second: counted with the next report
                self.counted, self.missed_hz = before.counted, before.missed_hz
            elif passed_s > 0:
                self.missed_hz = max(0.0, more) / passed_s

    @property
    def state(self) -> str:
        """The lifecycle state, as far as the message tells: nodes of others are active whenever they speak."""
        return next((name for name in ('inactive', 'unconfigured') if name in self.message.split('; ')), 'active')


class LiveState:
    """Takes what the topics say, gives what the page needs. Ages and times are seconds of ``clock``, a steady one."""

    def __init__(self, namespace: str = '', clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix, self._clock, self._begun = f'{namespace.strip("/")}/'.lstrip('/'), clock, clock()
        self._joiner = StageJoiner(window=300, clock=clock)
        self._latest: FrameLatency | None = None
        self._second: list[FrameLatency] = []
        self._top: list[tuple[str, float]] = []
        self._on: bool | None = None
        self._heard: dict[str, float] = {}
        self._statuses: dict[str, Status] = {}
        self._quantiles: dict[str, list[float]] = {}
        self._rate_hz = 0.0
        self._second_at, self._seconds = self._begun, 0
        self.points: list[dict[str, Any]] = []  # one a second, oldest first; read by another thread, which takes a slice

    # What comes in. ---------------------------------------------------------------------------------------------------

    def result(self, top: Sequence[tuple[str, float]]) -> None:
        """A classification, best label first."""
        self._top, self._heard['result'] = list(top[:5]), self._clock()

    def stage(self, source: str, stamp_ns: int, time_ns: int) -> None:
        latency = self._joiner.add(source, stamp_ns, time_ns)
        if latency is not None:
            self._latest, self._heard['latency'] = latency, self._clock()
            self._second.append(latency)

    def actuator(self, on: bool) -> None:
        self._on = on

    def diagnostic(self, name: str, level: int, message: str, values: Mapping[str, str], made_s: float) -> None:
        """What a node said at ``made_s`` of its own clock: several may be heard at once that it said a second apart."""
        name = name.removeprefix(self._prefix)[:MAX_TEXT]
        if name in self._statuses or len(self._statuses) < MAX_STATUSES:
            self._statuses[name] = Status(level, message, values, made_s, self._clock(), self._statuses.get(name))

    def tick(self) -> None:
        """Let time pass: each whole second becomes a point of the history."""
        now = self._clock()
        if now - self._second_at < 1.0:
            return
        self._joiner.settle()
        frames, self._second, passed_s, self._second_at = self._second, [], now - self._second_at, now
        self._rate_hz = len(frames) / passed_s
        recent = list(self._joiner.recent)
        self._quantiles = {name: percentiles([getattr(frame, name) for frame in recent], [*QUANTILES.values()])
                           for name in SLICES} if frames else self._quantiles
        thermal = self._fresh('thermal_monitor')
        self._seconds += 1
        self.points.append({
            'n': self._seconds, 't': now - self._begun, 'rate': self._rate_hz,
            'ms': [percentile([getattr(frame, name) for frame in frames], 50) for name in SLICES[:3]] if frames else None,
            'worst': max(frame.total for frame in frames) if frames else None,
            'drops': {node: status.missed_hz for node in HOPS if (status := self._fresh(node)) is not None},
            'celsius': number(thermal.values.get('Temperature (C)')) if thermal else None,
            'mhz': number(thermal.values.get('Clock (MHz)')) if thermal else None,
            'simulated': bool(thermal and thermal.values.get('Simulated') == '1'),
            'flags': [flag for flag in FLAGS if thermal and thermal.values.get(flag) == '1']})
        del self.points[:-HISTORY_S]

    # What goes out. ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything but the history, as JSON takes it; ``age_s`` is None for what was never heard."""
        statuses = self._statuses
        actuator, thermal, inference = (statuses.get(name) for name in ('actuator', 'thermal_monitor', 'inference'))
        latest = self._latest
        return {
            't': self._clock() - self._begun, 'point': self.points[-1] if self.points else None,
            'result': {'age_s': self._age('result'), 'top': self._top},
            'latency': {'age_s': self._age('latency'), 'rate': self._rate_hz, 'clock_faults': sum(self._joiner.faults.values()),
                        'frames': len(self._joiner.recent), 'quantiles': self._quantiles,
                        'latest': latest and {name: getattr(latest, name) for name in SLICES}},
            'hops': [self._hop(node) for node in HOPS if node in statuses],
            'thermal': {**self._seen(thermal), 'celsius': self._value(thermal, 'Temperature (C)'), 'mhz': self._value(thermal, 'Clock (MHz)'),
                        'load': self._value(thermal, 'Load (1 min)'), 'memory_mb': self._value(thermal, 'Memory available (MB)'),
                        'simulated': self._value(thermal, 'Simulated'), 'flags': {flag: self._value(thermal, flag) for flag in FLAGS}},
            'actuator': {**self._seen(actuator), 'on': self._on, 'told_on': self._value(actuator, 'On'), 'armed': self._value(actuator, 'Armed'),
                         'stopped': self._value(actuator, 'Stopped'), 'message': actuator.message if actuator else ''},
            'drift': {**self._seen(inference), 'values': [[name, self._value(inference, name), limit] for name, limit in DRIFTS.items()]},
            'nodes': [{'name': name, 'level': status.level, 'state': status.state, 'message': status.message, **self._seen(status),
                       'values': status.values} for name, status in sorted(statuses.items(), key=self._order)],
        }

    def _hop(self, node: str) -> dict[str, Any]:
        name, rate, missed = HOPS[node]
        status = self._statuses[node]
        return {'hop': name, **self._seen(status), 'rate': self._value(status, rate), 'missed_hz': status.missed_hz,
                'missed': [[key, self._value(status, key)] for key in missed], 'refused': self._value(status, 'Input refused')}

    @staticmethod
    def _order(entry: tuple[str, Status]) -> tuple[int, str]:
        flow = (*HOPS, 'thermal_monitor', 'latency_monitor')
        return flow.index(entry[0]) if entry[0] in flow else len(flow), entry[0]

    def _seen(self, status: Status | None) -> dict[str, float | None]:
        return {'age_s': self._clock() - status.heard_s if status else None}

    def _fresh(self, node: str) -> Status | None:
        status = self._statuses.get(node)
        return status if status and self._clock() - status.heard_s < 3.0 else None

    def _age(self, name: str) -> float | None:
        return self._clock() - self._heard[name] if name in self._heard else None

    @staticmethod
    def _value(status: Status | None, key: str) -> float | None:
        return number(status.values.get(key)) if status else None
