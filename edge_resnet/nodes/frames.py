"""How frames get from node to node: handed over inside a process, in shared memory, or published; all of them, or only those that are asked for."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from copy import copy
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import UInt64MultiArray

from edge_resnet.conversions import ImageView, Results, read_duration, write_duration, write_numbers, write_results
from edge_resnet.nodes.shared_images import SharedImages

# The freshest frame only. Reliable, so that frames also get through Fast DDS's defaults, and so that a publisher reaches
# reliable and best-effort subscribers alike; with a history of one nothing is ever queued behind a slow reader.
FRAME_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)

BEST_EFFORT_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

OFFER_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

UPCOMING_S = 0.002  # ahead of a frame it is announced


def overridable(qos: QoSProfile) -> dict[str, Any]:
    """What create_publisher and create_subscription take for ``qos`` that parameters may override: a copy, since rclpy overrides it in place."""
    return {'qos_profile': copy(qos), 'qos_overriding_options': QoSOverridingOptions.with_default_policies()}


def request_topic(topic: str) -> str:
    """Where those who use only some of ``topic``'s frames ask for them: a Duration, from now, in which the next one is wanted."""
    return f'{topic}/request'


def upcoming_topic(topic: str) -> str:
    """Where the next of ``topic``'s frames is announced: a Duration, from now, in which it is expected."""
    return f'{topic}/upcoming'


def memory_topic(topic: str) -> str:
    """Where it is told, latched, in which memory the images of ``topic`` are: process, file and identity."""
    return f'{topic}/memory'


def shared_topic(topic: str) -> str:
    """Where those who have mapped that memory are told where in it the next image is: identity, number, offset, length."""
    return f'{topic}/shared'


def consumers(node: Any, topic: str, subscribing: int, sharing: int) -> int:
    """Of ``topic``, to which so many subscribe while so many are told where its images are; who changes from one to the other does both
    until the first shared image has come."""
    if not (subscribing and sharing):
        return subscribing + sharing
    taking, told = ({(info.node_namespace, info.node_name) for info in node.get_subscriptions_info_by_topic(name)}
                    for name in (topic, shared_topic(topic)))
    return subscribing + sharing - len(taking & told)


class Gate(MutuallyExclusiveCallbackGroup):
    """A subscription in it is left out of the executor's wait set while it is not ``open``; its queue of one keeps the newest message, and its
    events are heard all the same."""

    open = True

    def can_execute(self, entity: Any) -> bool:
        return (self.open or not isinstance(entity, Subscription)) and super().can_execute(entity)


class LocalTopic:
    """What there is of a topic inside this process: outputs, and the inputs that frames are handed over to."""

    def __init__(self) -> None:
        self.outputs: list[FrameOutput] = []
        self.inputs: list[Any] = []  # with hand_over(frame, number) -> bool


_lock = threading.Lock()
_topics: dict[tuple[int, str], LocalTopic] = defaultdict(LocalTopic)


def local_topic(node: Any, topic: str) -> LocalTopic:
    with _lock:
        return _topics[id(node.context), topic]


class FrameOutput:
    """Publishes frames: freshest only, reaches reliable and best-effort subscribers. Inputs in this process get the frame itself, inputs on this
    host read images where they are, and nothing is published unless somebody else subscribes. ``on_request`` is told in how many seconds a frame
    is wanted; it gets the node's turn.

    A frame that comes after a pause finds the code that handles it out of the processor's caches. An announcement just ahead of it takes the
    same way, and brings it back there."""

    def __init__(self, node: Any, kind: type, topic: str, on_request: Callable[[float], None] | None = None) -> None:
        self._node = node
        self.publisher = node.create_publisher(kind, topic, **overridable(FRAME_QOS))
        self.topic = self.publisher.topic_name
        self._number = 0
        self._images: SharedImages | None = None
        if kind is Image:
            self._memory = node.create_publisher(UInt64MultiArray, memory_topic(self.topic), OFFER_QOS)
            self._shared = node.create_publisher(UInt64MultiArray, shared_topic(self.topic), FRAME_QOS)
            self._images = SharedImages(self.publisher, lambda *memory: self._memory.publish(write_numbers(*memory)))
        self._local = local_topic(node, self.topic)
        self._announcements = node.create_publisher(Duration, upcoming_topic(self.topic), BEST_EFFORT_QOS)
        self._on_request = on_request
        if on_request is not None:
            node.create_subscription(Duration, request_topic(self.topic),
                                     lambda data: on_request(read_duration(data)), BEST_EFFORT_QOS, raw=True)
        self._local.outputs.append(self)

    def publish(self, frame: Any) -> None:
        """``frame``: a message, CDR bytes, Results, or an ImageView, whose array nobody may write to from now on."""
        self._number += 1
        handed_over = sum([receiver.hand_over(frame, self._number) for receiver in tuple(self._local.inputs)])
        if self._images is None or not isinstance(frame, ImageView):
            if self.publisher.get_subscription_count() > handed_over:
                self.publisher.publish(write_results(frame) if isinstance(frame, Results) else frame)
            return
        sharing, published = self._shared.get_subscription_count(), self.publisher.get_subscription_count() > handed_over
        if sharing or published:
            self._images.write(frame, self._number)
        if sharing:
            self._shared.publish(write_numbers(*self._images.place))
        if published:
            self._images.publish()

    def announce(self) -> None:
        """A frame is expected to be published in ``UPCOMING_S``."""
        told = sum([receiver.upcoming() for receiver in tuple(self._local.inputs)])
        if self._announcements.get_subscription_count() > told:
            self._announcements.publish(write_duration(UPCOMING_S))

    def request(self, in_s: float) -> bool:
        """As a request on the topic, called by an input in this process from its thread; False when it has to be published."""
        return self._on_request is not None and self._node.at_once(self._on_request, self.topic, in_s)

    def every_frame(self, others: int = 0) -> bool:
        """Whether somebody subscribes who doesn't ask for frames and so wants them all; ``others`` subscribe to another form of them."""
        sharing = self._shared.get_subscription_count() if self._images is not None else 0
        takers = consumers(self._node, self.topic, self.publisher.get_subscription_count(), sharing)
        return takers + others > self._node.count_publishers(request_topic(self.topic))

    def close(self) -> None:
        if self in self._local.outputs:
            self._local.outputs.remove(self)
        if self._images is not None:
            self._images.close()
