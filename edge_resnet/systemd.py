"""Tells systemd that this process is ready, and then that it is alive: sd_notify(3). Without systemd nothing happens."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class SystemdNotifier:
    """``period_s``: how often it wants to hear that we are alive, None when it does not; well below its WatchdogSec."""

    def __init__(self, environment: Mapping[str, str] = os.environ, pid: int | None = None) -> None:
        self._address = environment.get('NOTIFY_SOCKET', '')
        ours = environment.get('WATCHDOG_PID', '') in ('', str(os.getpid() if pid is None else pid))  # not a child that got the variables
        limit = environment.get('WATCHDOG_USEC', '')
        self.period_s = int(limit) / 4e6 if self._address and ours and limit.isdigit() else None

    def tell(self, state: str) -> None:
        """``READY=1`` or ``WATCHDOG=1``; a systemd that can't be reached is no reason to stop."""
        if self._address:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                    notify.sendto(state.encode(), '\0' + self._address[1:] if self._address.startswith('@') else self._address)
            except OSError:
                pass
