"""A second, tiny process that switches the actuator off when the node that owns it can't: killed, stopped or hanging.

The node starts it with one end of a socket pair as its standard input, and tells it ``1`` before the actuator goes on and again
at each beat while it is on, ``0`` once it is off. The kernel closes the socket of a process that dies, however it dies, so the
guard knows at once; a node that is stopped or hangs falls silent. Only ON needs beats: while the actuator is off both sleep.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edge_resnet.exceptions import BackendError
from edge_resnet.hardware.actuators import open_actuator

BEAT_S = 0.05  # at most one beat in this time; the owner writes more often
SILENCE_S = 0.3  # of an owner whose actuator is on
RETRY_S, GIVE_UP_S = 0.02, 60.0
START_S, RESTART_S = 5.0, 1.0  # what a guard may take to start; at most one new guard in the second
SOCKET_BYTES = 32_768  # about 80 beats, so that a guard that is stopped is noticed after a few seconds
ON, OFF, READY = b'1', b'0', b'r'


class GuardedActuator:
    """The actuator of ``backend``, which a guard process switches off if this process does not.

    ``write(True)`` has to be repeated within ``SILENCE_S`` for as long as it shall be on. BackendError when the state can't be
    brought out or the guard is gone; the actuator is off then, by this process or by the guard.
    """

    def __init__(self, backend: str, *, gpio_pin: int, state_file: Path, active_high: bool = True) -> None:
        self._actuator = open_actuator(backend, gpio_pin=gpio_pin, state_file=state_file, active_high=active_high)
        self._command = [sys.executable, '-m', __name__, backend, str(gpio_pin), str(int(active_high)), str(state_file), str(os.getpid())]
        self._told_on, self._beat_at, self._started_at = False, 0.0, 0.0
        self._guard: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        try:
            self._start()
        except BackendError:
            self._actuator.close()
            raise

    def write(self, on: bool) -> None:
        try:
            if on:
                self._tell(ON)  # first, so that the guard never believes it off while it is on
            self._actuator.write(on)
        except BackendError:
            self._leave_off()
            raise
        if not on and self._told_on:
            self._tell(OFF)

    def close(self) -> None:
        try:
            self._actuator.close()
            if self._told_on:
                self._tell(OFF)
        finally:
            self._dismiss()
            if self._guard is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._guard.wait(1.0)

    def _start(self) -> None:
        """Start a guard and wait until it listens: before that it would notice no death in time."""
        self._started_at = time.monotonic()
        try:
            self._socket, inherited = socket.socketpair()
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            with inherited:
                self._guard = subprocess.Popen(self._command, stdin=inherited.fileno(), start_new_session=True)  # out of reach of Ctrl-C
        except OSError as error:
            self._dismiss()
            raise BackendError(f'the guard process does not start ({error.strerror})') from error
        if not select.select([self._socket], [], [], START_S)[0] or self._socket.recv(1) != READY:
            self._guard.kill()
            self._dismiss()
            raise BackendError(f'the guard process did not start within {START_S:g} s')

    def _tell(self, state: bytes) -> None:
        now = time.monotonic()
        if state == ON and self._told_on and now - self._beat_at < BEAT_S:
            return
        if self._socket is None and now - self._started_at >= RESTART_S:
            self._start()
        try:
            if self._socket is None:
                raise BackendError('the guard process is gone, off until there is a new one')
            self._socket.send(state)
        except BackendError:
            raise
        except OSError as error:  # ended, or stopped and its socket full
            if self._guard is not None:
                self._guard.kill()  # no use any more, and it may not wake up and switch later on
            if state == OFF:  # nothing is left to be guarded
                return self._dismiss()
            raise BackendError(f'the guard process does not listen ({error.strerror})') from error
        self._told_on, self._beat_at = state == ON, now

    def _leave_off(self) -> None:
        """After a failure: off by this process, or else by the guard, which is let go."""
        try:
            self._actuator.write(False)
            if self._told_on:
                self._tell(OFF)
        except BackendError:
            pass
        self._dismiss()

    def _dismiss(self) -> None:
        self._told_on = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._guard is not None:
            self._guard.poll()


def watch(beats: socket.socket, off: Callable[[], None]) -> None:
    """Call ``off`` when the owner at the other end of ``beats`` dies or falls silent while on; return when it has ended."""
    on = False
    while True:
        heard = bool(select.select([beats], [], [], SILENCE_S if on else None)[0])
        try:
            said = beats.recv(4096) if heard else b''
        except OSError:  # reset by a peer that died
            said = b''
        if on and not said:
            off()
        if heard and not said:
            return
        on = said[-1:] == ON


def drive_off(backend: str, *, gpio_pin: int, state_file: Path, active_high: bool = True, owner: int = 0, patience_s: float = GIVE_UP_S) -> None:
    """Open the actuator, which drives it off, again and again for up to ``patience_s``, then BackendError.

    A GPIO line has one user. While ``owner``, our parent, holds it, the owner is stopped or hangs, and is killed to get at the line.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return open_actuator(backend, gpio_pin=gpio_pin, state_file=state_file, active_high=active_high).close()
        except BackendError:
            if owner and os.getppid() == owner:
                os.kill(owner, signal.SIGKILL)
            if time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_S)


def main(argv: list[str]) -> int:
    backend, pin, active_high, state_file, owner = argv
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends when its owner has, systemd and launchers signal both
        signal.signal(number, signal.SIG_IGN)
    if backend == 'gpio':
        import gpiozero  # noqa: F401  takes longer than there will be time

    def off() -> None:
        drive_off(backend, gpio_pin=int(pin), state_file=Path(state_file), active_high=active_high == '1', owner=int(owner))

    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as beats:
        with contextlib.suppress(OSError):  # the owner may be dead already, which watch tells
            beats.send(READY)
        try:
            watch(beats, off)
        except BackendError as error:
            print(f'guard: the actuator may be on: {error}', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
