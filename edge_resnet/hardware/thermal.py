"""Temperature, clock, throttling, load and memory of a Linux board. What can't be read is None, never 'fine'."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# get_throttled, Raspberry Pi documentation: bits 0-3 are now, bits 16-19 the same since boot.
THROTTLE_BITS = {'under_voltage': 0, 'frequency_capped': 1, 'throttled': 2, 'soft_temperature_limit': 3}
CPU_ZONES = ('cpu-thermal', 'cpu_thermal', 'x86_pkg_temp', 'soc_thermal', 'cpu0-thermal')
VCGENCMD_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class ThermalReading:
    """One look at the board; ``throttle_bits`` as in ``get_throttled``, ``since_boot_known`` if bits 16-19 mean that."""

    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttle_bits: int | None = None
    since_boot_known: bool = False
    load_1min: float | None = None
    memory_available_mb: float | None = None
    memory_total_mb: float | None = None
    simulated: bool = False

    def flag(self, name: str) -> bool | None:
        """Whether ``name`` of ``THROTTLE_BITS`` is the case now; None when unknown."""
        return None if self.throttle_bits is None else bool(self.throttle_bits >> THROTTLE_BITS[name] & 1)

    def flag_since_boot(self, name: str) -> bool | None:
        known = self.throttle_bits is not None and self.since_boot_known
        return bool(self.throttle_bits >> (THROTTLE_BITS[name] + 16) & 1) if known and self.throttle_bits is not None else None


def _vcgencmd() -> str | None:
    """The answer of ``vcgencmd get_throttled``, e.g. 'throttled=0x50000'; None without the tool or the video group."""
    tool = shutil.which('vcgencmd')
    if tool is None:
        return None
    try:
        return subprocess.run([tool, 'get_throttled'], capture_output=True, text=True, timeout=VCGENCMD_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


class ThermalReader:
    """Reads sysfs and procfs below ``root``. ``vcgencmd`` is asked only when sysfs has no get_throttled, and only on the
    real root; sysfs is free, but clears the since-boot bits when read, so they count only from ``vcgencmd``."""

    def __init__(self, root: Path = Path('/'), vcgencmd: Callable[[], str | None] | None = None) -> None:
        self._root = root
        self._vcgencmd = vcgencmd or (_vcgencmd if root == Path('/') else lambda: None)
        self._zone = self._find_zone()

    def read(self) -> ThermalReading:
        bits, since_boot = self._throttled()  # first: temperature and clock are then never older than the flags
        millidegrees = None if self._zone is None else self._number(self._zone / 'temp')
        kilohertz = self._number(self._root / 'sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq')
        load = self._text(self._root / 'proc/loadavg').split()
        memory = dict(line.split(':', 1) for line in self._text(self._root / 'proc/meminfo').splitlines() if ':' in line)
        temperature = None if millidegrees is None else millidegrees / 1000
        return ThermalReading(
            temperature if temperature is not None and -60 <= temperature <= 200 else None,
            kilohertz / 1000 if kilohertz is not None and kilohertz > 0 else None,
            bits, since_boot, _number(load[0]) if load else None, _megabytes(memory.get('MemAvailable')), _megabytes(memory.get('MemTotal')))

    def _find_zone(self) -> Path | None:
        zones = sorted((self._root / 'sys/class/thermal').glob('thermal_zone*'))
        kinds = {self._text(zone / 'type').strip(): zone for zone in reversed(zones)}
        return next((kinds[kind] for kind in CPU_ZONES if kind in kinds), zones[0] if zones else None)

    def _throttled(self) -> tuple[int | None, bool]:
        text, since_boot = self._text(self._root / 'sys/devices/platform/soc/soc:firmware/get_throttled'), False
        if not text:
            text, since_boot = (self._vcgencmd() or '').partition('=')[2], True
        try:
            bits = int(text.strip(), 16)
        except ValueError:
            return None, False
        return (bits, since_boot) if 0 <= bits < 1 << 32 else (None, False)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(errors='replace')
        except OSError:
            return ''

    def _number(self, path: Path) -> float | None:
        return _number(self._text(path).strip())


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _megabytes(text: str | None) -> float | None:
    kilobytes = _number(text.replace('kB', '').strip()) if text else None
    return None if kilobytes is None else kilobytes / 1024


# A Raspberry Pi 4 B as a first-order system. Measured by others: 2.7 W idle and 6.4 W with four busy cores (Pi Dramble's USB meter), 27 K
# above ambient when idle (pi-plates' thermocouple, 54.7 at 27.3 C), 80 C on a bare board some 3 minutes into full load (Halfacree's tests);
# throttling from 80 C and harder from 85 C (Raspberry Pi documentation). Plausible, no more: what a heatsink and a fan make of the
# resistance, what a heatsink adds in capacity, the clocks throttled to, the 2 K until the clock comes back, power by the square of the clock.
IDLE_W, FULL_W, FULL_MHZ = 2.7, 6.4, 1500.0
THROTTLE_C, HARD_C, HYSTERESIS_K = 80.0, 85.0, 2.0
THROTTLED_MHZ, HARD_MHZ = 1000.0, 600.0
RESISTANCE_K_W = {(False, False): 10.0, (True, False): 7.5, (False, True): 5.5, (True, True): 3.5}  # (heatsink, fan)
CAPACITY_J_K = {False: 12.0, True: 25.0}  # heatsink
THROTTLED_BITS = 1 << THROTTLE_BITS['frequency_capped'] | 1 << THROTTLE_BITS['throttled']


class SimulatedPi4:
    """A ``ThermalReader`` of a board that is not there. ``load``: the share of its processor that was busy since the last call, 0 to 1."""

    def __init__(self, *, heatsink: bool = False, fan: bool = False, ambient_c: float = 25.0, load: Callable[[], float] = lambda: 1.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._resistance, self._capacity = RESISTANCE_K_W[heatsink, fan], CAPACITY_J_K[heatsink]
        self._ambient_c, self._load, self._clock = ambient_c, load, clock
        self._temperature_c, self._mhz, self._at = ambient_c + self._resistance * IDLE_W, FULL_MHZ, clock()

    def read(self) -> ThermalReading:
        load, now = min(1.0, max(0.0, self._load())), self._clock()
        while self._at < now:
            step_s = min(1.0, now - self._at)
            self._at = now if now - self._at <= 1.0 else self._at + 1.0
            power = IDLE_W + (FULL_W - IDLE_W) * load * (self._mhz / FULL_MHZ) ** 2
            end_c = self._ambient_c + self._resistance * power
            self._temperature_c = end_c + (self._temperature_c - end_c) * math.exp(-step_s / (self._resistance * self._capacity))
            self._throttle()
        bits = THROTTLED_BITS if self._mhz < FULL_MHZ else 0
        return ThermalReading(self._temperature_c, self._mhz, bits, load_1min=4 * load, simulated=True)

    def _throttle(self) -> None:
        if self._temperature_c >= HARD_C:
            self._mhz = HARD_MHZ
        elif self._temperature_c >= THROTTLE_C:
            self._mhz = min(self._mhz, THROTTLED_MHZ) if self._temperature_c >= HARD_C - HYSTERESIS_K else THROTTLED_MHZ
        elif self._temperature_c < THROTTLE_C - HYSTERESIS_K:
            self._mhz = FULL_MHZ


class HostLoad:
    """The share of this machine's processor that was busy since the last call, from /proc/stat; 0 when unknown."""

    def __init__(self, root: Path = Path('/')) -> None:
        self._path, self._last = root / 'proc/stat', (0, 0)

    def __call__(self) -> float:
        try:
            numbers = [int(number) for number in self._path.read_text().split('\n', 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return 0.0
        (all_before, idle_before), self._last = self._last, (sum(numbers), sum(numbers[3:5]))
        passed = self._last[0] - all_before
        return 1 - (self._last[1] - idle_before) / passed if passed > 0 else 0.0


class TransitionLog:
    """Names the throttle flags that changed since the last reading; unknown is no change."""

    def __init__(self) -> None:
        self._last: dict[str, bool] = {}

    def update(self, reading: ThermalReading) -> list[tuple[str, bool]]:
        """(flag, whether it came on) of each change; a flag that is set at the first reading counts as come on."""
        changes = []
        for name in THROTTLE_BITS:
            now = reading.flag(name)
            if now is not None and now != self._last.get(name, False):
                changes.append((name, now))
            if now is not None:
                self._last[name] = now
        return changes
