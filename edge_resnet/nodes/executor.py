"""An executor that costs little for each message."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.subscription import Subscription
from rclpy.timer import Timer

EVENTS_S = 0.2  # how long events are left out after they woke us for nothing


def take_message(subscription: Any) -> tuple[Any, Any] | None:
    """(message, the middleware's info) of the oldest message that waits; None without one, or when another thread has destroyed it."""
    try:
        with subscription.handle:
            return subscription.handle.take_message(subscription.msg_type, subscription.raw)
    except _rclpy.InvalidHandle:
        return None


class LeanExecutor(SingleThreadedExecutor):
    """Spins one node: takes subscriptions, timers and guard conditions itself, and leaves the rest to rclpy.

    rclpy's executor makes a task and a wait set of everything for each callback, and wakes itself twice in between. Here the
    wait set is kept, and what is ready is called right away, the freshest message of each subscription as it is then. What a callback
    raises, one of rclpy's own too (/clock, parameter services), goes to ``guarded`` of a ManagedNode, and spinning goes on. Each callback
    has the node's ``turn``: a frame may be handed over on its sender's thread.
    """

    def __init__(self, node: Any) -> None:
        super().__init__(context=node.context)
        self.add_node(node)
        self._node = node
        self._guarded = getattr(node, 'guarded', lambda call, where: call)
        self._turn = getattr(node, 'turn', contextlib.nullcontext())
        self._wait_set: Any = None
        self._sizes: tuple[int, ...] = ()
        self._events_from_s = 0.0
        self._rest_only = False

    def spin_once(self, timeout_sec: float | None = None) -> None:
        node = self._node
        node.spun_by = threading.get_ident()
        subscriptions = [entity for entity in node.subscriptions if entity.callback_group.can_execute(entity)]  # only a Gate may be shut
        timers, clients, services = [*node.timers], [*node.clients], [*node.services]
        own = [guard for guard in (self._guard, self._sigint_gc) if guard is not None]  # none left after shutdown
        guards, waitables = [*node.guards, *own], [*node.waitables] if time.monotonic() >= self._events_from_s else []
        entered: list[Any] = []
        try:
            for entity in (*subscriptions, *timers, *clients, *services, *guards):
                entity.handle.__enter__()
                entered.append(entity.handle)
            for waitable in waitables:
                waitable.__enter__()
                entered.append(waitable)
            wait_set = self._wait(subscriptions, timers, clients, services, guards, waitables, timeout_sec)
            frames = self._ready(wait_set, 'subscription', subscriptions)
            for subscription in frames:  # before looking at the rest: a frame waits, and after a pause each line is slow
                self._call(self._call_subscription, subscription)
            calls = [(call, entity) for call, kind, entities in ((self._call_guard, 'guard_condition', guards), (self._call_timer, 'timer', timers))
                     for entity in self._ready(wait_set, kind, entities)]
        except ShutdownException:
            return
        except _rclpy.InvalidHandle:  # another thread destroyed one
            return
        finally:
            for handle in entered:
                handle.__exit__(None, None, None)
        for call, entity in calls:
            self._call(call, entity)
        # Rolling knows no _tasks.
        others = bool(wait_set.get_ready_entities('client') or wait_set.get_ready_entities('service') or getattr(self, '_tasks', ())
                      or any(waitable.is_ready(wait_set) for waitable in waitables))
        if not (frames or calls or others) and waitables:  # in Fast DDS a message that is left unread sets the condition of its reader's events, too
            self._events_from_s = time.monotonic() + EVENTS_S
        if others:
            self._rest_only = True  # or a frame that waits would be taken instead, again and again
            self._cb_iter = None  # what is left of the last time only tells that its time is over
            with self._turn:
                self._guarded(super().spin_once, '')(0.0)
            self._rest_only = False

    @staticmethod
    def _ready(wait_set: Any, kind: str, entities: list[Any]) -> list[Any]:
        ready = wait_set.get_ready_entities(kind)
        return [entity for entity in entities if entity.handle.pointer in ready] if ready else []

    def _call(self, call: Callable[[Any], None], entity: Any) -> None:
        with self._turn:
            self._guarded(call, self._where(entity))(entity)

    def can_execute(self, entity: Any) -> bool:
        return not (self._rest_only and isinstance(entity, Subscription | Timer)) and super().can_execute(entity)

    def _wait(self, subscriptions: list, timers: list, clients: list, services: list, guards: list, waitables: list,
              timeout_sec: float | None) -> Any:
        """The wait set, once something in it is ready."""
        events = [waitable.get_num_entities() for waitable in waitables]
        sizes = tuple(map(len, (subscriptions, guards, timers, clients, services))) + tuple(
            sum(getattr(event, f'num_{kind}') for event in events)
            for kind in ('subscriptions', 'guard_conditions', 'timers', 'clients', 'services', 'events'))
        if sizes != self._sizes:
            self._wait_set = _rclpy.WaitSet(sizes[0] + sizes[5], sizes[1] + sizes[6], sizes[2] + sizes[7], sizes[3] + sizes[8],
                                            sizes[4] + sizes[9], sizes[10], self._context.handle)
            self._sizes = sizes
        wait_set = self._wait_set
        wait_set.clear_entities()
        for add, entities in ((wait_set.add_subscription, subscriptions), (wait_set.add_timer, timers), (wait_set.add_client, clients),
                              (wait_set.add_service, services), (wait_set.add_guard_condition, guards)):
            for entity in entities:
                add(entity.handle)
        for waitable in waitables:
            waitable.add_to_wait_set(wait_set)
        wait_set.wait(-1 if timeout_sec is None else int(timeout_sec * 1e9))
        if self._is_shutdown:
            raise ShutdownException()
        if not self._context.ok():
            raise ExternalShutdownException()
        return wait_set

    @staticmethod
    def _where(entity: Any) -> str:
        try:
            return getattr(entity, 'topic_name', '')
        except _rclpy.InvalidHandle:  # what was called before it destroyed it, or another thread
            return ''

    @staticmethod
    def _call_guard(guard: Any) -> None:
        if guard.callback is not None:  # not one of the executor's own
            guard.callback()

    @staticmethod
    def _call_timer(timer: Any) -> None:
        try:
            with timer.handle:
                if not timer.handle.is_timer_ready():
                    return
                getattr(timer.handle, 'call_timer_with_info', timer.handle.call_timer)()
        except (_rclpy.InvalidHandle, _rclpy.RCLError):  # another thread destroyed or cancelled it just now
            return
        timer.callback()

    @staticmethod
    def _call_subscription(subscription: Any) -> None:
        if not subscription.callback_group.can_execute(subscription):
            return
        if (taken := take_message(subscription)) is not None:
            kinds = getattr(Subscription, 'CallbackType', None)  # not on Humble
            only = kinds is None or subscription._callback_type is kinds.MessageOnly
            subscription.callback(*(taken[:1] if only else taken))
