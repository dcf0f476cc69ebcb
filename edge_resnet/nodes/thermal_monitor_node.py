"""Watches the board's temperature, clock and throttling, and logs each change of a throttle flag."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensor_msgs.msg import Temperature

from edge_resnet.exceptions import ParameterError
from edge_resnet.hardware.thermal import THROTTLE_BITS, HostLoad, SimulatedPi4, ThermalReader, ThermalReading, TransitionLog
from edge_resnet.nodes.base import ERROR, OK, RECORD_QOS, WARN, Health, ManagedNode
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.runner import run


@dataclass(frozen=True)
class ThermalParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    period_s: float = param(1.0, 'time between two readings, s', low=0.1, high=60.0)
    temp_warn_c: float = param(75.0, 'temperature that is a warning, degrees Celsius; a Pi 4 throttles at 80', low=-40.0, high=150.0, live=True)
    temp_error_c: float = param(80.0, 'temperature that is an error, degrees Celsius', low=-40.0, high=150.0, live=True)
    sysfs_root: str = param('/', 'where sys/ and proc/ are; another folder for tests', read_only=True)
    board: str = param('real', 'simulated: the temperature, clock and throttling of a model of a Raspberry Pi 4', choices=('real', 'simulated'))
    heatsink: bool = param(False, 'the simulated board has one')
    fan: bool = param(False, 'the simulated board has one')
    ambient_c: float = param(25.0, 'around the simulated board, degrees Celsius', low=-40.0, high=85.0)
    load: float = param(0.0, "of the simulated board's processor; 0: as this machine's is", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        if self.temp_warn_c > self.temp_error_c:
            raise ParameterError(f'temp_warn_c is {self.temp_warn_c} and temp_error_c {self.temp_error_c}, expected warn <= error')


class ThermalMonitorNode(ManagedNode[ThermalParameters]):
    """What can't be read is reported as unknown, never as fine."""

    Parameters = ThermalParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('thermal_monitor', **options)
        self._reader: ThermalReader | SimulatedPi4 | None = None
        self._reading = ThermalReading()
        self._transitions, self._last_transition = TransitionLog(), 'none'
        self._timer: Any = None
        self._temperature = self.create_publisher(Temperature, 'cpu_temperature', RECORD_QOS)

    def configure(self) -> None:
        p = self.parameters
        if p.board == 'simulated':
            self._reader = SimulatedPi4(heatsink=p.heatsink, fan=p.fan, ambient_c=p.ambient_c, load=(lambda: p.load) if p.load else HostLoad())
            self.hardware_id = 'simulated Raspberry Pi 4'
            self.get_logger().warning('temperature, clock and throttling are simulated')
        else:
            self._reader, self.hardware_id = ThermalReader(Path(p.sysfs_root)), socket.gethostname()
        self.facts = {'hardware': self.hardware_id}
        self._transitions, self._last_transition = TransitionLog(), 'none'

    def activate(self) -> None:
        self._timer = self.create_timer(self.parameters.period_s, self._read, clock=self._steady)
        self._read()

    def deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def cleanup(self) -> None:
        self._reader = None

    def _read(self) -> None:
        if self._reader is None:
            return
        self._reading = self._reader.read()
        changes, label = self._transitions.update(self._reading), 'simulated: ' * self._reading.simulated
        for flag, on in changes:
            self.counts['transitions'] += 1
            temperature = 'unknown' if self._reading.temperature_c is None else f'{self._reading.temperature_c:.1f} C'
            text = f'{flag} {"began" if on else "ended"} at {temperature}, {_known(self._reading.clock_mhz)} MHz'
            if on:  # each on a line of its own: rclpy refuses another severity from the same one
                self.get_logger().warning(label + text)
            else:
                self.get_logger().info(label + text)
            self._last_transition = f'{text}, {self.now_ns() / 1e9:.3f} s'
        if changes:
            self.publish_diagnostics()  # at once: who records them takes the time from it
        if self._reading.temperature_c is not None:
            message = Temperature(temperature=self._reading.temperature_c, variance=0.0)
            message.header.stamp, message.header.frame_id = self.get_clock().now().to_msg(), 'cpu' + '_simulated' * self._reading.simulated
            self._temperature.publish(message)

    def diagnose(self, health: Health) -> None:
        reading, p = self._reading, self.parameters
        if reading.temperature_c is None:
            health.report(WARN, 'temperature unknown')
        else:
            level = ERROR if reading.temperature_c >= p.temp_error_c else WARN if reading.temperature_c >= p.temp_warn_c else OK
            health.report(level, f'{"simulated: " * reading.simulated}{reading.temperature_c:.1f} C')
        for flag in THROTTLE_BITS:
            if reading.flag(flag):
                health.report(ERROR if flag in ('under_voltage', 'throttled') else WARN, flag.replace('_', ' '))
            health.values[flag.replace('_', ' ').capitalize()] = _known(reading.flag(flag))
            health.values[f'{flag.replace("_", " ").capitalize()} since boot'] = _known(reading.flag_since_boot(flag))
        health.values.update({
            'Temperature (C)': _known(reading.temperature_c), 'Clock (MHz)': _known(reading.clock_mhz), 'Load (1 min)': _known(reading.load_1min),
            'Memory available (MB)': _known(reading.memory_available_mb), 'Memory total (MB)': _known(reading.memory_total_mb),
            'Throttle transitions': self.counts['transitions'], 'Last throttle transition': self._last_transition,
            'Simulated': int(reading.simulated)})


def reading_of(values: Mapping[str, str]) -> ThermalReading:
    """The reading behind the diagnostics ``values`` of a thermal monitor; ValueError when they are of something else."""
    def number(key: str) -> float | None:
        value = math.nan if values.get(key, 'unknown') == 'unknown' else float(values[key])
        return value if math.isfinite(value) else None

    flags = {flag: number(flag.replace('_', ' ').capitalize()) for flag in THROTTLE_BITS}
    bits = None if None in flags.values() else sum(bool(on) << THROTTLE_BITS[flag] for flag, on in flags.items())
    return ThermalReading(number('Temperature (C)'), number('Clock (MHz)'), bits, simulated=values.get('Simulated') == '1')


def _known(value: float | bool | None) -> float | int | str:
    return 'unknown' if value is None else int(value) if isinstance(value, bool) else value


def main(argv: Sequence[str] | None = None) -> int:
    return run([ThermalMonitorNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
