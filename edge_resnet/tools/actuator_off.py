"""Drives the actuator off and ends: what a launch file or a systemd unit runs after the node, however that ended.

    actuator_off --ros-args --params-file /etc/edge_resnet/pipeline.yaml -p backend:=gpio

Takes the arguments of the actuator node and needs neither the node nor ROS 2. Exit code 0 when the actuator is off, 1 when it may not be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_resnet.deployment import node_parameters
from edge_resnet.exceptions import EdgeResnetError
from edge_resnet.hardware.actuators import default_state_file
from edge_resnet.hardware.guard import drive_off

PATIENCE_S = 5.0
NODE = 'actuator'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='actuator_off', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _, arguments = parser.parse_known_args(argv)
    try:
        name, given = node_parameters(arguments, NODE)
        backend, pin = str(given.get('backend', 'simulated')), int(given.get('gpio_pin', 17))
        state_file = Path(given.get('state_file') or default_state_file(name))
        drive_off(backend, gpio_pin=pin, state_file=state_file, active_high=bool(given.get('gpio_active_high', True)), patience_s=PATIENCE_S)
    except (EdgeResnetError, ValueError, TypeError) as error:
        print(f'actuator_off: the actuator may be on: {error}', file=sys.stderr)
        return 1
    print(f'actuator off: {f"pin {pin}" if backend == "gpio" else state_file}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
