"""Calls beside what their owner does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Full, Queue

WAITING = 8  # calls; whoever has more made waits as well, as when it made them itself


class Aside:
    """Makes calls, in the order they came, on a thread of its own; here and now when that is asked for and none is waiting. For one caller."""

    def __init__(self, guarded: Callable[[Callable[[], None]], Callable[[], None]], name: str) -> None:
        self._guarded, self._calls = guarded, Queue[Callable[[], None] | None](WAITING)
        self._given = self._made = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, what: Callable[[], None], *, here: bool = False) -> None:
        if here and self._made == self._given:
            what()
            return
        self._given += 1
        self._calls.put(what)

    def _run(self) -> None:
        while (what := self._calls.get()) is not None:
            self._guarded(what)()
            self._made += 1

    def close(self, within_s: float = 0.2) -> None:
        """Make what is waiting, and end; left to itself when one of the calls hangs."""
        with contextlib.suppress(Full):
            self._calls.put(None, timeout=within_s)
            self._thread.join(within_s)
