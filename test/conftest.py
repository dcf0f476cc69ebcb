"""Every test that talks over DDS stays on this machine and on a domain of its own."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # test/tiny_model.py, test/bench.py and test/clock.py for all test folders
from clock import Clock  # noqa: E402

os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_DOMAIN_ID'] = str(102 + os.getpid() % 100)


def pytest_addoption(parser):  # of test/faults; pytest asks only this file, unless it is given folders
    parser.addoption('--faults', action='store_true', help='every fault as often as docs/faults.md says, and the table')


@pytest.fixture
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture
def clock() -> Clock:
    return Clock()
