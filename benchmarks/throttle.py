"""The pipeline while a simulated Raspberry Pi 4 gets too hot, recorded: what a throttle moment looks like, on a machine that does not throttle.

    python benchmarks/throttle.py --seconds 230 --ambient 30 --record-to build/hot && latency_report build/hot --out build/hot_report

All nodes are the real ones in one process. The board is simulated under full load, and inference is made to take as
much longer as the simulated clock is slower; the other nodes are not slowed.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from functools import partial
from typing import Any

import rclpy

from edge_resnet.deployment import STARTED, use_transport_profile
from edge_resnet.hardware.thermal import FULL_MHZ
from edge_resnet.nodes.inference_node import InferenceNode
from edge_resnet.nodes.pipeline import factory
from edge_resnet.nodes.runner import run
from edge_resnet.nodes.thermal_monitor_node import ThermalMonitorNode
from edge_resnet.pipeline.classifier import Classifier

thermal: list[ThermalMonitorNode] = []


class SlowedClassifier(Classifier):
    def classify(self, image: Any) -> Any:
        began = time.monotonic()
        scores = super().classify(image)
        clock_mhz = thermal[0]._reading.clock_mhz or FULL_MHZ
        time.sleep((time.monotonic() - began) * (FULL_MHZ / clock_mhz - 1))
        return scores


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=230.0)
    parser.add_argument('--ambient', type=float, default=30.0, help='degrees Celsius')
    parser.add_argument('--record-to', required=True)
    args = parser.parse_args(argv)
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(1 + os.getpid() % 100))
    use_transport_profile()
    given = {'thermal_monitor': {'board': 'simulated', 'load': 1.0, 'ambient_c': args.ambient},
             'latency_monitor': {'record_to': args.record_to},
             'actuator': {'state_file': os.path.join(tempfile.mkdtemp(), 'state')}}

    def make(name: str) -> Any:
        overrides = [rclpy.Parameter(key, value=value) for key, value in given.get(name, {}).items()]
        kind = partial(InferenceNode, SlowedClassifier) if name == 'inference' else factory(name)
        node = kind(parameter_overrides=overrides)
        if name == 'thermal_monitor':
            thermal.append(node)
        return node

    threading.Timer(args.seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    return run([partial(make, name) for name in STARTED], [])


if __name__ == '__main__':
    raise SystemExit(main())
