"""Every test that talks over DDS stays on this machine and on a domain of its own."""

import faulthandler
import os
import sys
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

ROOT = Path(__file__).resolve().parents[1]
HANG_S, FAULTS_HANG_S = 600, 1800
sys.path.insert(0, str(Path(__file__).parent))  # test/tiny_model.py, test/bench.py and test/clock.py for all test folders
from clock import Clock  # noqa: E402

os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_DOMAIN_ID'] = str(102 + os.getpid() % 100)


def pytest_addoption(parser):  # of test/faults; pytest asks only this file, unless it is given folders
    parser.addoption('--faults', action='store_true', help='every fault as often as docs/faults.md says, and the table')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test that hangs tells where and ends the run. Not from a thread of Python's: Fast DDS may hang with the interpreter's lock held (#6502)."""
    hang_s = FAULTS_HANG_S if item.config.getoption('--faults') else HANG_S
    faulthandler.dump_traceback_later(hang_s, file=item.config.stash[fault_handler_stderr_fd_key], exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture
def clock() -> Clock:
    return Clock()
