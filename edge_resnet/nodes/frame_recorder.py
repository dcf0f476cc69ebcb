"""Frames of a running camera's topic for capture_calibration, taken as the preprocess node takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from edge_resnet.conversions import compressed_array, image_array, read_image
from edge_resnet.exceptions import SourceError
from edge_resnet.nodes.base import ManagedNode
from edge_resnet.nodes.inputs import FrameInput

KINDS = {'sensor_msgs/msg/Image': Image, 'sensor_msgs/msg/CompressedImage': CompressedImage}
Decode = Callable[[], tuple[np.ndarray, str]]


@dataclass(frozen=True)
class NoParameters:
    pass


class FrameRecorder(ManagedNode[NoParameters]):
    """Keeps the newest message of ``topic``; the one who spins takes it."""

    Parameters = NoParameters

    def __init__(self, topic: str, **options: Any) -> None:
        super().__init__('capture_calibration', **options)
        self.topic = self.resolve_topic_name(topic)
        self._input: FrameInput | None = None
        self._newest: Decode | None = None

    def kind(self) -> type | None:
        """The message type of what is published on the topic, None before something is; SourceError when it is no image."""
        found = {info.topic_type for info in self.get_publishers_info_by_topic(self.topic)}
        if found and not found & set(KINDS):
            raise SourceError(f'{self.topic}: its type is {", ".join(sorted(found))}, expected {" or ".join(KINDS)}')
        return next((KINDS[name] for name in sorted(found) if name in KINDS), None)

    def listen(self, kind: type) -> None:
        self._input = FrameInput(self, kind, self.topic, self._on_image if kind is Image else self._on_compressed)

    def deactivate(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None

    def _on_image(self, data: bytes) -> None:
        self._newest = lambda: image_array(read_image(data))

    def _on_compressed(self, data: bytes) -> None:
        self._newest = lambda: compressed_array(deserialize_message(data, CompressedImage).data)

    def take(self) -> Decode | None:
        newest, self._newest = self._newest, None
        return newest


def messages(topic: str, ros_args: Sequence[str], patience_s: float) -> Iterator[Decode]:
    """Decoders of the freshest frames of ``topic``, without an end. SourceError when none has come for ``patience_s``."""
    rclpy.init(args=list(ros_args), signal_handler_options=SignalHandlerOptions.NO)
    try:
        node, executor = FrameRecorder(topic), SingleThreadedExecutor()
        executor.add_node(node)
        heard_s, kind = time.monotonic(), None
        try:
            while time.monotonic() - heard_s < patience_s:
                if kind is None:
                    kind = node.kind()
                    if kind is not None:
                        node.listen(kind)
                executor.spin_once(timeout_sec=0.1)
                decode = node.take()
                if decode is not None:
                    yield decode
                    heard_s = time.monotonic()
            raise SourceError(f'{node.topic}: {"no image came" if kind else "nobody published it"} for {patience_s:g} s')
        finally:
            node.make_safe()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
