"""Counts what each row of the table tried and survived, times it, checks that every actuator in it ended OFF, and prints the table.

``--faults`` tries everything as often as the table says and holds it to the table's times; without it, a few of each, and ten times the time.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / 'integration')]

from rows import ROWS  # noqa: E402

OFF_S = 0.5  # after the end of a row's processes: what the guard may take
STARVED_S = 1.0 + 0.1 + OFF_S  # after the last result: the longest max_result_age_s of a row, and what the watchdog or the guard may take
TOLERANCE = 10.0  # of the short version, on whatever machine


@dataclass
class Row:
    """What happened in a row so far."""

    number: int
    full: bool = False
    tried: int = 0
    survived: int = 0
    worst_s: float | None = None
    actuators: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    note: str = ''

    def times(self, full: int, short: int) -> int:
        """How often to try."""
        return full if self.full else short

    def trial(self, survived: bool = True, seconds: float | None = None, count: int = 1) -> None:
        """``count`` tries have ended, the slowest after ``seconds``."""
        self.tried += count
        self.survived += count if survived else 0
        if seconds is not None:
            self.worst_s = max(seconds, self.worst_s or 0.0)

    def verdict(self) -> str:
        limit_s = ROWS[self.number].limit_s
        if self.failed or self.survived < self.tried:
            return 'MISSED'
        if not self.tried:
            return 'not shown' if self.skipped else 'not run'
        if limit_s is not None and self.worst_s is not None and self.worst_s > limit_s * (1 if self.full else TOLERANCE):
            return 'MISSED'
        return 'holds'


TABLE = {number: Row(number) for number in ROWS}
ON_AFTERWARDS: list[int] = []  # rows that left an actuator on


def pytest_configure(config):
    config.addinivalue_line('markers', 'row(number): tries this row of test/faults/rows.py')
    config.pluginmanager.register(Everywhere())
    for row in TABLE.values():
        row.full = config.getoption('--faults')


@contextlib.contextmanager
def all_off(rows: list[Row], folder: Path, monkeypatch) -> Iterator[None]:
    """``folder`` is the temporary folder meanwhile, so that every simulated actuator has its file there; all have to be off afterwards."""
    monkeypatch.setenv('TMPDIR', str(folder))
    monkeypatch.setattr('tempfile.tempdir', str(folder))
    yield
    for row in rows:
        row.actuators += len(states(folder))
    wait_for_off(rows[0], folder, OFF_S, 'after')


def states(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*.state') if path.is_file()]  # two bytes, by their names


def wait_for_off(row: Row, folder: Path, within_s: float, when: str) -> None:
    """AssertionError, and a row that misses, when a simulated actuator in ``folder`` is on for longer than it may."""
    deadline = time.monotonic() + within_s * (1 if row.full else TOLERANCE)
    while (on := [str(file) for file in states(folder) if file.read_text() != '0\n']) and time.monotonic() < deadline:
        time.sleep(0.005)
    if on:
        ON_AFTERWARDS.append(row.number)
    assert not on, f'ON {when} row {row.number}: {on}'


@pytest.fixture(autouse=True)
def row(request, tmp_path, monkeypatch):
    """The row that a test is about."""
    row = TABLE[request.node.get_closest_marker('row').args[0]]
    with all_off([row], tmp_path, monkeypatch):
        yield row
    assert row.failed or row.verdict() != 'MISSED', f'row {row.number}: {row}'


class Everywhere:
    """For the tests in other folders that belong to a row too: pytest asks a conftest.py only about the tests of its own folder."""

    @pytest.fixture(autouse=True)
    def every_actuator_off(self, request):
        rows = [] if request.node.nodeid in _own else [TABLE[number] for number in _rows_of(request.node.nodeid)]
        with all_off(rows, request.getfixturevalue('tmp_path'), request.getfixturevalue('monkeypatch')) if rows else contextlib.nullcontext():
            yield

    def pytest_runtest_logreport(self, report):
        own = [_own[report.nodeid]] if report.nodeid in _own else []
        for number in own or _rows_of(report.nodeid):
            row = TABLE[number]
            if report.failed:
                row.failed.append(report.nodeid)
            elif report.skipped:
                row.skipped.append(report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr))
            if report.when == 'call' and not own:
                row.trial(report.passed, count=not report.skipped)


@pytest.fixture
def processes(row, tmp_path):
    """At the end everything but the actuator nodes is killed first: what is on has to go off by itself."""
    from processes import Processes

    processes = Processes()
    yield processes
    try:
        processes.close(but='actuator_node')
        wait_for_off(row, tmp_path, STARVED_S, 'by itself after')
    finally:
        processes.close()


@pytest.fixture
def bench(request, row, tmp_path):
    """At the end every node but the actuator is gone first: what is on has to go off by itself (in a row with processes, after theirs)."""
    pytest.importorskip('rclpy')
    from bench import Bench

    bench = Bench()
    yield bench
    try:
        bench.starve()
        if 'processes' not in request.fixturenames:
            wait_for_off(row, tmp_path, STARVED_S, 'by itself after')
    finally:
        bench.close()


def _rows_of(nodeid: str) -> list[int]:
    return [number for number, fault in ROWS.items() if any(nodeid.startswith(test) for test in fault.also)]


_own: dict[str, int] = {}


def pytest_collection_modifyitems(config, items):
    _own.update({item.nodeid: marker.args[0] for item in items if (marker := item.get_closest_marker('row')) is not None})
    if config.getoption('--faults'):  # of the other files only what belongs to a row
        chosen = [item for item in items if item.nodeid in _own or _rows_of(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption('--faults'):
        return
    write = terminalreporter.write_line
    write('')
    write(f'{"#":>3} {"fault":<42}{"tried":>8}{"survived":>9}{"worst":>11}{"actuators":>10}  {"target":<32}verdict')
    for number, fault in ROWS.items():
        row = TABLE[number]
        worst = '-' if row.worst_s is None else f'{1000 * row.worst_s:,.0f} ms'
        skipped = '; '.join(dict.fromkeys(row.skipped))
        reason = ''.join((f' ({row.note})' if row.note else '', f'{", in part" if row.tried else ""}: {skipped}' if skipped else ''))
        write(f'{number:>3} {fault.text:<42}{row.tried:>8,}{row.survived:>9,}{worst:>11}{row.actuators or "-":>10}  {fault.target:<32}'
              f'{row.verdict()}{reason}')
    verdicts = [row.verdict() for row in TABLE.values()]
    write(f'{verdicts.count("holds")} of {len(ROWS)} hold, {verdicts.count("MISSED")} missed, '
          f'{verdicts.count("not shown") + verdicts.count("not run")} not shown; '
          + (f'an actuator was ON after rows {ON_AFTERWARDS}' if ON_AFTERWARDS else
             f'all {sum(row.actuators for row in TABLE.values()):,} actuators that were looked at went OFF'))


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption('--faults') and any(row.verdict() in ('MISSED', 'not run') for row in TABLE.values()) and session.exitstatus == 0:
        session.exitstatus = 1
