"""What monitoring costs: latency_monitor on and off in turns, in one run of the pipeline, as processes.

    make bench-monitoring

On, it is active: every stage publishes its records, the monitor joins them, publishes and, with --record, writes them down. Off, it is
deactivated, and no stage publishes a record. The processor time is that of all processes of the pipeline; latency is the age of each
classification when it reaches this process, which listens to nothing else in either case.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

import rclpy
from footprint import cpu_s
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from vision_msgs.msg import Classification

from edge_resnet.conversions import stamp_ns
from edge_resnet.deployment import plan, transport_environment
from edge_resnet.nodes.base import FRAME_QOS
from edge_resnet.pipeline.latency import percentile

ACTIVATE, DEACTIVATE = 3, 4  # lifecycle_msgs/Transition


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=8, help='of off and on')
    parser.add_argument('--seconds', type=float, default=10.0, help='length of each half of a round')
    parser.add_argument('--settle', type=float, default=12.0, help='time for the nodes to start')
    parser.add_argument('--record', action='store_true', help='record, too')
    parser.add_argument('arguments', nargs='*', metavar='name:=value', help='launch arguments, as composed:=true')
    args = parser.parse_args(argv)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    given = dict(text.split(':=', 1) for text in args.arguments)
    with tempfile.TemporaryDirectory() as folder:
        if args.record:
            given['record_to'] = folder
        deployment = plan({'log_level': 'warn', **given})
        children = [subprocess.Popen([sys.executable, '-m', f'edge_resnet.nodes.{name}', *arguments], stderr=subprocess.DEVNULL,
                                     env={**os.environ, **transport_environment(os.environ)}) for name, arguments in deployment.executables.items()]
        try:
            report(*measure(args, {name: child.pid for name, child in zip(deployment.executables, children, strict=True)}))
        finally:
            for child in children:
                child.send_signal(signal.SIGTERM)
            for child in children:
                child.wait()
    return 0


def measure(args: argparse.Namespace, pids: dict[str, int]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Figures of each half, off and on."""
    rclpy.init()
    node, executor, ages = rclpy.create_node('bench_monitoring'), SingleThreadedExecutor(), []

    def heard(message: Classification) -> None:
        ages.append((time.time_ns() - stamp_ns(message.header)) / 1e6)

    node.create_subscription(Classification, 'classification', heard, FRAME_QOS)
    client = node.create_client(ChangeState, 'latency_monitor/change_state')
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    threading.Thread(target=spin, daemon=True).start()
    time.sleep(args.settle)
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    if not client.wait_for_service(20.0):
        raise SystemExit('latency_monitor does not answer')
    is_on = True
    for half in range(2 * args.rounds):
        on = half // 2 % 2 != half % 2  # off on, on off: a drift hits both alike
        if on != is_on:
            request, is_on = ChangeState.Request(), on
            request.transition.id = ACTIVATE if on else DEACTIVATE
            client.call(request)
            time.sleep(1.5)
        ages.clear()
        before, began = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
        time.sleep(args.seconds)
        spent = {name: 100 * (cpu_s(pid) - before[name]) / (time.monotonic() - began) for name, pid in pids.items()}
        monitor = spent.get('latency_monitor_node', 0.0)
        found[on].append({'cpu': sum(spent.values()), 'monitor': monitor, 'rest': sum(spent.values()) - monitor - spent.get('inference_node', 0.0),
                          'p50': percentile(list(ages), 50), 'p99': percentile(list(ages), 99), 'rate': len(ages) / args.seconds})
    rclpy.try_shutdown()
    return found


def report(off: list[dict[str, float]], on: list[dict[str, float]]) -> None:
    print(f'{len(on)} rounds, {percentile([half["rate"] for half in on], 50):.1f} Hz; median (least to most)')
    for key, name, unit in (('cpu', 'all processes', '% of a core'), ('monitor', 'latency_monitor', '% of a core'),
                            ('rest', 'without inference', '% of a core'), ('p50', 'latency p50', 'ms'), ('p99', 'latency p99', 'ms')):
        columns = [half[key] for half in off], [half[key] for half in on], [b[key] - a[key] for a, b in zip(off, on, strict=True)]
        print(f'{name:17}', *(f'{label} {percentile(values, 50):7.3f} ({min(values):.3f} to {max(values):.3f})' for label, values in zip(
            ('off', 'on', 'difference'), columns, strict=True)), unit)


if __name__ == '__main__':
    raise SystemExit(main())
