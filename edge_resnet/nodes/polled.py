"""Messages as subscriptions give them, and topics of small records that a timer drains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import TimeReference

from edge_resnet.conversions import read_stage
from edge_resnet.exceptions import ResultError
from edge_resnet.nodes.base import ManagedNode
from edge_resnet.nodes.executor import take_message
from edge_resnet.nodes.frames import Gate

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

POLLED_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1000, reliability=ReliabilityPolicy.RELIABLE)  # 0.5 s of seven records at 240 Hz


def numbers(info: Any) -> tuple[int | None, int, int]:
    """Sequence number, when it was received and when it was sent, ns, of a message with the middleware's ``info``; Humble tells none."""
    info = info if isinstance(info, dict) else {}
    return info.get('publication_sequence_number'), info.get('received_timestamp', 0), info.get('source_timestamp', 0)


def with_info(callback: Callable[[Any, Any], None]) -> Callable[..., None]:
    """``callback`` for a subscription, which on Humble has no info for it."""
    return callback if hasattr(Subscription, 'CallbackType') else partial(_without_info, callback)


def _without_info(callback: Callable[[Any, Any], None], message: Any) -> None:
    callback(message, None)


class Polled:
    """A topic of small records that the node's own timer drains a few times a second: a message costs 0.007 ms that way, and some 0.1 ms
    through rclpy's executor. Messages are CDR bytes if ``raw``."""

    def __init__(self, node: ManagedNode, kind: type, topic: str, qos: QoSProfile = POLLED_QOS, *, raw: bool = False) -> None:
        self._node, gate = node, Gate()
        gate.open = False
        self._subscription = node.create_subscription(
            kind, topic, lambda message: None, qos, raw=raw, callback_group=gate,
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))

    def take(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """What has come since the last call: messages, oldest first, and the middleware's info of each."""
        while (taken := take_message(self._subscription)) is not None:
            yield taken

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)


class StageTimes(Polled):
    """What the stages tell on ``stage_times``."""

    def __init__(self, node: ManagedNode) -> None:
        super().__init__(node, TimeReference, 'stage_times', raw=True)

    def records(self) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """(source, stamp of the frame in ns, time in ns, the middleware's info) of what has come since the last call."""
        for data, info in self.take():
            try:
                source, stamp_ns, time_ns = read_stage(data)
            except ResultError as error:
                self._node.fault('stage_times', str(error))
            else:
                yield source, stamp_ns, time_ns, info
