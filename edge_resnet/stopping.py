"""Waiting for a signal without locks."""

from __future__ import annotations

import os
import select
import signal


class StopRequest:
    """Set by SIGINT, SIGTERM or ``set``.

    A pipe, since the lock of an Event deadlocks when a second signal interrupts the handler, and since a signal that the
    kernel gives to another thread wakes the main one only through the wake-up descriptor.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._set = False

    def on_signals(self) -> StopRequest:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.set())
        return self

    def set(self) -> None:
        if not self._set:
            self._set = True  # first, so that whoever wakes sees it
            os.write(self._writer, b'.')

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is set, after at most ``timeout_s``."""
        if not self._set and select.select([self._reader], [], [], timeout_s)[0]:
            os.read(self._reader, 64)
        return self._set
