"""Starts the real executables as processes, as a user would from several terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edge_resnet.deployment import transport_environment


class Processes:
    """Named processes of ``edge_resnet.nodes``, each with its output in a file; all are gone at the end."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen] = {}
        self._folder = Path(tempfile.mkdtemp())

    def start(self, name: str, *arguments: str, profile: bool = True, module: str = '', **parameters: object) -> subprocess.Popen:
        """Run node executable ``name`` with ROS ``parameters``; with or without the shipped transport profile."""
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}
        if profile:
            environment.update(transport_environment({}))
        ros = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
        with (self._folder / f'{name}.log').open('w') as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, '-m', module or f'edge_resnet.nodes.{name}', *arguments, *(['--ros-args', *ros] if ros else [])],
                env=environment, stdout=log, stderr=subprocess.STDOUT)
        return self._running[name]

    def output(self, name: str) -> str:
        return (self._folder / f'{name}.log').read_text()

    def end(self, name: str, number: int = signal.SIGINT, timeout_s: float = 10.0) -> int:
        """Send the signal and wait; the exit code."""
        process = self._running.pop(name)
        process.send_signal(number)
        return process.wait(timeout_s)

    def wait(self, name: str, timeout_s: float = 60.0) -> int:
        """Wait for a process that ends by itself."""
        return self._running.pop(name).wait(timeout_s)

    def close(self, but: str = '') -> None:
        """Kill all of them, ``but`` one."""
        for name in [name for name in self._running if name != but]:
            process = self._running.pop(name)
            process.kill()
            process.wait()


def wait_until(condition, what: str, timeout_s: float = 60.0):
    """Like ``bench.wait_for``, with the patience that starting processes takes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f'{what} did not happen within {timeout_s} s')
