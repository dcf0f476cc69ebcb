"""Frame topics seen by their consumers: the freshest frame only."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from edge_resnet.conversions import MAX_IMAGE_BYTES, write_duration
from edge_resnet.nodes.base import ERROR, STUCK_S, TURN_S, WARN, Health, ManagedNode, told
from edge_resnet.nodes.executor import EMPTY_TURNS, LeanExecutor, take_message
from edge_resnet.nodes.frames import (
    BEST_EFFORT_QOS,
    FRAME_QOS,
    Gate,
    consumers,
    local_topic,
    overridable,
    request_topic,
    shared_topic,
    upcoming_topic,
)
from edge_resnet.nodes.places import Places
from edge_resnet.nodes.polled import SubscriptionEventCallbacks, numbers, with_info
from edge_resnet.nodes.shared_images import InPlace
from edge_resnet.pipeline.demand import FrameDemand
from edge_resnet.pipeline.latency import LOST, SUPERSEDED

SILENCE_S = 3.0  # of an input, after which the diagnostics tell
REFRESH_S, REFRESH_IDLE_S = 0.5, 1.0  # how often an input that asks looks who else is there; one that never asks
ASKS_AGAIN_S = 0.2  # for a frame that does not come
GIVES_BACK_S = 0.5  # after a message that was too large: what is sent again of it would make the next reader keep as much
ENDS_S = 0.1  # for a thread that is not in its callback
FAILED_S, RENEWAL_S = 0.1, 0.001  # after what rcl refused; while a subscription is made anew
MIXED_S = 2.0  # after a number that went back
SMOOTHING, MAX_TRANSFER_S = 0.1, 0.02  # of the time that a frame takes from publisher to callback; more means clocks that differ


class FrameInput:
    """A frame topic seen by its consumer: the freshest message only, and what was missed counted by cause.

    ``callback`` gets CDR bytes, or, from an output in the same process, the frame itself. ``shares``: images come from the memory of
    their publisher, if it is on this host and tells where (``Places``), copied if it ``copies``, else to be read there: what a callback made of
    one counts only if it is ``intact`` after that. Missing sequence numbers are ``superseded`` when the message
    after the gap had arrived while the node was still busy with an earlier one or did not want any, otherwise ``lost`` on the way. A publisher
    that offers only best effort is met with best effort. Humble tells no sequence numbers: nothing is counted as missed.

    ``asks``: this consumer uses only the frames that it asks for with ``ask``; publishers that take requests then publish no others.
    ``demand``: of those that come, the callback gets only those that it says; all of them while ``every`` says so.
    ``request_base``: the topic that requests and announcements belong to, if it is another one.
    ``on_upcoming``: called just before the next frame is expected; one that does nothing is worth it, too, since the executor has turned.
    ``inline``: a frame that is handed over inside the process is used on its sender's thread, unless this node is at something else just then:
    for callbacks that take less than waking another thread may.
    """

    def __init__(self, node: ManagedNode, kind: type, topic: str, callback: Callable[[Any], None], *, asks: bool = False,
                 demand: FrameDemand | None = None, every: Callable[[], bool] = lambda: False, request_base: str = '',
                 inline: bool = False, shares: bool = False, copies: bool = False, on_upcoming: Callable[[], None] | None = None) -> None:
        self._node, self._kind, self._topic, self._callback = node, kind, topic, callback
        self._demand, self._every, self.inline = demand, every, inline
        self.received = self.superseded = self.lost = self.refused = 0
        self.qos_conflict = self._refusal = ''
        self._reported_refused = 0
        self._heard_s = self._asked_s = time.monotonic()  # the second: since when it could have got what it asked for
        self._sequence: int | None = None
        self._mixed_until_s = 0.0  # until then the numbers are of several publishers, and tell nothing
        self._left_unread = False  # some, since the last one that was used
        self._done_at_ns = 0  # until then it was busy, or had no use for a message
        self._transfer_s = 0.0  # from publishing to callback, when idle
        self._gate, self._wants, self._waits_s = Gate(), demand is None, REFRESH_S
        self._slot: tuple[Any, int | None, int, int] | None = None  # what was handed over, as _accept takes it
        self._held: tuple[Any, float] | None = None  # a message that may be used, and when it arrived
        self._in_use: Any = None  # message
        self._source = 0  # whose numbers the latest one was
        self._slot_lock, self._taking = threading.Lock(), threading.Lock()
        self._fetched: tuple[Any, int | None, int, int] | None = None  # as _accept takes it
        self._unsettled = self._closed = False
        self._renews_s = math.inf  # when the subscription is to be made anew
        self._slot_filled = node.create_guard_condition(self._on_slot)
        self._timer = node.create_timer(REFRESH_S if asks or demand is not None else REFRESH_IDLE_S, self._on_timer, clock=node._steady)
        self._subscription: Any = self._subscribe(FRAME_QOS)  # None while images are taken from their publisher's memory
        self._name: str = self._subscription.topic_name
        self._requests: Any = None
        base = node.resolve_topic_name(request_base or topic)
        self._request_topic = request_topic(base)
        self.asks = self.asking = asks  # the second may be switched off for a while
        self._local_topic = local_topic(node, self._name)
        self._local = False
        self._local_topic.inputs.append(self)
        self._on_upcoming = on_upcoming
        self._announcements = None if on_upcoming is None else node.create_subscription(
            Duration, upcoming_topic(base), self._on_announcement, BEST_EFFORT_QOS, raw=True)
        self._places = Places(node, self._name, self._gate, self._accept, self._unsettle, copies) if shares and kind is Image else None
        self._thread: threading.Thread | None = None
        self._wake: GuardCondition
        self._refresh()
        self._set_wants(self._wants)
        if demand is None and asks:
            self.ask(0.0)

    def start_thread(self) -> None:
        """Wait for frames and use them on a thread of its own, for a callback that services and timers are not to wait for."""
        self._wake = GuardCondition(None, None, self._node.context)  # of this thread; those of the node are the executor's
        self._node.turned[self] = time.monotonic()
        thread = threading.Thread(target=self._receive, name=self._topic, daemon=True)
        thread.start()
        self._thread = thread
        self._set_wants(self._wants)
        self._wake.trigger()  # for what has been handed over

    def _subscribe(self, qos: QoSProfile) -> Any:
        first = 'qos' not in self.__dict__
        self.qos = qos
        subscription = self._node.create_subscription(
            self._kind, self._topic, with_info(self._on_message), **(overridable(qos) if first else {'qos_profile': qos}), raw=True,
            callback_group=self._gate,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible, use_default_callbacks=False))
        self.qos = subscription.qos_profile  # with what was overridden, which can be told only once
        return subscription

    def _on_incompatible(self, event: Any) -> None:
        ends = [f'{info.node_namespace.rstrip("/")}/{info.node_name} ({info.qos_profile.reliability.name.lower()}, '
                f'{info.qos_profile.durability.name.lower()})' for info in self._node.get_publishers_info_by_topic(self._name)]
        self.qos_conflict = (f'{self._name}: {self._node.get_fully_qualified_name()} asked for '
                             f'{self.qos.reliability.name.lower()}, published by {", ".join(ends) or "an unknown node"}')
        if self.qos.reliability == ReliabilityPolicy.RELIABLE and self._subscription is not None:
            self._node.get_logger().warning(f'incompatible QoS on {self.qos_conflict}; taking it best effort')
            self._renew(BEST_EFFORT_QOS)
        self._node.publish_diagnostics()  # events are heard late enough

    def _renew(self, qos: QoSProfile) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = self._subscribe(qos)
        self._drop_fetched()
        self._sequence = None
        if self._thread is not None:
            self._wake.trigger()  # it waits for the old one

    # Asking. ----------------------------------------------------------------------------------------------------------

    def ask(self, in_s: float) -> None:
        """A frame is wanted here in ``in_s`` seconds. Below 0: earlier than can be, so all frames for a while."""
        self._asked_s = time.monotonic() + max(0.0, in_s)
        in_s -= self._transfer_s
        outputs, requests = self._local_topic.outputs if self._local else (), self._requests
        if requests is not None and not (outputs and all(output.request(in_s) for output in outputs)):
            requests.publish(write_duration(in_s))

    def keep_asking(self, asking: bool) -> None:
        """Whether to ask again for a frame that does not come, and to tell of it."""
        self.asking = asking
        if self._thread is not None:
            self._wake.trigger()

    def want(self, in_s: float, takes_s: float) -> None:
        """``demand``'s frame is wanted, processed, in ``in_s`` seconds, and processing takes ``takes_s``."""
        assert self._demand is not None
        self._demand.ask(in_s - takes_s)
        self.ask(in_s - takes_s)
        self._look()

    def _refresh(self) -> None:
        """Look who else is there. A consumer that asks for no frames gets all of them, so one that wants all stops asking."""
        if self._demand is not None:
            self._demand.every = self._every()
        if time.monotonic() >= self._renews_s:
            self._renews_s = math.inf
            if self._subscription is not None:
                self._renew(self.qos)
        outputs = len(self._local_topic.outputs)
        local = outputs > 0 and self._node.count_publishers(self._name) <= outputs
        if local is not self._local:
            with self._slot_lock:
                self._local, self._slot, self._sequence = local, None, None
            self._drop_fetched()
            self._set_wants(self._wants)
            if self._thread is not None:
                self._wake.trigger()  # it waits for what is handed over or for what is published
        self._settle()
        asks = self.asks and not (self._demand is not None and self._demand.every)
        if asks and self._requests is None:
            self._requests = self._node.create_publisher(Duration, self._request_topic, BEST_EFFORT_QOS)
        elif not asks and self._requests is not None:
            self._node.destroy_publisher(self._requests)
            self._requests = None
        if self._demand is not None:
            counts = (self._node.count_subscribers(topic) for topic in (self._name, shared_topic(self._name)))
            everybody_asks = consumers(self._node, self._name, *counts) <= self._node.count_publishers(self._request_topic)
            self._demand.served = self._requests is not None and self._requests.get_subscription_count() > 0 and everybody_asks

    def _set_wants(self, wants: bool) -> None:
        if wants and not self._wants:
            self._done_at_ns, self._heard_s = time.time_ns(), time.monotonic()
            self._left_unread = self._demand is not None and not self._demand.served
        self._wants = wants
        opens = wants and not self._local and self._thread is None
        wakes, self._gate.open = opens and not self._gate.open, opens  # the executor waits without what was shut, and this may be another thread
        if (wakes and threading.get_ident() != self._node.spun_by) or (wants and self._slot is not None):
            self._slot_filled.trigger()

    def _look(self) -> None:
        """Use the frame at hand if it is the right one; else see to it that it is looked at again."""
        demand = self._demand
        assert demand is not None
        if self._held is not None:
            wait_s = demand.wait_s(self._held[1])
            if wait_s > 0:
                if (opens_s := demand.wait_s()) > 0:
                    self._held, wait_s = None, opens_s  # nobody wants it any more, or a fresher one comes before it is wanted
                self._set_wants(self._held is not None)
                return self._look_again(wait_s)
            (message, _), self._held = self._held, None
            demand.used()
            self._use(message)
        wait_s = demand.wait_s()
        waits_for_it = demand.served and math.isfinite(wait_s)  # nothing else will come
        self._set_wants(wait_s == 0 or waits_for_it)
        self._look_again(REFRESH_S if waits_for_it else wait_s)

    def _look_again(self, wait_s: float) -> None:
        period_s = min(wait_s, REFRESH_S) if wait_s > 0 else REFRESH_S
        if period_s != self._waits_s:
            self._waits_s = period_s
            self._timer.timer_period_ns = max(1, round(period_s * 1e9))
            self._timer.reset()

    def _on_timer(self) -> None:
        self._refresh()
        if self._demand is not None:
            self._look()
        else:
            self._ask_again()

    def _ask_again(self) -> None:
        if self.asking and time.monotonic() - self._asked_s > ASKS_AGAIN_S:
            self.ask(0.0)  # the last request was lost, or whom it went to was started anew

    # Frames. ----------------------------------------------------------------------------------------------------------

    def hand_over(self, frame: Any, number: int) -> bool:
        """Called by an output in this process, from its thread; False when this input takes what is published."""
        with self._slot_lock:
            if not self._local:
                return False
            now_ns = time.time_ns()
            self._slot = (frame, number, now_ns, now_ns)
        if self._wants and not (self.inline and self._node.at_once(self._on_slot, self._topic)):
            self._wake_up()
        return True

    def _wake_up(self) -> None:
        with self._slot_lock:
            if self._local:  # else it was closed meanwhile
                (self._slot_filled if self._thread is None else self._wake).trigger()

    def upcoming(self) -> bool:
        """A frame was announced by an output in this process, from its thread; False when this input hears what is published."""
        if not self._local or self._on_upcoming is None:
            return False
        self._node.at_once(self._on_upcoming, self._topic)
        if self._thread is not None:
            self._wake_up()
        return True

    def _on_announcement(self, unused: bytes) -> None:
        if not self._local and self._on_upcoming is not None:
            self._on_upcoming()

    def _receive(self) -> None:
        wait_set, empty_turns = None, 0
        while not self._closed and self._node.context.ok():
            try:
                wait_set = wait_set or _rclpy.WaitSet(2, 1, 0, 0, 0, 0, self._node.context.handle)
                subscription, places = self._subscription, self._places and self._places.subscription
                subscription, places = subscription or places, places or subscription
                if subscription is None:
                    time.sleep(RENEWAL_S)
                    continue
                with subscription.handle, places.handle, self._wake.handle:
                    wait_set.clear_entities()
                    if not self._local:  # or what is left unread would wake it again and again
                        wait_set.add_subscription(subscription.handle)
                        if places is not subscription:
                            wait_set.add_subscription(places.handle)
                    wait_set.add_guard_condition(self._wake.handle)
                    asks_in_s = self._asked_s + ASKS_AGAIN_S - time.monotonic() if self.asking else TURN_S
                    wait_set.wait(round(min(TURN_S, max(0.0, asks_in_s)) * 1e9) if self._fetched is None else 0)
                if (taken := self._next()) is not None:
                    self._accept(*taken)
                    self._release(taken[0])
                    empty_turns = 0
                    continue
                self._ask_again()
                empty_turns += 1
                if empty_turns % EMPTY_TURNS == 0 and isinstance(self._node.executor, LeanExecutor):
                    self._node.executor.look_for_events()
            except _rclpy.InvalidHandle:  # the subscription is made anew
                time.sleep(RENEWAL_S)
            except Exception as error:  # a thread that dies is a silent fault
                self._node.raised(error, self._topic)
                time.sleep(FAILED_S)
        self._node.turned.pop(self, None)

    def _next(self) -> tuple[Any, int | None, int, int] | None:
        """The freshest of what has come, as _accept takes it."""
        self._node.turned[self] = time.monotonic()
        with self._taking:
            taken, self._fetched = self._received() or self._fetched, None
        return None if self._closed else taken

    def fetch(self) -> Any:
        """Called by another thread while the callback is at a frame: have the next one ready for ``take``, and return it; None without one."""
        with self._taking, contextlib.suppress(_rclpy.InvalidHandle):  # it is being closed
            if self._in_use is not None:
                self._fetched = self._received() or self._fetched
        if (fetched := self._fetched) is None:
            return None
        self._release(fetched[0])  # though another may replace it
        with self._slot_lock:
            if self._in_use is None and not self._closed:  # the callback has just ended, and what was fetched wakes nobody any more
                self._wake.trigger()
        return fetched[0]

    def _drop_fetched(self) -> None:
        """Its number is another's than those to come."""
        with self._taking:
            self._fetched = None

    def _received(self) -> tuple[Any, int | None, int, int] | None:
        if self._closed:
            return None
        if self._local:  # what is published for others, too, is not read
            return self._from_slot()
        places = self._places
        if places is not None and ((taken_there := places.take()) is not None or places.sharing):
            return taken_there
        taken = take_message(self._subscription) if self._subscription is not None else None
        return (taken[0], *numbers(taken[1])) if taken is not None else None

    def _on_slot(self) -> None:
        if self._unsettled:
            self._unsettled = False
            self._settle()
            if self._places is not None and self._places.unserved and self.asking:
                self.ask(0.0)
        if self._thread is None and self._wants and (taken := self._from_slot()) is not None:
            self._accept(*taken)

    def _from_slot(self) -> tuple[Any, int | None, int, int] | None:
        with self._slot_lock:
            taken, self._slot = self._slot, None
        return taken

    def _on_message(self, message: Any, info: Any) -> None:
        places = self._places
        if places is not None and (taken := places.take()) is not None:  # the same frame, or a later one
            self._accept(*taken)
        elif places is None or not places.sharing:
            self._accept(message, *numbers(info))
            self._release(message)

    def _release(self, message: Any) -> None:
        if not self._local and self._subscription is not None and len(message) > MAX_IMAGE_BYTES:
            # A reader keeps a buffer of the largest message that it ever got.
            self._renews_s = min(self._renews_s, time.monotonic() + GIVES_BACK_S)

    def _unsettle(self) -> None:
        self._unsettled = True
        self._slot_filled.trigger()

    def _settle(self) -> None:
        """Subscribe to what is published while images are not taken from memory. On the executor's thread."""
        if (places := self._places) is None:
            return
        changed, subscription = places.settle(not self._local, self.received), self._subscription
        if places.sharing and subscription is not None:
            self._subscription = None
            self._node.destroy_subscription(subscription)
        elif not places.sharing and subscription is None:
            self._subscription = self._subscribe(self.qos)
            self._drop_fetched()
        elif not changed:
            return
        self._done_at_ns = time.time_ns()
        if self._thread is not None:
            self._wake.trigger()  # it waits for the old ones

    def intact(self) -> bool:
        """Whether the message in use still is what it was. If not it is superseded, another is asked for, and from now on images are copied first:
        this node is slow."""
        if not isinstance(self._in_use, InPlace) or self._in_use.intact():
            return True
        self.superseded += 1
        if self._places is not None:
            self._places.copies = True
        if self._demand is not None:
            self._demand.ask(0.0)
            self.ask(0.0)
        return False

    def take(self) -> Any:
        """The frame that has come since the callback began, for a callback that goes straight on with it; None without one."""
        self._done_at_ns = time.time_ns()
        if (taken := self._next()) is None:
            return None
        self._count(*taken[1:])
        self._release(taken[0])
        return taken[0]

    def _accept(self, message: Any, sequence: int | None, received_ns: int, sent_ns: int) -> None:
        missed = self._count(sequence, received_ns, sent_ns)
        if self._demand is None:
            self._use(message)
            return
        arrived_s = self._heard_s - max(0.0, (time.time_ns() - received_ns) / 1e9) if received_ns else self._heard_s
        self._demand.seen(arrived_s, 1 + missed)
        self._held = (message, arrived_s)
        self._look()

    def _count(self, sequence: int | None, received_ns: int, sent_ns: int) -> int:
        """Count a message that was sent and received then, and return how many were missed before it."""
        self.received += 1
        if self._places is not None and self._source != (source := self._places.source):
            self._source, self._sequence = source, None
        now_ns, self._heard_s = time.time_ns(), time.monotonic()
        missed = sequence - self._sequence - 1 if sequence and self._sequence is not None else 0
        if missed < 0:  # somebody else's number: there are two publishers, or one was started anew
            self._mixed_until_s = self._heard_s + MIXED_S
        if self._heard_s < self._mixed_until_s:
            missed = 0
        was_idle = received_ns >= self._done_at_ns
        if was_idle and not (self._local or self._source or self._left_unread):  # inside a process or a host nothing is lost on the way
            self.lost += missed
        else:
            self.superseded += missed
        self._left_unread = False
        if was_idle:
            self._transfer_s += SMOOTHING * (min(max(0.0, (now_ns - sent_ns) / 1e9), MAX_TRANSFER_S) - self._transfer_s)
        self._sequence = sequence
        return missed

    def _use(self, message: Any) -> None:
        self._in_use = message
        try:
            self._callback(message.bytes if isinstance(message, InPlace) else message)
        except Exception as error:
            if self.intact():
                self.refused += 1
                self._refusal = told(error, '')[1]
                self._node.raised(error, self._topic)
        self._in_use = None
        self._done_at_ns, self._asked_s = time.time_ns(), max(self._asked_s, time.monotonic())

    def diagnose(self, health: Health) -> None:
        refused, self._reported_refused = self.refused - self._reported_refused, self.refused
        now = time.monotonic()
        silent_s, busy_s = now - self._heard_s, now - self._node.turned.get(self, now)
        if busy_s > STUCK_S:
            health.report(ERROR, f'has been at one frame of {self._topic} for {busy_s:.0f} s')
        elif refused:
            health.report(WARN, f'{refused} refused on {self._topic}, the last: {self._refusal}')
        elif silent_s > SILENCE_S and self._wants and self.asking is self.asks:
            health.report(WARN, f'nothing on {self._topic} for {silent_s:.0f} s')
        self._node.counts[f'{self._topic} received'] = self.received
        health.values.update({
            'Input rate (Hz)': self._node.rate(f'{self._topic} received'), 'Input received': self.received,
            SUPERSEDED: self.superseded, LOST: self.lost, 'Input refused': self.refused,
            'Input shared': int(self._places is not None and self._places.sharing)})
        if self.qos_conflict:
            health.report(WARN, f'incompatible QoS on {self.qos_conflict}')

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._wake.trigger()
            self._thread.join(ENDS_S)
        with self._slot_lock:
            self._local = self._unsettled = False
            self._slot = None  # not even for a sender that is just about to hand it over
        if self._thread is not None:
            self._wake.destroy()
        self._local_topic.inputs.remove(self)
        for subscription in (self._subscription, self._announcements):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        if self._places is not None:
            self._places.close()
        self._node.destroy_timer(self._timer)
        self._node.destroy_guard_condition(self._slot_filled)
        requests, self._requests = self._requests, None  # a callback may be under way when the process ends
        if requests is not None:
            self._node.destroy_publisher(requests)
