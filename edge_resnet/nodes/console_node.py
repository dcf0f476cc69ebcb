"""Prints one live line of the pipeline: what it sees, how long that took, what was dropped, how warm the board is."""

from __future__ import annotations

import math
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Temperature
from std_msgs.msg import Bool
from vision_msgs.msg import Classification

from edge_resnet.conversions import read_results, stamp_ns
from edge_resnet.nodes.base import LATCHED_QOS, RECORD_QOS, ManagedNode
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.polled import Polled, StageTimes
from edge_resnet.nodes.runner import run
from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, DROPS, SLICES, StageJoiner, percentile

SILENT_S = 5.0  # after the last command, from which on nobody knows whether what was on still is
KEPT = 64


@dataclass(frozen=True)
class ConsoleParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    period_s: float = param(0.5, 'time between two lines, s', low=0.1, high=60.0)
    target_class: str = param('red', 'the label for which the actuator is expected to be on, to score a run with ground truth')


@dataclass
class Run:
    """How a run with known truth goes: frames whose best label is right, and images at whose end the actuator was."""

    frames: int = 0
    frames_right: int = 0
    images: int = 0
    images_right: int = 0

    def __str__(self) -> str:
        return f'labels right on {self.frames_right} of {self.frames} frames, actuator right on {self.images_right} of {self.images} images'


class ConsoleNode(ManagedNode[ConsoleParameters]):
    """Listens only. A terminal gets one line that changes, a pipe a line each period."""

    Parameters = ConsoleParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('console', **options)
        self._joiner = StageJoiner(window=30)
        self._truth: OrderedDict[int, str] = OrderedDict()
        self._last_truth = ''
        self._best = ('', 0.0)
        self._actuator_on, self._commanded_s = False, -math.inf
        self._temperature = 'temperature unknown'
        self._dropped: dict[str, int] = {}
        self.run = Run()
        self.create_subscription(Classification, 'classification', self._on_classification, FRAME_QOS, raw=True)
        self.create_subscription(Classification, 'ground_truth', self._on_truth, RECORD_QOS, raw=True)
        self.create_subscription(Bool, 'actuator/state', self._on_actuator, LATCHED_QOS)
        self._stages, self._temperatures = StageTimes(self), Polled(self, Temperature, 'cpu_temperature')
        self._healths = Polled(self, DiagnosticArray, '/diagnostics')
        self.create_timer(self.parameters.period_s, self._print, clock=self._steady)

    def _on_truth(self, data: bytes) -> None:
        header, scores = read_results(data)
        label = scores[0].label
        if self._last_truth and label != self._last_truth:  # the image before has had its time: what did it lead to?
            self.run.images += 1
            self.run.images_right += self._actuator_on == (self._last_truth == self.parameters.target_class)
        self._last_truth = label
        self._truth[stamp_ns(header)] = label
        while len(self._truth) > KEPT:
            self._truth.popitem(last=False)

    def _on_classification(self, data: bytes) -> None:
        header, scores = read_results(data)
        self.counts['results'] += 1
        self._best = (scores[0].label, scores[0].score) if scores else ('nothing', 0.0)
        if self.counts['results'] == 1:
            print(f'first classification: {self._best[0]} {self._best[1]:.2f}', flush=True)
        truth = self._truth.get(stamp_ns(header))
        if truth is not None:
            self.run.frames += 1
            self.run.frames_right += self._best[0] == truth

    def _on_actuator(self, message: Bool) -> None:
        self._actuator_on, self._commanded_s = message.data, time.monotonic()

    def _poll(self) -> None:
        for source, frame_ns, time_ns, _ in self._stages.records():
            self._joiner.add(source, frame_ns, time_ns)
            if source == ACTUATOR_COMMANDED:
                self._commanded_s = time.monotonic()
        for temperature, _ in self._temperatures.take():
            self._temperature = f'{"simulated: " * temperature.header.frame_id.endswith("_simulated")}{temperature.temperature:.1f} C'
        for array, _ in self._healths.take():
            for status in array.status:
                if status.name.rpartition('/')[0] != self.get_namespace().strip('/'):
                    continue
                values = {entry.key: entry.value for entry in status.values}
                for key in DROPS:
                    if key in values:
                        self._dropped[f'{status.name} {key}'] = int(values[key])

    def _print(self) -> None:
        self._poll()
        if not self.counts['results']:
            return
        recent = list(self._joiner.recent)
        if not recent:
            print(f'{self._best[0]} {self._best[1]:.2f} | no frame has come from the camera to the actuator yet', flush=True)
            return
        slices = [f'{percentile([getattr(frame, name) for frame in recent], 50):.1f}' for name in SLICES]
        line = ' | '.join((
            f'{self._best[0]:<7} {self._best[1]:.2f}', f'ready {slices[0]} + inference {slices[1]} + actuator {slices[2]} = {slices[3]} ms',
            f'{self.rate("results"):4.1f} Hz', f'{sum(self._dropped.values())} dropped', self._temperature,
            f'actuator {("ON " if time.monotonic() - self._commanded_s < SILENT_S else "silent, was ON") if self._actuator_on else "off"}'))
        if self.run.frames:
            line += f' | {100 * self.run.frames_right / self.run.frames:.1f} % right'
        print(f'\r\033[K{line}' if sys.stdout.isatty() else line, end='' if sys.stdout.isatty() else '\n', flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    made: list[ConsoleNode] = []

    def make() -> ConsoleNode:
        made.append(ConsoleNode())
        return made[0]

    code = run([make], argv)
    if made and made[0].run.frames:
        print(f'\n{made[0].run}', flush=True)
    return code


if __name__ == '__main__':
    raise SystemExit(main())
