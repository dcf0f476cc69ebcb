"""What every node has in common: parameters, lifecycle, guarded callbacks, frame input, stage times, diagnostics."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, ShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import TimeReference
from std_msgs.msg import String

from edge_resnet.conversions import MAX_IMAGE_BYTES, read_stage, write_stage
from edge_resnet.exceptions import EdgeResnetError, ParameterError, ResultError
from edge_resnet.nodes.frames import FRAME_QOS, FrameOutput, Gate, local_topic, overridable, request_topic
from edge_resnet.nodes.parameters import NodeParameters
from edge_resnet.pipeline.demand import FrameDemand
from edge_resnet.pipeline.latency import LOST, SUPERSEDED

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

P = TypeVar('P')

OK, WARN, ERROR, STALE = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR, DiagnosticStatus.STALE
DIAGNOSTICS_PERIOD_S = 1.0
SILENCE_S = 3.0  # of an input, after which the diagnostics tell
REFRESH_S = 0.2  # how often an input looks who else is there, and asks again for a frame that does not come
SMOOTHING, MAX_TRANSFER_S = 0.1, 0.02  # of the time that a frame takes from publisher to callback; more means clocks that differ
LOG_PERIOD_S = 5.0  # at most one line per node and kind of fault in this time

BEST_EFFORT_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RECORD_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE)
POLLED_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1000, reliability=ReliabilityPolicy.RELIABLE)  # 0.5 s of seven records at 240 Hz
LATCHED_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE,
                         durability=DurabilityPolicy.TRANSIENT_LOCAL)


def told(error: Exception, where: str) -> tuple[str, str]:
    """(kind, text) of a fault on topic ``where``, if it is one: our own errors are told by their text, others by their type too."""
    kind, text = (type(error).__name__, str(error)) if isinstance(error, EdgeResnetError) else ('exception', f'{type(error).__name__}: {error}')
    return (f'{where} {kind}', f'{where}: {text}') if where else (kind, text)


@dataclass
class Health:
    """A node's diagnostic: its worst level so far, a message for it, numeric values with the unit in the key."""

    level: bytes = OK
    messages: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def report(self, level: bytes, message: str) -> None:
        self.level = max(self.level, level)
        self.messages.append(message)


class ManagedNode(LifecycleNode, Generic[P]):
    """A lifecycle node on parameters of dataclass ``Parameters``.

    Subclasses fill in ``configure``, ``activate``, ``deactivate``, ``cleanup`` and ``diagnose``; an EdgeResnetError in
    the first two refuses the transition with one logged line. ``deactivate`` and ``cleanup`` must be safe at any time.
    """

    Parameters: type

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._configured = self.active = False
        self.failure = ''  # why the last transition was refused
        self.hardware_id = socket.gethostname()  # of the diagnostics
        self.facts: dict[str, Any] = {}  # about what it was configured with, beside its parameters
        try:
            self._declared: NodeParameters[P] = NodeParameters(self, self.Parameters)
        except ParameterError as error:
            raise ParameterError(f'{name}: {error}') from error
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._stage_times = self.create_publisher(TimeReference, 'stage_times', RECORD_QOS, qos_overriding_options=overridable())
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', RECORD_QOS)
        self._configuration = self.create_publisher(String, 'configuration', LATCHED_QOS)
        self._rates: dict[str, tuple[int, float]] = {}
        self._outputs: list[FrameOutput] = []
        self.create_timer(DIAGNOSTICS_PERIOD_S, self.publish_diagnostics, clock=self._steady)

    def frame_output(self, kind: type, topic: str, on_request: Callable[[float], None] | None = None) -> FrameOutput:
        self._outputs.append(FrameOutput(self, kind, topic, on_request))
        return self._outputs[-1]

    def destroy_node(self) -> None:
        for output in self._outputs:
            output.close()
        super().destroy_node()

    @property
    def parameters(self) -> P:
        return self._declared.values

    @property
    def unknown_parameters(self) -> set[str]:
        """Names that were given but that this node doesn't have."""
        return set(self._declared.unknown)

    @property
    def given_parameters(self) -> set[str]:
        """Names that were given on the command line, in a file or by whoever made the node."""
        return self._declared.given

    def is_configured(self) -> bool:
        return self._configured

    # What a node does. ------------------------------------------------------------------------------------------------

    def configure(self) -> None: ...

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def cleanup(self) -> None: ...

    def diagnose(self, health: Health) -> None: ...

    # Lifecycle. -------------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = self._transition('configure', self.configure)
        self._configured = done == TransitionCallbackReturn.SUCCESS
        if not self._configured:
            self.cleanup()
            return done
        facts = {'node': self.get_name(), 'host': socket.gethostname(), 'parameters': vars(self.parameters), **self.facts}
        self._configuration.publish(String(data=json.dumps(facts)))
        return done

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        done = self._transition('activate', self.activate)
        self.active = done == TransitionCallbackReturn.SUCCESS
        if not self.active:
            self.deactivate()
            return done
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.active = False
        self.deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.make_safe()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.make_safe()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.make_safe()
        return TransitionCallbackReturn.SUCCESS  # back to unconfigured, from where it can be tried again

    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:  # rclpy's, by its mangled name
        """The service's answer; a transition that the present state doesn't have is refused, where rclpy would end the node."""
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)
        except Exception as error:
            self.fault('lifecycle', f'transition {request.transition.label or request.transition.id} refused: {error}')
            response.success = False
            return response

    def make_safe(self) -> None:
        """Stop everything and release it, whatever state the node is in; called at exit too."""
        self.active = self._configured = False
        try:
            self.deactivate()
        finally:
            self.cleanup()

    def _transition(self, name: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            action()
        except EdgeResnetError as error:
            self.failure = str(error)
            self.get_logger().error(f"can't {name}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.failure = f'{type(error).__name__}: {error}'
            self.get_logger().error(f"can't {name}: {self.failure}")
            return TransitionCallbackReturn.ERROR
        self.failure = ''
        return TransitionCallbackReturn.SUCCESS

    # Callbacks. -------------------------------------------------------------------------------------------------------

    def guarded(self, callback: Callable[..., None], where: str = '') -> Callable[..., None]:
        """``callback`` with what it raises counted and logged, as on topic ``where``. The executor guards what it calls; this is for the rest."""

        def call(*args: Any) -> None:
            try:
                callback(*args)
            except (ShutdownException, ExternalShutdownException):
                raise
            except Exception as error:
                self.fault(*told(error, where))

        return call

    def fault(self, kind: str, text: str) -> None:
        """Count a fault of one frame, and log it unless one of its kind was logged just now."""
        self.counts['errors'] += 1
        now = time.monotonic()
        if now - self._logged_at.get(kind, -LOG_PERIOD_S) >= LOG_PERIOD_S:
            self._logged_at[kind] = now
            self.get_logger().error(f'{text} ({self.counts["errors"]} errors so far)')

    # Time and health. -------------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """The node's ROS clock, which ``use_sim_time`` may replace."""
        return self.get_clock().now().nanoseconds

    def stage(self, source: str, header: Any, time_ns: int) -> None:
        """Tell whoever listens that stage ``source`` was through with the frame of ``header`` at ``time_ns``."""
        if self._stage_times.get_subscription_count():
            self._stage_times.publish(write_stage(source, header, time_ns))

    def rate(self, name: str) -> float:
        """How fast ``counts[name]`` grew since this was last asked, in 1/s."""
        now, count = time.monotonic(), self.counts[name]
        before, then = self._rates.get(name, (0, now - DIAGNOSTICS_PERIOD_S))
        self._rates[name] = (count, now)
        return (count - before) / max(1e-3, now - then)

    def publish_diagnostics(self) -> None:
        health = Health()
        if self.failure:
            health.report(ERROR, self.failure)
        if self.active:
            self.diagnose(health)
        else:
            health.report(OK, 'inactive' if self._configured else 'unconfigured')
        health.values['Errors'] = self.counts['errors']
        status = DiagnosticStatus(level=health.level, name=self.get_fully_qualified_name().lstrip('/'), hardware_id=self.hardware_id,
                                  message='; '.join(health.messages) or 'OK')
        status.values = [KeyValue(key=key, value=f'{value:.6g}' if isinstance(value, float) else str(value)) for key, value in health.values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


class FrameInput:
    """A frame topic seen by its consumer: the freshest message only, and what was missed counted by cause.

    ``callback`` gets the message (CDR bytes if ``raw``), or, from an output in the same process, an ImageView. Missing sequence numbers are
    ``superseded`` when the message after the gap had arrived while the node was still busy with an earlier one or did not want any,
    otherwise ``lost`` on the way. A publisher that offers only best effort is met with best effort. Humble tells no sequence numbers:
    nothing is counted as missed.

    ``asks``: this consumer uses only the frames that it asks for with ``ask``; publishers that take requests then publish no others.
    ``demand``: of those that come, the callback gets only those that it says; all of them while ``every`` says so.
    ``request_base``: the topic that requests belong to, if it is another one.
    """

    def __init__(self, node: ManagedNode, kind: type, topic: str, callback: Callable[[Any], None], *, raw: bool = True, asks: bool = False,
                 demand: FrameDemand | None = None, every: Callable[[], bool] = lambda: False, request_base: str = '') -> None:
        self._node, self._kind, self._topic, self._callback, self._raw = node, kind, topic, callback, raw
        self._demand, self._every = demand, every
        self.received = self.superseded = self.lost = self.refused = 0
        self.qos_conflict = self._refusal = ''
        self._reported_refused = 0
        self._heard_s = self._asked_s = time.monotonic()  # the second: since when it could have got what it asked for
        self._sequence: int | None = None
        self._done_at_ns = 0  # until then it was busy, or had no use for a message
        self._transfer_s = 0.0  # from publishing to callback, when idle
        self._gate, self._wants, self._waits_s = Gate(), demand is None, REFRESH_S
        self._slot: tuple[Any, int, int] | None = None  # frame, its number and when it was handed over, ns
        self._held: tuple[Any, float] | None = None  # a message that may be used, and when it arrived
        self._slot_lock = threading.Lock()
        self._slot_filled = node.create_guard_condition(self._on_slot)
        self._timer = node.create_timer(REFRESH_S, self._on_timer, clock=node._steady)
        self._subscription = self._subscribe(FRAME_QOS)
        self._requests: Any = None
        self._request_topic = request_topic(node.resolve_topic_name(request_base or topic))
        self.asks = self.asking = asks  # the second may be switched off for a while
        self._local_topic = local_topic(node, self._subscription.topic_name)
        self._local = False
        self._local_topic.inputs.append(self)
        self._refresh()
        self._set_wants(self._wants)
        if demand is None and asks:
            self.ask(0.0)

    def _subscribe(self, qos: QoSProfile) -> Any:
        first = 'qos' not in self.__dict__
        self.qos = qos
        callback: Callable[..., None] = self._on_message
        if not hasattr(Subscription, 'CallbackType'):  # Humble
            callback = lambda message: self._on_message(message, None)  # noqa: E731
        return self._node.create_subscription(
            self._kind, self._topic, callback, qos, raw=self._raw, qos_overriding_options=overridable() if first else None,
            callback_group=self._gate,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible, use_default_callbacks=False))

    def _on_incompatible(self, event: Any) -> None:
        ends = [f'{info.node_namespace.rstrip("/")}/{info.node_name} ({info.qos_profile.reliability.name.lower()}, '
                f'{info.qos_profile.durability.name.lower()})' for info in self._node.get_publishers_info_by_topic(self._subscription.topic_name)]
        self.qos_conflict = (f'{self._subscription.topic_name}: {self._node.get_fully_qualified_name()} asked for '
                             f'{self.qos.reliability.name.lower()}, published by {", ".join(ends) or "an unknown node"}')
        if self.qos.reliability == ReliabilityPolicy.RELIABLE and self._subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE:
            self._node.get_logger().warning(f'incompatible QoS on {self.qos_conflict}; taking it best effort')
            self._renew(BEST_EFFORT_QOS)

    def _renew(self, qos: QoSProfile) -> None:
        self._node.destroy_subscription(self._subscription)
        self._subscription = self._subscribe(qos)
        self._sequence = None

    # Asking. ----------------------------------------------------------------------------------------------------------

    def ask(self, in_s: float) -> None:
        """A frame is wanted here in ``in_s`` seconds. Below 0: earlier than can be, so all frames for a while."""
        self._asked_s = time.monotonic()
        if self._requests is not None:
            in_ns = round((in_s - self._transfer_s) * 1e9)
            self._requests.publish(Duration(sec=in_ns // 1_000_000_000, nanosec=in_ns % 1_000_000_000))

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
        outputs = len(self._local_topic.outputs)
        local = outputs > 0 and self._node.count_publishers(self._subscription.topic_name) <= outputs
        if local is not self._local:
            self._local, self._sequence = local, None
            self._set_wants(self._wants)
        asks = self.asks and not (self._demand is not None and self._demand.every)
        if asks and self._requests is None:
            self._requests = self._node.create_publisher(Duration, self._request_topic, FRAME_QOS)
        elif not asks and self._requests is not None:
            self._node.destroy_publisher(self._requests)
            self._requests = None

    def _set_wants(self, wants: bool) -> None:
        if wants and not self._wants:
            self._done_at_ns, self._heard_s = time.time_ns(), time.monotonic()
        self._wants = wants
        self._gate.open = wants and not self._local
        if wants and self._slot is not None:
            self._slot_filled.trigger()

    def _look(self) -> None:
        """Use the frame at hand if it is the right one; else see to it that it is looked at again."""
        demand = self._demand
        assert demand is not None
        if self._held is not None:
            wait_s = demand.wait_s(self._held[1])
            if wait_s > 0:
                if not math.isfinite(wait_s) or demand.wait_s() > 0:
                    self._held = None  # nobody wants it any more, or a fresher one comes before it is wanted
                self._set_wants(self._held is not None)
                return self._look_again(wait_s)
            (message, _), self._held = self._held, None
            demand.used()
            self._use(message)
        wait_s = demand.wait_s()
        self._set_wants(wait_s == 0)
        self._look_again(wait_s)

    def _look_again(self, wait_s: float) -> None:
        period_s = min(wait_s, REFRESH_S) if wait_s > 0 else REFRESH_S
        if period_s != self._waits_s:
            self._waits_s = period_s
            self._timer.timer_period_ns = max(1, round(period_s * 1e9))
            self._timer.reset()

    def _on_timer(self) -> None:
        self._waits_s = -1.0
        self._refresh()
        if self._demand is not None:
            self._look()
        elif self.asking and time.monotonic() - self._asked_s > REFRESH_S:
            self.ask(0.0)  # the last request was lost, or whom it went to was started anew

    # Frames. ----------------------------------------------------------------------------------------------------------

    def hand_over(self, frame: Any, number: int) -> bool:
        """Called by an output in this process, from its thread; False when this input takes what is published."""
        with self._slot_lock:
            if self._local:
                self._slot = (frame, number, time.time_ns())
                if self._wants:
                    self._slot_filled.trigger()
            return self._local

    def _on_slot(self) -> None:
        if self._wants:
            with self._slot_lock:
                taken, self._slot = self._slot, None
            if taken is not None:
                self._accept(taken[0], taken[1], taken[2], taken[2])

    def _on_message(self, message: Any, info: Any) -> None:
        info = info if isinstance(info, dict) else {}
        self._accept(message, info.get('publication_sequence_number'), info.get('received_timestamp', 0), info.get('source_timestamp', 0))
        if self._raw and len(message) > MAX_IMAGE_BYTES:  # a reader keeps a buffer of the largest message that it ever got
            self._renew(self.qos)

    def _accept(self, message: Any, sequence: int | None, received_ns: int, sent_ns: int) -> None:
        self.received += 1
        now_ns, self._heard_s = time.time_ns(), time.monotonic()
        missed = sequence - self._sequence - 1 if sequence and self._sequence is not None and sequence > self._sequence else 0
        was_idle = received_ns >= self._done_at_ns
        if was_idle and not self._local:  # inside a process nothing is lost on the way
            self.lost += missed
        else:
            self.superseded += missed
        if was_idle:
            self._transfer_s += SMOOTHING * (min(max(0.0, (now_ns - sent_ns) / 1e9), MAX_TRANSFER_S) - self._transfer_s)
        self._sequence = sequence
        if self._demand is None:
            self._use(message)
            return
        arrived_s = self._heard_s - max(0.0, (now_ns - received_ns) / 1e9) if received_ns else self._heard_s
        self._demand.seen(arrived_s, 1 + missed)
        self._held = (message, arrived_s)
        self._look()

    def _use(self, message: Any) -> None:
        try:
            self._callback(message)
        except Exception as error:
            self.refused += 1
            self._refusal = told(error, '')[1]
            self._node.fault(*told(error, self._topic))
        self._done_at_ns, self._asked_s = time.time_ns(), time.monotonic()

    def diagnose(self, health: Health) -> None:
        refused, self._reported_refused = self.refused - self._reported_refused, self.refused
        silent_s = time.monotonic() - self._heard_s
        if refused:
            health.report(WARN, f'{refused} refused on {self._topic}, the last: {self._refusal}')
        elif silent_s > SILENCE_S and self._wants:
            health.report(WARN, f'nothing on {self._topic} for {silent_s:.0f} s')
        self._node.counts[f'{self._topic} received'] = self.received
        health.values.update({
            'Input rate (Hz)': self._node.rate(f'{self._topic} received'), 'Input received': self.received,
            SUPERSEDED: self.superseded, LOST: self.lost, 'Input refused': self.refused})
        if self.qos_conflict:
            health.report(WARN, f'incompatible QoS on {self.qos_conflict}')

    def close(self) -> None:
        with self._slot_lock:
            self._local = False
        self._local_topic.inputs.remove(self)
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_timer(self._timer)
        self._node.destroy_guard_condition(self._slot_filled)
        requests, self._requests = self._requests, None  # a callback may be under way when the process ends
        if requests is not None:
            self._node.destroy_publisher(requests)


class Polled:
    """A topic of small records that the node's own timer drains a few times a second: a message costs 0.007 ms that way, and some 0.1 ms
    through rclpy's executor. Messages are CDR bytes if ``raw``."""

    def __init__(self, node: ManagedNode, kind: type, topic: str, qos: QoSProfile = POLLED_QOS, *, raw: bool = False) -> None:
        self._node, self._kind, self._raw = node, kind, raw
        gate = Gate()
        gate.open = False
        self._subscription = node.create_subscription(
            kind, topic, lambda message: None, qos, raw=raw, callback_group=gate,
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))

    def take(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """What has come since the last call: messages, oldest first, and the middleware's info of each."""
        handle = self._subscription.handle
        with handle:
            while (taken := handle.take_message(self._kind, self._raw)) is not None:
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


def frame_publisher(node: ManagedNode, kind: type, topic: str) -> Any:
    """A publisher for frames: freshest only, reaches reliable and best-effort subscribers."""
    return node.create_publisher(kind, topic, FRAME_QOS, qos_overriding_options=overridable())


def compressed_topic(node: ManagedNode) -> str:
    """Where the compressed image belongs: beside a remapped ``image_raw``, unless it is remapped itself."""
    own = node.resolve_topic_name('image_raw/compressed')
    unmapped = node.resolve_topic_name('image_raw', only_expand=True) + '/compressed'
    return own if own != unmapped else node.resolve_topic_name('image_raw') + '/compressed'
