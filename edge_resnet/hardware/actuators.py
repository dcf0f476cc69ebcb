"""What the decision switches: a GPIO pin, or a file that stands for one."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Protocol

from edge_resnet.exceptions import BackendError, ParameterError

BACKENDS = ('simulated', 'gpio')
MAX_GPIO_PIN = 27  # BCM numbers on the 40-pin header


class Actuator(Protocol):
    """OFF when opened, OFF when closed; ``write`` raises BackendError when the state can't be brought out."""

    def write(self, on: bool) -> None: ...

    def close(self) -> None: ...


class SimulatedActuator:
    """Keeps its state, ``1`` or ``0``, in a file, which like a Pi's pin stays as it was when the process is killed."""

    def __init__(self, state_file: Path) -> None:
        self._path = state_file
        try:
            state_file.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(state_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                os.close(self._file)
                raise BackendError(f'simulated actuator: {state_file} is not a regular file')
        except OSError as error:
            raise error if isinstance(error, BackendError) else BackendError(
                f'simulated actuator: {state_file}: {"a link, which is refused" if state_file.is_symlink() else error.strerror}') from error
        self.write(False)

    def write(self, on: bool) -> None:
        if self._file is None:
            raise BackendError(f'simulated actuator: {self._path} is closed')
        try:
            os.pwrite(self._file, b'1\n' if on else b'0\n', 0)
        except OSError as error:
            raise BackendError(f'simulated actuator: {self._path}: {error.strerror}') from error

    def close(self) -> None:
        if self._file is not None:
            try:
                self.write(False)
            finally:
                os.close(self._file)
                self._file = None


class GpioActuator:
    """A pin of the 40-pin header through gpiozero, which takes its mock pins with ``pin_factory``."""

    def __init__(self, pin: int, *, active_high: bool = True, pin_factory: Any = None) -> None:
        if not 0 <= pin <= MAX_GPIO_PIN:
            raise ParameterError(f'gpio_pin is {pin}, expected 0 to {MAX_GPIO_PIN} (BCM numbering)')
        try:
            import gpiozero
        except ImportError as error:
            raise BackendError('gpio actuator: gpiozero is not installed: apt install python3-gpiozero python3-lgpio') from error
        self._pin = pin
        try:
            self._device: Any = gpiozero.DigitalOutputDevice(pin, active_high=active_high, initial_value=False, pin_factory=pin_factory)
        except Exception as error:  # each pin library has errors of its own
            raise BackendError(f'gpio actuator: pin {pin}: {error or type(error).__name__}') from error

    def write(self, on: bool) -> None:
        if self._device is None:
            raise BackendError(f'gpio actuator: pin {self._pin} is closed')
        try:
            self._device.value = on
        except Exception as error:
            raise BackendError(f'gpio actuator: pin {self._pin}: {error or type(error).__name__}') from error

    def close(self) -> None:
        if self._device is not None:
            try:
                self.write(False)
            finally:
                self._device.close()
                self._device = None


class HeldOff:
    """Remembers, in a file beside ``state_file``, that somebody stopped or disarmed the actuator, for a node that is started anew after a crash."""

    STOPPED, DISARMED, NO = 'stopped', 'disarmed', ''

    def __init__(self, state_file: Path) -> None:
        self.path = state_file.with_name(f'{state_file.name}.held_off')

    def read(self) -> str:
        """STOPPED, DISARMED or NO; STOPPED when that can't be known."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(file) as stream:
                return self.DISARMED if stream.read() == self.DISARMED else self.STOPPED
        except FileNotFoundError:
            return self.NO
        except (OSError, ValueError):
            return self.STOPPED

    def write(self, state: str) -> None:
        """BackendError when it can't be kept."""
        try:
            if state == self.NO:
                return self.path.unlink(missing_ok=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(file, 'w') as stream:
                stream.write(state)
        except OSError as error:
            raise BackendError(f'{self.path}: {error.strerror}: after a crash the actuator will not know that it is {state or "armed"}') from error


def default_state_file(node_name: str) -> Path:
    """Where the simulated actuator of ``node_name`` keeps its state; two ROS domains have one each."""
    name = f'{os.environ.get("ROS_DOMAIN_ID") or 0}_{node_name.strip("/").replace("/", ".")}.state'
    return Path(tempfile.gettempdir()) / f'edge_resnet_{os.getuid()}' / name


def open_actuator(backend: str, *, gpio_pin: int, state_file: Path, active_high: bool = True) -> Actuator:
    """The actuator of ``backend``, one of ``BACKENDS``, switched OFF."""
    if backend not in BACKENDS:
        raise ParameterError(f'backend is {backend!r}, expected one of {", ".join(BACKENDS)}')
    return SimulatedActuator(state_file) if backend == 'simulated' else GpioActuator(gpio_pin, active_high=active_high)
