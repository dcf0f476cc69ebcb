import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def processes():
    from processes import Processes

    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def bench():
    pytest.importorskip('rclpy')
    from bench import Bench

    bench = Bench()
    yield bench
    bench.close()
