"""Memory (PSS) and processor time of the running and of the deactivated pipeline, five processes and composed.

    make bench-footprint

PSS counts a page that several processes share in equal parts, so the sum is what the machine really spends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import rclpy
from lifecycle_msgs.srv import ChangeState

from edge_resnet.deployment import STARTED, plan, transport_environment

DEACTIVATE = 4  # lifecycle_msgs/Transition.TRANSITION_DEACTIVATE


def pss_mb(pid: int) -> float:
    with open(f'/proc/{pid}/smaps_rollup') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('Pss:')) / 1024


def cpu_s(pid: int) -> float:
    with open(f'/proc/{pid}/stat') as file:
        fields = file.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def measure(children: dict[str, subprocess.Popen], seconds: float) -> dict[str, dict[str, float]]:
    before = {name: cpu_s(child.pid) for name, child in children.items()}
    time.sleep(seconds)
    return {name: {'cpu_percent': 100 * (cpu_s(child.pid) - before[name]) / seconds, 'pss_mb': pss_mb(child.pid)} for name, child in children.items()}


def deactivate() -> None:
    node = rclpy.create_node('footprint')
    for name in STARTED:
        client = node.create_client(ChangeState, f'/{name}/change_state')
        if not client.wait_for_service(20.0):
            raise SystemExit(f'{name} does not answer')
        request = ChangeState.Request()
        request.transition.id = DEACTIVATE
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future, timeout_sec=20.0)
        if future.result() is None or not future.result().success:
            raise SystemExit(f"{name} can't be deactivated")
    node.destroy_node()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=20.0, help='length of each measurement')
    parser.add_argument('--settle', type=float, default=8.0, help='time for the nodes to start')
    parser.add_argument('--model', default='')
    args = parser.parse_args(argv)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    rclpy.init()
    report = {}
    for composed in ('false', 'true'):
        deployment = plan({'composed': composed, 'log_level': 'warn', 'model': args.model})
        children = {name: subprocess.Popen([sys.executable, '-m', f'edge_resnet.nodes.{name}', *arguments],
                                           env={**os.environ, **transport_environment(os.environ)}, stderr=subprocess.DEVNULL)
                    for name, arguments in deployment.executables.items()}
        try:
            time.sleep(args.settle)
            active = measure(children, args.seconds)
            deactivate()
            time.sleep(2.0)
            idle = measure(children, args.seconds)
        finally:
            for child in children.values():
                child.terminate()
            for child in children.values():
                child.wait()
        kind = 'composed' if composed == 'true' else 'separate'
        for state, figures in (('active', active), ('deactivated', idle)):
            total = {key: sum(entry[key] for entry in figures.values()) for key in ('cpu_percent', 'pss_mb')}
            report[f'{kind} {state}'] = {**figures, 'total': total}
            for name, entry in [*figures.items(), ('total', total)]:
                print(f'{kind:9} {state:12} {name:22} {entry["pss_mb"]:7.1f} MB PSS {entry["cpu_percent"]:7.2f} % of a core')
    rclpy.try_shutdown()
    print(json.dumps(report), file=sys.stderr)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
