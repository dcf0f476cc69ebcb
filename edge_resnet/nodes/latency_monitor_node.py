"""Joins the stage records into latencies of the same frame, and tells how they spread, what was dropped where and which clock is wrong."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import Float64, String

from edge_resnet.conversions import stamp_ns
from edge_resnet.hardware.thermal import ThermalReading, TransitionLog
from edge_resnet.nodes.base import ERROR, LATCHED_QOS, OK, WARN, Health, ManagedNode
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.polled import Polled, StageTimes
from edge_resnet.nodes.runner import run
from edge_resnet.nodes.thermal_monitor_node import reading_of
from edge_resnet.pipeline.latency import (
    ACTUATOR_COMMANDED,
    DROPS,
    METRICS,
    PARTS,
    QUANTILES,
    SLICES,
    STAGES,
    ClockWatch,
    FrameLatency,
    LatencyStatistics,
    StageJoiner,
)
from edge_resnet.pipeline.recording import BOARD, Recorder

POLL_S = 0.4  # and a recording is flushed each time
TOPICS = (*SLICES, 'frame_age_at_inference')  # latency/NAME_ms
BOARD_STALE_S = 5.0  # after which the thermal monitor's word counts no more
MAX_NODES, MAX_CONFIGURATION = 100, 100_000  # that are listened to; characters of one's configuration
OUT_OF_SYNC_MS = 50.0  # far above the 1 ms that a record takes, and above what a busy machine makes of that


@dataclass(frozen=True)
class LatencyParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    window_s: float = param(30.0, 'what the sliding percentiles look back on, s', low=1.0, high=3600.0)
    record_to: str = param('', 'folder to record the run into, for latency_report; empty: nothing is recorded')
    record_max_mb: float = param(200.0, 'space for recordings in that folder, MB; the oldest go first', low=1.0, high=1e6)


class LatencyMonitorNode(ManagedNode[LatencyParameters]):
    """Everything is drained by one timer, so that watching a frame costs hardly more than the seven records about it."""

    Parameters = LatencyParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('latency_monitor', **options)
        self._stages: StageTimes | None = None
        self._healths: Polled | None = None
        self._timer: Any = None
        self._topics = {name: self.create_publisher(Float64, f'latency/{name}_ms', 10) for name in TOPICS}
        self._configurations = Polled(self, String, 'configuration', LATCHED_QOS)
        self._ran: dict[str, Any] = {}
        self._recorder: Recorder | None = None
        self._told_recording = ''  # what was logged about it last
        self._board, self._board_s, self._transitions = ThermalReading(), 0.0, TransitionLog()
        self._start_over()
        self._watch, self.jumps, self._told_faults = ClockWatch(), 0, 0
        self._host = {'machine': platform.machine(), 'system': f'{platform.system()} {platform.release()}', 'python': platform.python_version(),
                      **_versions('edge_resnet', 'numpy', 'ai-edge-litert', 'tflite-runtime', 'rclpy')}
        self._jump = ''

    def _start_over(self) -> None:
        self._joiner, self._statistics = StageJoiner(), LatencyStatistics(self.parameters.window_s)
        self._missed: dict[str, int] = {}  # by the nodes' own account
        self._delivery_ms: dict[str, float] = defaultdict(lambda: math.inf)  # of each source, the fastest since the last diagnosis
        self._commanded_ns = 0

    def configure(self) -> None:
        p = self.parameters
        self._start_over()
        self._recorder, self._told_recording = None, ''
        if p.record_to:
            self._recorder = Recorder(Path(p.record_to).expanduser(), round(p.record_max_mb * 1e6))
            self.get_logger().info(f'recording into {p.record_to}')

    def activate(self) -> None:
        self._stages, self._healths = StageTimes(self), Polled(self, DiagnosticArray, '/diagnostics')
        self._watch = ClockWatch()
        self._timer = self.create_timer(POLL_S, self._poll, clock=self._steady)

    def deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
        for polled in (self._stages, self._healths):
            if polled is not None:
                polled.close()
        self._timer = self._stages = self._healths = None

    def cleanup(self) -> None:
        if self._recorder is not None:
            self._joiner.settle(at_once=True)
            self._record(())
            self._recorder.close()
            self._recorder = None

    def _poll(self) -> None:
        stages, healths = self._stages, self._healths  # the main thread takes them away at the end
        if stages is None or healths is None:
            return
        self._check_clock()
        frames = []
        for source, frame_ns, time_ns, info in stages.records():
            latency = self._joiner.add(source, frame_ns, time_ns)
            if latency is not None:
                frames.append(latency)
            if source == ACTUATOR_COMMANDED:
                self._commanded_ns = time_ns
            if info.get('received_timestamp') and info.get('source_timestamp'):
                delivery_ms = (info['received_timestamp'] - info['source_timestamp']) / 1e6
                self._delivery_ms[source] = min(self._delivery_ms[source], delivery_ms)
        self._joiner.settle()
        if time.monotonic() - self._board_s > BOARD_STALE_S:
            self._board = ThermalReading()
        self._statistics.add(frames)
        for array, _ in healths.take():
            for status in array.status:
                self._listen(self._on_health, status, stamp_ns(array.header))
        for message, _ in self._configurations.take():
            self._listen(self._on_configuration, message.data)
        self._publish(frames)
        self._record(frames)

    def _listen(self, understand: Callable[..., None], *what: Any) -> None:
        """What others say may be anything; it must not keep the figures."""
        try:
            understand(*what)
        except Exception as error:
            self.fault('message', f'{understand.__name__.removeprefix("_on_")} message: {type(error).__name__}: {error}')

    def _check_clock(self) -> None:
        simulated = self.get_parameter('use_sim_time').value
        jump_s = self._watch.jump_s(self.now_ns(), time.monotonic(), simulated)
        if jump_s:
            self.jumps += 1
            self._jump = f'the clock jumped by {jump_s:+.3f} s'
            self.get_logger().warning(f'{self._jump}: {"starting over" if simulated else "frames on their way are left out"}')
            self._start_over() if simulated else self._joiner.forget()
            self._event(self.now_ns(), self._jump)

    def _on_health(self, status: DiagnosticStatus, time_ns: int) -> None:
        namespace, _, node = status.name.rpartition('/')
        if namespace != self.get_namespace().strip('/'):
            return
        values = {entry.key: entry.value for entry in status.values}
        missed = {f'{node} {name}': int(values[key]) for key, name in DROPS.items() if key in values}
        if missed.keys() <= self._missed.keys() or len(self._missed) < MAX_NODES:
            self._missed.update(missed)
        if 'Throttled' in values:  # a thermal monitor
            self._board, self._board_s = reading_of(values), time.monotonic()
            for flag, on in self._transitions.update(self._board):
                self._event(time_ns, flag, on=on)
            if self._recorder is not None:
                self._recorder.write('board', time_ns, self._tags())

    def _tags(self) -> dict[str, Any]:
        """The board's state, which every sample goes with."""
        return {**{name: getattr(self._board, name) for name in BOARD}, 'simulated': self._board.simulated}

    def _event(self, time_ns: int, event: str, on: bool | None = None) -> None:
        if self._recorder is not None:
            self._recorder.write('events', time_ns, {'event': event, 'on': on, **self._tags()})

    def _on_configuration(self, text: str) -> None:
        if len(text) > MAX_CONFIGURATION:
            raise ValueError(f'{len(text)} characters, expected at most {MAX_CONFIGURATION}')
        entry = json.loads(text, parse_constant=_refuse)
        if entry['node'] not in self._ran and len(self._ran) >= MAX_NODES:
            raise ValueError(f'of {MAX_NODES} nodes already')
        self._ran[entry['node']] = entry
        if self._recorder is not None:
            self._recorder.describe(self.now_ns(), {'configuration': self._ran, 'host': self._host})

    def _record(self, frames: Sequence[FrameLatency]) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        tags = self._tags()
        for frame in frames:
            known = {name: None if math.isnan(value) else value for name, value in zip(METRICS, frame[1:], strict=True)}
            recorder.write('frames', frame.stamp_ns + round(frame.total * 1e6), {'stamp_ns': frame.stamp_ns, **known, **tags})
        recorder.write('drops', self.now_ns(), {'ended': self._joiner.ended, 'missed': self._missed, 'faults': self._joiner.faults})
        recorder.flush()
        if recorder.error != self._told_recording:
            self._told_recording = recorder.error
            if recorder.error:
                self.get_logger().error(recorder.error)
            else:
                self.get_logger().info(f'recording again, into {recorder.path}')

    def _publish(self, frames: Sequence[FrameLatency]) -> None:
        """Each frame's figures, to whoever listens."""
        for name, publisher in self._topics.items():
            if frames and publisher.get_subscription_count():
                for frame in frames:
                    publisher.publish(Float64(data=getattr(frame, name)))

    def diagnose(self, health: Health) -> None:
        self._poll()  # so that rates are of the second that they are told for
        joiner, window, since_start = self._joiner, self._statistics.window(), self._statistics.since_start()
        p50, _, p99, _ = window['total']
        health.report(OK, 'no frame has come from the camera to the actuator yet' if math.isnan(p50) else f'total p50 {p50:.1f} ms, p99 {p99:.1f} ms')
        self._diagnose_clocks(health)
        self.counts.update({'results': joiner.results - self.counts['results'], 'busy_ns': joiner.busy_ns - self.counts['busy_ns']})
        age_ms = (self.now_ns() - self._commanded_ns) / 1e6
        health.values.update({
            'Result rate (Hz)': self.rate('results'), 'Inference duty (%)': self.rate('busy_ns') / 1e7,
            'Time since last actuation (ms)': age_ms if self._commanded_ns and age_ms >= 0 else 'unknown'})
        for name in METRICS:
            key = name.replace('_', ' ').capitalize()
            for number, q in enumerate(QUANTILES):
                if name not in PARTS or q in ('p50', 'p99'):
                    health.values[f'{key} {q} (ms)'] = _known(window[name][number])
                if name not in PARTS:
                    health.values[f'{key} {q} since start (ms)'] = _known(since_start[name][number])
        health.values.update({f'Frames that got to {stage}{" and no further" * (stage != STAGES[-1])}': joiner.ended[stage] for stage in STAGES})
        health.values.update({f'Frames {who}': count for who, count in sorted(self._missed.items())})
        health.values.update({'Late records': joiner.late, 'Temperature (C)': _known(self._board.temperature_c),
                              'Clock (MHz)': _known(self._board.clock_mhz), 'Simulated': int(self._board.simulated)})
        if self._recorder is not None:
            health.values.update({'Recording': str(self._recorder.path), 'Records lost': self._recorder.lost})
            if self._recorder.error:
                health.report(ERROR, f'{self._recorder.error}; {self._recorder.lost} records lost so far')

    def _diagnose_clocks(self, health: Health) -> None:
        faults = sum(self._joiner.faults.values())
        if faults != self._told_faults:
            health.report(WARN, f'clock faults, left out: {", ".join(f"{count} {name}" for name, count in sorted(self._joiner.faults.items()))}')
        if self._jump:
            health.report(WARN, self._jump)
        apart = {source: delivery_ms for source, delivery_ms in self._delivery_ms.items() if abs(delivery_ms) > OUT_OF_SYNC_MS}
        if apart:
            told = ', '.join(f'{source} by {delivery_ms:+.0f} ms' for source, delivery_ms in apart.items())
            health.report(WARN, f'hosts out of sync, or records held up: {told}')
        self._told_faults, self._jump = faults, ''
        health.values.update({'Clock faults': faults, 'Clock jumps': self.jumps})
        health.values.update({f'Fastest delivery of {source} (ms)': delivery_ms for source, delivery_ms in self._delivery_ms.items()})
        self._delivery_ms.clear()


def _known(value: float | None) -> float | str:
    return 'unknown' if value is None or math.isnan(value) else value


def _refuse(constant: str) -> None:
    raise ValueError(f'{constant} in it')


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    os.nice(10)  # what it measures goes first
    return run([LatencyMonitorNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
