"""Spins nodes in this process and listens to what they say."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from sensor_msgs.msg import Image

from edge_resnet.conversions import Header, Stamp, write_image
from edge_resnet.deployment import transport_environment
from edge_resnet.nodes.base import RECORD_QOS
from edge_resnet.nodes.executor import LeanExecutor
from edge_resnet.nodes.frames import FRAME_QOS

PATIENCE_S = 20.0


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """The first true value of ``condition``; AssertionError names ``what`` never came."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f'{what} did not happen within {timeout_s} s')


class Bench:
    """A probe node with publishers and listeners, and the nodes under test, each on a thread of its own."""

    def __init__(self) -> None:
        profile = transport_environment(os.environ)  # as launch gives it to a robot's nodes; Fast DDS reads it once in a process
        os.environ.update(profile)
        rclpy.init(args=[])
        self._running: list[tuple[Node, LeanExecutor, threading.Thread]] = []
        self.probe = Node('probe')
        for name in profile:
            del os.environ[name]
        self.spin(self.probe)

    def spin(self, node: Node) -> Node:
        executor = LeanExecutor(node)
        thread = threading.Thread(target=self._spin, args=(executor,), daemon=True)
        thread.start()
        self._running.append((node, executor, thread))
        return node

    @staticmethod
    def _spin(executor: LeanExecutor) -> None:
        try:
            executor.spin()
        except Exception:
            if rclpy.ok():
                raise

    def start(self, kind: Callable[..., Any], **parameters: Any) -> Any:
        """A node of class ``kind`` with ``parameters``, configured, active and spinning."""
        node = self.make(kind, **parameters)
        node.trigger_configure()
        assert node.is_configured(), node.failure
        node.trigger_activate()
        assert node.active, node.failure
        return self.spin(node)

    def make(self, kind: Callable[..., Any], **parameters: Any) -> Any:
        return kind(parameter_overrides=[rclpy.Parameter(name, value=value) for name, value in parameters.items()])

    def listen(self, kind: type, topic: str, qos: Any = RECORD_QOS) -> list[Any]:
        """What arrives on ``topic`` from now on."""
        heard: list[Any] = []
        self.probe.create_subscription(kind, topic, heard.append, qos)
        return heard

    def publisher(self, kind: type, topic: str, qos: Any = FRAME_QOS) -> Any:
        """A publisher that already has a subscriber."""
        publisher = self.probe.create_publisher(kind, topic, qos)
        wait_for(publisher.get_subscription_count, f'a subscriber of {topic}')
        time.sleep(0.2)  # the other side has to match too
        return publisher

    def diagnostics(self, name: str) -> Callable[[], dict[str, str]]:
        """A function that gives the newest diagnostics of node ``name``: its values, and '' -> 'LEVEL message'."""
        heard = self.listen(DiagnosticArray, '/diagnostics')

        def newest() -> dict[str, str]:
            for array in reversed(heard):
                status = array.status[0]
                if status.name == name:
                    return {'': f'{status.level[0]} {status.message}', **{entry.key: entry.value for entry in status.values}}
            return {}

        return newest

    def starve(self) -> None:
        """Stop every node but the actuators: nobody feeds them any more."""
        for node, _, _ in self._running:
            if hasattr(node, 'make_safe') and node.get_name() != 'actuator':
                node.make_safe()

    def close(self) -> None:
        try:
            for node, executor, _ in self._running:
                if hasattr(node, 'make_safe'):
                    node.make_safe()
                executor.shutdown(timeout_sec=1.0)
            for node, _, thread in self._running:
                thread.join(2.0)
                node.destroy_node()
        finally:
            rclpy.try_shutdown()
            self._running.clear()
            del self.probe
            gc.collect()  # a lifecycle node's services, and its participant with them, live until then


def image_bytes(stamp_ns: int, image: np.ndarray | None = None, encoding: str = 'rgb8', frame_id: str = 'lens') -> bytes:
    """CDR of a sensor_msgs/Image, 64x48 and grey unless given."""
    return write_image(Header(Stamp.from_ns(stamp_ns), frame_id), np.full((48, 64, 3), 128, np.uint8) if image is None else image, encoding)


def image_message(**fields: Any) -> Image:
    """A sensor_msgs/Image that a test can spoil: 4x2 rgb8 with ``fields`` replaced."""
    return Image(**{'height': 2, 'width': 4, 'encoding': 'rgb8', 'step': 12, 'data': bytes(24), **fields})
