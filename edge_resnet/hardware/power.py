"""Electrical power of a Linux machine, where it has a sensor that may be read. What can't be read is None, never 0."""

from __future__ import annotations

import time
from pathlib import Path


class PowerSensor:
    """What the whole processor or board takes, not one process: RAPL's counters, or a power meter. ``name`` is None without any."""

    def __init__(self, root: Path) -> None:
        meters = [path for path in sorted(root.glob('sys/class/hwmon/hwmon*/power1_input')) if self._number(path) is not None][:1]
        self._counters = [path for path in sorted(root.glob('sys/class/powercap/intel-rapl:?/energy_uj')) if self._number(path) is not None]
        self._paths = self._counters or meters
        self.name = 'RAPL' if self._counters else f'hwmon {meters[0].with_name("name").read_text().strip()}' if meters else None
        self._last = (0.0, float('nan'))

    def read(self) -> float | None:
        """Power in W: the meter's, or of the time since the last call; None when unknown, as when a counter has wrapped."""
        values = [self._number(path) for path in self._paths]
        total = sum(value for value in values if value is not None) / 1e6 if values and None not in values else float('nan')
        (before, last), now = self._last, time.perf_counter()
        self._last = now, total
        watts = (total - last) / (now - before) if self._counters else total
        return watts if watts >= 0 else None

    @staticmethod
    def _number(path: Path) -> float | None:
        try:
            return float(path.read_text())
        except (OSError, ValueError):  # RAPL is for root alone since Linux 5.10
            return None
