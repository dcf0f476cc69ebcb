"""Runs nodes until a signal, and leaves the hardware safe whatever ended them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import rclpy
from lifecycle_msgs.msg import State
from rclpy.logging import get_logger
from rclpy.signals import SignalHandlerOptions

from edge_resnet.exceptions import EdgeResnetError
from edge_resnet.nodes.base import STUCK_S, TURN_S, ManagedNode
from edge_resnet.nodes.executor import LeanExecutor
from edge_resnet.stopping import StopRequest
from edge_resnet.systemd import SystemdNotifier

ENDS_S = 2.0  # for threads at the end
SWITCH_S = 2e-4  # between threads of composed nodes; with Python's 5 ms a frame waits while its sender does what is not urgent


def run(factories: Sequence[Callable[[], ManagedNode]], argv: Sequence[str] | None = None) -> int:
    """Make the nodes, spin each on an executor thread of its own, bring up those with ``autostart``; return the exit code.

    0 after SIGINT, SIGTERM or a shutdown of the context, 1 when a node can't start or a spinning thread fails. The main
    thread only waits, so that a signal is always heard.
    """
    sys.setswitchinterval(SWITCH_S)
    stop = StopRequest().on_signals()
    nodes: list[ManagedNode] = []
    executors: list[LeanExecutor] = []
    threads: list[threading.Thread] = []
    turned: dict[LeanExecutor, float] = {}
    failed = threading.Event()

    def spin(executor: LeanExecutor) -> None:
        try:
            while not stop.is_set() and rclpy.ok():
                turned[executor] = time.monotonic()
                executor.spin_once(timeout_sec=TURN_S)
        except Exception as error:
            if not stop.is_set() and rclpy.ok():
                failed.set()
                get_logger('edge_resnet').fatal(f'spinning ended: {type(error).__name__}: {error}')
        finally:
            stop.set()

    try:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
        for factory in factories:
            nodes.append(factory())
        for text in sorted(unknown_parameters(nodes)):
            get_logger('edge_resnet').warning(text)
        for node in nodes:
            if stop.is_set():
                break
            if node.get_parameter('autostart').value and not bring_up(node):
                return 1
            executor = LeanExecutor(node)
            executors.append(executor)
            turned[executor] = time.monotonic()
            threads.append(threading.Thread(target=spin, args=(executor,), name=node.get_name(), daemon=True))
            threads[-1].start()
        systemd = SystemdNotifier()
        systemd.tell('READY=1')
        while not stop.wait(systemd.period_s):  # other signals wake it too
            rounds = [*turned.values(), *(executor.attended_s for executor in executors),
                      *(at for node in nodes for at in tuple(node.turned.values()))]
            if time.monotonic() - min(rounds, default=0.0) < STUCK_S:
                systemd.tell('WATCHDOG=1')
    except EdgeResnetError as error:
        get_logger('edge_resnet').fatal(str(error))
        return 1
    except Exception as error:  # rcl's own refusals, such as a name that is not a ROS name
        get_logger('edge_resnet').fatal(' '.join(f'{type(error).__name__}: {error}'.split()))
        return 1
    finally:
        stop.set()
        _close(nodes, executors, threads)
    return 1 if failed.is_set() else 0


def unknown_parameters(nodes: Sequence[ManagedNode]) -> list[str]:
    """A line for each parameter that was given to some of ``nodes``, by -p to all of them, and that none of these has."""
    known = {name for node in nodes for name in node.given_parameters - node.unknown_parameters}
    unknown = {name for node in nodes for name in node.unknown_parameters} - known
    given_to = {name: ', '.join(node.get_name() for node in nodes if name in node.unknown_parameters) for name in unknown}
    return [f'{names}: unknown parameter {name}: ignored' for name, names in given_to.items()]


def bring_up(node: ManagedNode) -> bool:
    """Configure and activate ``node``; False when it refused, which it has logged."""
    with node.turn:  # frames of other nodes in this process wait until it is active
        node.trigger_configure()
        if node._state_machine.current_state[0] != State.PRIMARY_STATE_INACTIVE:
            return False
        node.trigger_activate()
    return node._state_machine.current_state[0] == State.PRIMARY_STATE_ACTIVE


def _close(nodes: list[ManagedNode], executors: list[LeanExecutor], threads: list[threading.Thread]) -> None:
    for executor in executors:
        executor.closing = True
    for node in reversed(nodes):  # before anything that may hang: the hardware, and the actuator before those that feed it
        try:
            node.make_safe()
        except Exception as error:
            get_logger('edge_resnet').error(f'{node.get_name()}: {type(error).__name__}: {error}')
    for executor in executors:
        executor.wake()
    for thread in threads:
        thread.join(ENDS_S)
    until_s = time.monotonic() + ENDS_S
    while any(node.turned for node in nodes) and time.monotonic() < until_s:  # a model that is at work
        time.sleep(0.01)
    endings: list[Callable[[], Any]] = [*(partial(executor.shutdown, 1.0) for executor in executors), *(node.destroy_node for node in nodes)]
    for ending in endings:
        try:
            ending()
        except Exception as error:
            print(f'edge_resnet: {type(error).__name__}: {error}', file=sys.stderr)
    rclpy.try_shutdown()
