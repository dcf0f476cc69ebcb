"""An executor that costs little for each message."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.subscription import Subscription
from rclpy.timer import Timer

KINDS = ('subscription', 'guard_condition', 'timer', 'client', 'service', 'event')  # as a wait set wants their numbers
ATTENDS_S = 1.0  # between two looks at events, of which Fast DDS says with every message that there are some
EMPTY_TURNS = 4  # in a row, after which an event is to be looked for: what is not taken ends each wait for its subscription


def take_message(subscription: Any) -> tuple[Any, Any] | None:
    """(message, the middleware's info) of the oldest message that waits; None without one, or when another thread has destroyed it."""
    try:
        with subscription.handle:
            return subscription.handle.take_message(subscription.msg_type, subscription.raw)
    except _rclpy.InvalidHandle:
        return None


def _raise(error: Exception) -> None:
    raise error


class LeanExecutor(SingleThreadedExecutor):
    """Spins one node: takes subscriptions, timers and guard conditions itself, and leaves the rest to rclpy, on a thread of its own.

    rclpy's executor makes a task and a wait set of everything for each callback, and wakes itself twice in between. Here the
    wait set is kept, and what is ready is called right away, the freshest message of each subscription as it is then. A node has some
    thirty services and events; a wait for them, too, takes 0.19 ms after a pause instead of 0.08. What a callback raises, one of rclpy's own
    too (/clock, parameter services), goes to ``guarded`` of a ManagedNode, and spinning goes on. Each callback has the node's ``turn``: a
    frame may be handed over on its sender's thread.
    """

    def __init__(self, node: Any) -> None:
        self._woken = GuardCondition(None, None, node.context)
        super().__init__(context=node.context)
        self.add_node(node)
        self._node = node
        self._guarded = getattr(node, 'guarded', lambda call, where: call)
        self._turn = getattr(node, 'turn', contextlib.nullcontext())
        self._wait_sets: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._failure: Exception | None = None
        self._empty_turns, self._looks_s = 0, 0.0
        self.closing = False  # no more services
        self.attended_s = time.monotonic()  # when the other thread last came round
        self._attending = threading.Thread(target=self._attend, name=f'{node.get_name()}_rest', daemon=True)
        self._attending.start()

    def wake(self) -> None:
        super().wake()
        self._woken.trigger()

    def look_for_events(self) -> None:
        self._looks_s = 0.0
        super().wake()

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        done = super().shutdown(timeout_sec)
        self._woken.trigger()
        self._attending.join(timeout_sec)
        return done and not self._attending.is_alive()

    def spin_once(self, timeout_sec: float | None = None) -> None:
        node = self._node
        node.spun_by = threading.get_ident()
        if self._failure is not None:
            raise self._failure
        subscriptions = [entity for entity in node.subscriptions if self._open(entity)]
        timers, guards = [*node.timers], [*node.guards, self._woken]
        entities: dict[str, list[Any]] = {'subscription': subscriptions, 'guard_condition': guards, 'timer': timers}
        try:
            with self._waited('spin', entities, (), timeout_sec) as wait_set:
                frames = self._ready(wait_set, 'subscription', subscriptions)
                for subscription in frames:  # before looking at the rest: a frame waits, and after a pause each line is slow
                    self._call(self._call_subscription, subscription)
                calls = [(call, entity) for call, kind in ((self._call_guard, 'guard_condition'), (self._call_timer, 'timer'))
                         for entity in self._ready(wait_set, kind, entities[kind])]
        except ShutdownException:
            return
        except _rclpy.InvalidHandle:  # another thread destroyed one
            return
        for call, entity in calls:
            self._call(call, entity)
        self._empty_turns = 0 if frames or calls else self._empty_turns + 1
        if self._empty_turns >= EMPTY_TURNS:
            self._empty_turns = 0
            self.look_for_events()

    def _attend(self) -> None:
        while not self._is_shutdown and self._context.ok():
            looks_s, now = self._looks_s, time.monotonic()
            waitables = [*self._node.waitables] if now >= looks_s else []
            own = [guard for guard in (self._guard, self._sigint_gc) if guard is not None]  # none left after shutdown
            entities = {'guard_condition': own, 'client': [*self._node.clients], 'service': [*self._node.services]}
            try:
                with self._waited('attend', entities, waitables, 0.0 if waitables else ATTENDS_S) as wait_set:
                    self.attended_s = time.monotonic()
                    ready = [waitable for waitable in waitables if waitable.is_ready(wait_set)]  # all: who is not asked forgets
                    ready += wait_set.get_ready_entities('client') + wait_set.get_ready_entities('service')
                if ready or getattr(self, '_tasks', None) or getattr(self, '_ready_tasks', None):  # the second on Rolling
                    self._cb_iter = None  # what is left of the last time only tells that its time is over
                    with self._turn:
                        if self.closing:
                            return
                        self._guarded(super().spin_once, '')(0.0)
                elif waitables and looks_s == self._looks_s:
                    self._looks_s = now + ATTENDS_S
            except (ShutdownException, ExternalShutdownException):
                return
            except _rclpy.InvalidHandle:  # another thread destroyed one
                continue
            except Exception as error:
                self._failure = error
                self._woken.trigger()
                return

    def can_execute(self, entity: Any) -> bool:
        return not isinstance(entity, Subscription | Timer | GuardCondition) and super().can_execute(entity)

    @contextlib.contextmanager
    def _waited(self, name: str, entities: dict[str, list[Any]], waitables: Sequence[Any], timeout_sec: float | None) -> Iterator[Any]:
        """The wait set, once something in it is ready, and while nothing in it can be destroyed."""
        entered: list[Any] = []
        try:
            for handle in (*(entity.handle for some in entities.values() for entity in some), *waitables):
                handle.__enter__()
                entered.append(handle)
            yield self._wait(name, entities, waitables, timeout_sec)
        finally:
            for handle in entered:
                handle.__exit__(None, None, None)

    def _wait(self, name: str, entities: dict[str, list[Any]], waitables: Sequence[Any], timeout_sec: float | None) -> Any:
        events = [waitable.get_num_entities() for waitable in waitables]
        sizes = tuple(len(entities.get(kind, ())) + sum(getattr(event, f'num_{kind}s') for event in events) for kind in KINDS)
        sizes_then, wait_set = self._wait_sets.get(name, ((), None))
        if sizes != sizes_then:
            wait_set = _rclpy.WaitSet(*sizes, self._context.handle)
            self._wait_sets[name] = sizes, wait_set
        wait_set.clear_entities()
        for kind, some in entities.items():
            add = getattr(wait_set, f'add_{kind}')
            for entity in some:
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
    def _open(subscription: Any) -> bool:
        """What its group says is for rclpy, in whose hands another of the group may be just then; here ``turn`` keeps them apart."""
        return getattr(subscription.callback_group, 'open', True)

    @staticmethod
    def _ready(wait_set: Any, kind: str, entities: list[Any]) -> list[Any]:
        ready = wait_set.get_ready_entities(kind)
        return [entity for entity in entities if entity.handle.pointer in ready] if ready else []

    def _call(self, call: Callable[[Any], None], entity: Any) -> None:
        with self._turn:
            try:
                call(entity)
            except Exception as error:
                self._guarded(partial(_raise, error), self._where(entity))()

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

    def _call_subscription(self, subscription: Any) -> None:
        if not self._open(subscription):
            return
        if (taken := take_message(subscription)) is not None:
            kinds = getattr(Subscription, 'CallbackType', None)  # not on Humble
            only = kinds is None or subscription._callback_type is kinds.MessageOnly
            subscription.callback(*(taken[:1] if only else taken))
