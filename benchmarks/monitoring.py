"""What monitoring costs: latency_monitor on and off in turns, in one run of the pipeline, as processes.

    make bench-monitoring

On, it is active: every stage publishes its records, the monitor joins them, publishes and, with --record, writes them down. Off, it is
deactivated, and no stage publishes a record. The processor time is that of all processes of the pipeline. The latency is `total`: the
actuator's process notes stamp and time of command of each frame, in a file, from where it tells the stage, on and off alike. So what
noting costs is in both and not in the difference; what making, sending and reading records does to the frames is in the difference.
"""

from __future__ import annotations

import argparse
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from footprint import cpu_s
from lifecycle_msgs.srv import ChangeState

from edge_resnet.conversions import stamp_ns
from edge_resnet.deployment import plan, transport_environment
from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, percentile

ACTIVATE, DEACTIVATE = 3, 4  # lifecycle_msgs/Transition
MODEL = 'mobilenetv3_small_minimalistic_traffic_lights'  # fast, so that every frame gets through


def node(noted: str, name: str, arguments: list[str]) -> int:
    """Be executable ``name``, and note the stamp and the time of command of each frame in file ``noted``, both in ns."""
    if name in ('actuator_node', 'pipeline'):
        from edge_resnet.nodes.actuator_node import ActuatorNode

        file, tell = os.open(noted, os.O_WRONLY | os.O_APPEND), ActuatorNode.stage

        def stage(self: ActuatorNode, source: str, header: Any, time_ns: int) -> None:
            if source == ACTUATOR_COMMANDED:
                os.write(file, struct.pack('<qq', stamp_ns(header), time_ns))
            tell(self, source, header, time_ns)

        ActuatorNode.stage = stage  # type: ignore[method-assign]
    return import_module(f'edge_resnet.nodes.{name}').main([name, *arguments])


def main(argv: list[str] | None = None) -> int:
    if sys.argv[1:2] == ['node']:
        return node(sys.argv[2], sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=8, help='of off and on')
    parser.add_argument('--seconds', type=float, default=10.0, help='length of each half of a round')
    parser.add_argument('--settle', type=float, default=12.0, help='time for the nodes to start')
    parser.add_argument('--record', action='store_true', help='record, too')
    parser.add_argument('arguments', nargs='*', metavar='name:=value', help='launch arguments, as composed:=true')
    args = parser.parse_args(argv)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    given = {'model': MODEL, **dict(text.split(':=', 1) for text in args.arguments)}
    with tempfile.TemporaryDirectory() as folder:
        if args.record:
            given['record_to'] = folder
        deployment, noted = plan({'log_level': 'warn', **given}), Path(folder, 'noted')
        noted.touch()
        environment = {**os.environ, **transport_environment(os.environ)}
        children = {name: subprocess.Popen([sys.executable, __file__, 'node', str(noted), name, *arguments], env=environment,
                                           stderr=subprocess.DEVNULL) for name, arguments in deployment.executables.items()}
        try:
            report(*measure(args, {name: child.pid for name, child in children.items()}, noted))
        finally:
            for child in children.values():
                child.send_signal(signal.SIGTERM)
            for child in children.values():
                child.wait()
    return 0


def measure(args: argparse.Namespace, pids: dict[str, int], noted: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Figures of each half, off and on."""
    rclpy.init()
    switch = rclpy.create_node('bench_monitoring')
    client = switch.create_client(ChangeState, 'latency_monitor/change_state')
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
            answer = client.call_async(request)
            rclpy.spin_until_future_complete(switch, answer, timeout_sec=20.0)
            if answer.result() is None or not answer.result().success:
                raise SystemExit('latency_monitor was not switched')
            time.sleep(1.5)
        before, began, first = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic(), noted.stat().st_size
        time.sleep(args.seconds)
        spent = {name: 100 * (cpu_s(pid) - before[name]) / (time.monotonic() - began) for name, pid in pids.items()}
        stamps, commanded = np.fromfile(noted, '<i8', offset=first).reshape(-1, 2).T
        total_ms, monitor = (commanded - stamps) / 1e6, spent.get('latency_monitor_node', 0.0)
        found[on].append({'cpu': sum(spent.values()), 'monitor': monitor, 'rest': sum(spent.values()) - monitor - spent.get('inference_node', 0.0),
                          'p50': percentile(total_ms, 50), 'p99': percentile(total_ms, 99), 'rate': len(total_ms) / args.seconds})
    rclpy.try_shutdown()
    return found


def report(off: list[dict[str, float]], on: list[dict[str, float]]) -> None:
    print(f'{len(on)} rounds, {percentile([half["rate"] for half in on], 50):.1f} Hz; median (least to most), mean with two standard errors')
    for key, name, unit in (('cpu', 'all processes', '% of a core'), ('monitor', 'latency_monitor', '% of a core'),
                            ('rest', 'without inference', '% of a core'), ('p50', 'total p50', 'ms'), ('p99', 'total p99', 'ms')):
        before, after = [half[key] for half in off], [half[key] for half in on]
        grown = [b - a for a, b in zip(before, after, strict=True)]
        mean, error = float(np.mean(grown)), float(np.std(grown, ddof=1)) / len(grown) ** 0.5
        print(f'{name:17}', *(f'{label} {percentile(values, 50):7.3f} ({min(values):.3f} to {max(values):.3f})' for label, values in (
            ('off', before), ('on', after))), f'difference {percentile(grown, 50):7.3f}, mean {mean:.3f} +- {2 * error:.3f} {unit}')


if __name__ == '__main__':
    raise SystemExit(main())
