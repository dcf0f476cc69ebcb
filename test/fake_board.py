"""A sysfs and procfs tree in a folder, as a Raspberry Pi 4 has one."""

from __future__ import annotations

from pathlib import Path


class FakeBoard:
    """``ThermalReader(root)`` reads it."""

    def __init__(self, root: Path, temperature_c: float = 50.0, clock_mhz: float = 1500.0, throttle_bits: int = 0) -> None:
        self.root = root
        self._write('sys/class/thermal/thermal_zone0/type', 'cpu-thermal')
        self._write('proc/loadavg', '0.50 0.40 0.30 1/200 4242')
        self._write('proc/meminfo', 'MemTotal:        3884304 kB\nMemAvailable:    3000000 kB')
        self.set(temperature_c, clock_mhz, throttle_bits)

    def set(self, temperature_c: float, clock_mhz: float = 1500.0, throttle_bits: int = 0) -> None:
        """The flags last: a reader that sees them sees the rest."""
        self._write('sys/class/thermal/thermal_zone0/temp', str(round(temperature_c * 1000)))
        self._write('sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq', str(round(clock_mhz * 1000)))
        self._write('sys/devices/platform/soc/soc:firmware/get_throttled', f'{throttle_bits:x}')

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + '\n')
