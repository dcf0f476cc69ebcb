"""What every node has in common: parameters, lifecycle, guarded callbacks, stage times, diagnostics."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, ShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import TimeReference
from std_msgs.msg import String

from edge_resnet.conversions import write_stage
from edge_resnet.exceptions import EdgeResnetError, ParameterError
from edge_resnet.nodes.frames import FRAME_QOS, FrameOutput, overridable
from edge_resnet.nodes.parameters import NodeParameters

P = TypeVar('P')

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
DIAGNOSTICS_PERIOD_S = 1.0
TURN_S, STUCK_S = 1.0, 4.0  # a thread with nothing to do comes round after the first; one that has not after the second hangs in a callback
LOG_PERIOD_S = 5.0  # at most one line per node and kind of fault in this time

RECORD_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE)
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
        self.turn = threading.Lock()  # held by whoever runs one of its callbacks
        self.spun_by = 0  # the thread of its executor
        self.turned: dict[Any, float] = {}  # when each of its own threads last came round
        self.hardware_id = socket.gethostname()  # of the diagnostics
        self.facts: dict[str, Any] = {}  # about what it was configured with, beside its parameters
        try:
            self._declared: NodeParameters[P] = NodeParameters(self, self.Parameters)
        except ParameterError as error:
            raise ParameterError(f'{name}: {error}') from error
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._stage_times = self.create_publisher(TimeReference, 'stage_times', **overridable(RECORD_QOS))
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
                self.raised(error, where)

        return call

    def at_once(self, callback: Callable[..., None], where: str, *args: Any) -> bool:
        """Call ``callback`` here, on another node's thread, guarded; False when this node is at something else just then."""
        if not self.turn.acquire(blocking=False):
            return False
        try:
            self.guarded(callback, where)(*args)
        finally:
            self.turn.release()
        return True

    def raised(self, error: Exception, where: str) -> None:
        """Count and log what was raised, as on topic ``where``. That another thread has destroyed what was used is no fault of a node that is being
        deactivated."""
        if self.active or not isinstance(error, _rclpy.InvalidHandle):
            self.fault(*told(error, where))

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
        return self.get_clock().handle.get_now().nanoseconds  # what now() makes a Time of

    def stage(self, source: str, header: Any, time_ns: int) -> None:
        """Tell whoever listens that stage ``source`` was through with the frame of ``header`` at ``time_ns``."""
        if self._stage_times.get_subscription_count():
            self._stage_times.publish(write_stage(source, header, time_ns))

    def rate(self, name: str) -> float:
        """How fast ``counts[name]`` grew since this was last asked, in 1/s; 0 when it started anew."""
        now, count = time.monotonic(), self.counts[name]
        before, then = self._rates.get(name, (0, now - DIAGNOSTICS_PERIOD_S))
        self._rates[name] = (count, now)
        return max(0, count - before) / max(1e-3, now - then)

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


def frame_publisher(node: ManagedNode, kind: type, topic: str) -> Any:
    """A publisher for frames: freshest only, reaches reliable and best-effort subscribers."""
    return node.create_publisher(kind, topic, **overridable(FRAME_QOS))


def compressed_topic(node: ManagedNode) -> str:
    """Where the compressed image belongs: beside a remapped ``image_raw``, unless it is remapped itself."""
    own = node.resolve_topic_name('image_raw/compressed')
    unmapped = node.resolve_topic_name('image_raw', only_expand=True) + '/compressed'
    return own if own != unmapped else node.resolve_topic_name('image_raw') + '/compressed'
