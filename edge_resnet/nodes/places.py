"""Images that are read where their publisher on this host has them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from std_msgs.msg import UInt64MultiArray

from edge_resnet.conversions import read_numbers
from edge_resnet.exceptions import EdgeResnetError
from edge_resnet.nodes.base import LATCHED_QOS, ManagedNode
from edge_resnet.nodes.executor import take_message
from edge_resnet.nodes.frames import FRAME_QOS, Gate, memory_topic, shared_topic
from edge_resnet.nodes.polled import Polled, SubscriptionEventCallbacks, numbers, with_info
from edge_resnet.nodes.shared_images import MappedImages

MEMORIES = 4  # that are kept mapped, and offers that are heard at a time
UNSERVED = 3  # places in a row from which there was no image to be had
TRIES_S, TRIES_AGAIN_S = 2.0, 10.0  # how long the first is waited for, and how long not, after those or without it

Taken = tuple[Any, int | None, int, int]  # an image's CDR bytes or InPlace, its number, when it was received and when it was sent, ns


class Places:
    """Where in memory the publishers of images on ``topic`` say that the next one is, as a consumer of the topic sees it.

    It is ``sharing`` from the first image that it got from there on, while all who publish on the topic say so and what they say is true; for the
    rest of the time the consumer has to take what is published. Its images are ``InPlace``, or their bytes if it ``copies`` them. ``settle``
    decides that, on the executor's thread. ``callback`` gets what comes through the executor, if ``gate`` is open, and ``unsettled`` is called, from
    any thread, when it is to decide anew.
    """

    def __init__(self, node: ManagedNode, topic: str, gate: Gate, callback: Callable[..., None], unsettled: Callable[[], None],
                 copies: bool) -> None:
        self._node, self._topic, self._told, self._gate = node, topic, shared_topic(topic), gate
        self._callback, self._unsettled, self.copies = callback, unsettled, copies
        self._offers = Polled(node, UInt64MultiArray, memory_topic(topic), LATCHED_QOS, raw=True)
        self._memories: dict[int, MappedImages] = {}  # by identity
        self._last = (0, -1)  # identity of the memory and number of the latest image
        self._unknown = 0  # identity of the memory that the latest place is in, if it is not mapped
        self._tries_until_s = self._again_s = 0.0
        self._telling = 0  # publishers that tell places
        self._received = 0  # images, when it last tried
        self.unserved = 0  # places in a row
        self.subscription: Any = None
        self._served: Any = None  # the subscription that an image came of

    @property
    def sharing(self) -> bool:
        return (subscription := self.subscription) is not None and subscription is self._served

    @property
    def source(self) -> int:
        """Whose numbers those of the images are; 0: the middleware's."""
        return self._last[0] if self.sharing else 0

    def settle(self, allowed: bool, received: int) -> bool:
        """Map what is offered, and subscribe or no longer; whether that has changed. ``received``: images so far, which it takes some of to try."""
        for data, _ in islice(self._offers.take(), MEMORIES):
            with contextlib.suppress(EdgeResnetError):  # of another host or another user, whose images are taken as they are published
                pid, file, identity = read_numbers(data, 3)
                if identity not in self._memories:  # nobody replaces another's
                    self._memories[identity] = MappedImages(pid, file, identity)
        old = self._telling == 1 and self._last[0] in self._memories  # those from before the one in use are a dead publisher's
        for identity in tuple(self._memories):
            if identity == self._last[0]:
                old = False
            elif old or len(self._memories) > MEMORIES:
                del self._memories[identity]
        now, telling = time.monotonic(), self._node.count_publishers(self._told)
        if self._telling and not telling:  # not before they were known: an offer may come first, and only once
            self._memories.clear()
        self._telling = telling
        if self.unserved >= UNSERVED and telling == 1 and (unknown := self._unknown) and unknown not in self._memories:
            self._memories.clear()  # they are a dead publisher's, and who tells now has other ones
        if self.unserved >= UNSERVED or (self.subscription is not None and not self.sharing and now > self._tries_until_s):
            self._again_s, self.unserved = now + TRIES_AGAIN_S, 0
        shares = (allowed and bool(self._memories) and now >= self._again_s and self._node.count_publishers(self._topic) <= telling
                  and (self.subscription is not None or received > self._received))
        if shares is (self.subscription is not None):
            return False
        if shares:
            self._received, self._tries_until_s = received, now + TRIES_S
            self.subscription = self._node.create_subscription(
                UInt64MultiArray, self._told, with_info(self._on_place), FRAME_QOS, raw=True, callback_group=self._gate,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
        else:
            subscription, self.subscription = self.subscription, None
            self._node.destroy_subscription(subscription)
        return True

    def take(self) -> Taken | None:
        """The image at the place that was told last; None without one."""
        subscription = self.subscription
        taken = take_message(subscription) if subscription is not None else None
        return self._image(*taken) if taken is not None else None

    def _on_place(self, place: bytes, info: Any) -> None:
        if (taken := self._image(place, info)) is not None:
            self._callback(*taken)

    def _image(self, place: bytes, info: Any) -> Taken | None:
        """The image at ``place``; None when it is not to be had, as when its memory is not mapped yet, or it has been overwritten."""
        image: Any = None
        try:
            identity, number, at, length = read_numbers(place, 4)
            memory = self._memories.get(identity)
            self._unknown = identity if memory is None else 0
            if memory is not None and (identity != self._last[0] or number > self._last[1]):
                image = memory.image(number, at, length)
                taken = bytes(image.bytes) if self.copies else image
                image = taken if image.intact() else None
        except EdgeResnetError as error:
            self._node.raised(error, self._told)
        if image is None or (subscription := self.subscription) is None:
            self.unserved += 1
            self._unsettled()
            return None
        self._last, self.unserved = (identity, number), 0
        if subscription is not self._served:
            self._served = subscription
            self._unsettled()
        known, received_ns, sent_ns = numbers(info)
        return image, number if known else None, received_ns, sent_ns

    def close(self) -> None:
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)
        self._offers.close()
        self._memories.clear()
