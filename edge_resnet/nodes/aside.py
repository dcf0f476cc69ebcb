"""Calls beside what their owner does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import Empty, Full, Queue

WAITING = 8  # calls; whoever has more made waits as well, as when it made them itself


def look() -> None:
    """Has the thread look at the time."""


class Aside:
    """Makes calls, in the order they came, on a thread of its own; here and now when that is asked for and none is waiting. For one caller."""

    def __init__(self, guarded: Callable[[Callable[[], None]], Callable[[], None]], name: str) -> None:
        self._guarded, self._calls = guarded, Queue[Callable[[], None] | None](WAITING)
        self._given = self._made = 0
        self._timed: tuple[float, Callable[[], None]] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, what: Callable[[], None], *, here: bool = False) -> None:
        if here and self._made == self._given:
            what()
            return
        self._given += 1
        self._calls.put(what)

    def call_at(self, time_s: float, what: Callable[[], None]) -> None:
        """Make the call at that time of the monotonic clock, unless another is given by then. For any caller; never waits."""
        self._timed = (time_s, what)
        if self._calls.empty():  # else it comes round
            with contextlib.suppress(Full):
                self._calls.put_nowait(look)

    def _run(self) -> None:
        while True:
            timed = self._timed
            try:
                what = self._calls.get(timeout=None if timed is None else max(0.0, timed[0] - time.monotonic()))
            except Empty:
                if timed is not None and timed is self._timed:
                    self._timed = None
                    self._guarded(timed[1])()
                continue
            if what is None:
                return
            self._guarded(what)()
            self._made += what is not look

    def close(self, within_s: float = 0.2) -> None:
        """Make what is waiting, and end; left to itself when one of the calls hangs."""
        self._timed = None
        with contextlib.suppress(Full):
            self._calls.put(None, timeout=within_s)
            self._thread.join(within_s)
