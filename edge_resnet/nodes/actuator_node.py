"""Switches the actuator on what the classification says; any doubt is OFF."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from vision_msgs.msg import Classification, LabelInfo

from edge_resnet.conversions import Results, read_results, stamp_ns
from edge_resnet.exceptions import BackendError
from edge_resnet.hardware.actuators import BACKENDS, MAX_GPIO_PIN, HeldOff, default_state_file
from edge_resnet.hardware.guard import GuardedActuator
from edge_resnet.nodes.base import ERROR, LATCHED_QOS, OK, WARN, Health, ManagedNode
from edge_resnet.nodes.inputs import FrameInput
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.runner import run
from edge_resnet.pipeline.decision import Decision, DecisionConfig, DecisionGate
from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, ACTUATOR_STARTED

WATCHDOG_PERIOD_S = 0.02
# A stop is not lost behind a later message, as with a depth of one.
STOP_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
STUCK_S = 0.5  # a write that takes longer does not come back


@dataclass(frozen=True)
class ActuatorParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    target_class: str = param('red', 'label that switches the actuator on')
    on_threshold: float = param(0.7, 'score from which on it is on', low=0.0, high=1.0, read_only=True)
    off_threshold: float = param(0.5, 'score below which it is off', low=0.0, high=1.0, read_only=True)
    debounce_frames: int = param(2, 'results in a row at or above on_threshold before it goes on', low=1, high=1000, read_only=True)
    refractory_s: float = param(0.5, 'shortest time off between two times on, s', low=0.0, high=3600.0, read_only=True)
    max_result_age_s: float = param(1.0, 'a frame captured longer ago than this switches it off, s', low=0.01, high=60.0, read_only=True)
    max_on_s: float = param(60.0, 'longest time on; then off until the target was gone once, s', low=0.01, high=86400.0, read_only=True)
    require_arm: bool = param(False, 'start disarmed: off until actuator/arm is called', read_only=True)
    backend: str = param('simulated', 'what is switched: a file or a GPIO pin', choices=BACKENDS, read_only=True)
    gpio_pin: int = param(17, 'BCM number of the pin', low=0, high=MAX_GPIO_PIN, read_only=True)
    gpio_active_high: bool = param(True, 'on is a high level', read_only=True)
    state_file: str = param('', 'file of the simulated actuator, 1 or 0; empty: a temporary one per user, domain and node', read_only=True)

    def decision_config(self) -> DecisionConfig:
        names = {entry.name for entry in fields(DecisionConfig)}
        return DecisionConfig(**{name: value for name, value in asdict(self).items() if name in names})


class Alone:
    """The backend to oneself; BackendError when another thread is stuck in it. The guard switches off what was on then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=STUCK_S):
            raise BackendError(f'the actuator has been stuck in a write for over {STUCK_S} s')

    def __exit__(self, *unused: Any) -> None:
        self._lock.release()


class ActuatorNode(ManagedNode[ActuatorParameters]):
    """The gate decides; this hands it results and time, and writes its decision out. Time is the steady clock, except a
    result's age, which is the ROS clock's now minus the frame's stamp."""

    Parameters = ActuatorParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('actuator', **options)
        self._alone = Alone()  # make_safe may come from another thread than the callbacks
        self._actuator: GuardedActuator | None = None
        self._gate = DecisionGate(DecisionConfig(), time.monotonic)
        self._input: FrameInput | None = None
        self._on: bool | None = None
        self._broken = ''  # why the last command could not be brought out
        self._unkept = ''  # why a crash would forget who stopped it
        self._state = self.create_publisher(Bool, 'actuator/state', LATCHED_QOS)
        self._watchdog = self.create_timer(WATCHDOG_PERIOD_S, self._tick, clock=self._steady)
        self._watchdog.cancel()  # until it is on; Humble's create_timer has no autostart
        self._labels: tuple[str, ...] = ()
        self.create_service(SetBool, 'actuator/arm', self._arm)
        self.create_subscription(LabelInfo, 'label_info', self._on_labels, LATCHED_QOS)
        # In every state: a stop that is called before the node is active holds once it is.
        self.create_subscription(Bool, 'emergency_stop', self._emergency_stop, STOP_QOS)

    @property
    def _state_file(self) -> Path:
        named = self.parameters.state_file
        return Path(named) if named else default_state_file(self.get_fully_qualified_name())

    @property
    def _held_off(self) -> HeldOff:
        return HeldOff(self._state_file)

    def configure(self) -> None:
        p = self.parameters
        before, self._gate = self._gate, DecisionGate(p.decision_config(), time.monotonic)
        held = self._held_off.read()  # before a crash, too; only actuator/arm ends it
        if before.stopped or held == HeldOff.STOPPED:
            self._gate.emergency_stop()
            self.get_logger().warning(f'stopped before it was started ({self._held_off.path}): off until re-armed')
        elif not before.armed or held == HeldOff.DISARMED:
            self._gate.arm(False)
            self.get_logger().warning(f'disarmed before it was started ({self._held_off.path}): off until actuator/arm')
        self._actuator = GuardedActuator(p.backend, gpio_pin=p.gpio_pin, state_file=self._state_file, active_high=p.gpio_active_high)
        self._on = None
        self._command(Decision(False, 'start'))

    def activate(self) -> None:
        self._gate.reset()
        self._input = FrameInput(self, Classification, 'classification', self._on_classification, inline=True, on_upcoming=lambda: None)

    def deactivate(self) -> None:
        self._watchdog.cancel()
        if self._input is not None:
            self._input.close()
            self._input = None
        self._gate.reset()
        if self._actuator is not None:
            self._command(Decision(False, 'deactivated'))

    def cleanup(self) -> None:
        with self._alone:
            actuator, self._actuator = self._actuator, None
            if actuator is not None:
                actuator.close()

    def _on_classification(self, data: bytes | Results) -> None:
        now_ns, (header, scores) = self.now_ns(), read_results(data)
        captured_ns = stamp_ns(header)
        age_s = (now_ns - captured_ns) / 1e9 if now_ns > 0 and captured_ns > 0 else math.nan  # 0: use_sim_time without a /clock
        self._command(self._gate.observe(scores, age_s))
        commanded_ns = self.now_ns()
        self.stage(ACTUATOR_STARTED, header, now_ns)
        self.stage(ACTUATOR_COMMANDED, header, commanded_ns)

    def _on_labels(self, message: LabelInfo) -> None:
        self._labels = tuple(entry.class_name for entry in message.class_map)
        if self.parameters.target_class not in self._labels:
            self.get_logger().error(f'{self._unknown_target()}: it will never be on')

    def _unknown_target(self) -> str:
        few = ', '.join(self._labels[:5]) + (f' and {len(self._labels) - 5} more' if len(self._labels) > 5 else '')
        return f'target_class is {self.parameters.target_class!r}, the model knows {few}'

    def _tick(self) -> None:
        self._command(self._gate.tick())

    def _emergency_stop(self, message: Bool) -> None:
        if not message.data:
            return
        known, decision = self._gate.stopped, self._gate.emergency_stop()
        if not known:
            self.get_logger().warning('emergency stop: off until re-armed')
        try:
            if self._actuator is not None:
                self._command(decision)
        finally:
            if not known or self._unkept:  # not on each of many
                self._keep(HeldOff.STOPPED)

    def _arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self._actuator is None:
            response.success, response.message = False, 'not configured'
            return response
        decision = self._gate.arm(request.data)
        self.guarded(self._command)(decision)
        self._keep(HeldOff.NO if request.data else HeldOff.STOPPED if self._gate.stopped else HeldOff.DISARMED)
        response.success, response.message = True, decision.reason
        return response

    def _keep(self, state: str) -> None:
        """For a node that is started anew after a crash."""
        self._unkept = ''
        try:
            self._held_off.write(state)
        except BackendError as error:
            self._unkept = str(error)
            self.raised(error, '')

    def _command(self, decision: Decision) -> None:
        """Bring ``decision`` out. The pin is written every time, the log and the topic only tell of changes."""
        try:
            with self._alone:
                if self._actuator is None:
                    raise BackendError('actuator is not configured')
                self._actuator.write(decision.on)
        except BackendError as error:  # it is off now; the debounce starts anew
            self._broken = str(error)
            self._hear_inline(False)
            self._gate.reset()
            self._tell(Decision(False, self._broken))
            raise
        self._broken = ''
        self._hear_inline(True)
        self._tell(decision)

    def _hear_inline(self, inline: bool) -> None:
        """A backend or a guard that fails takes time, which is not to be inference's."""
        if self._input is not None:
            self._input.inline = inline

    def _tell(self, decision: Decision) -> None:
        if decision.on == self._on:
            return
        if self._on is not None:
            self.get_logger().info(f'actuator {"ON" if decision.on else "OFF"}: {decision.reason}')
            self.counts['switched'] += 1
        self._on = decision.on
        if self.active or not decision.on:
            self._watchdog.reset() if decision.on else self._watchdog.cancel()
        self._state.publish(Bool(data=decision.on))

    def diagnose(self, health: Health) -> None:
        if self._labels and self.parameters.target_class not in self._labels:
            health.report(ERROR, self._unknown_target())
        if self._broken:
            health.report(ERROR, self._broken)
        if self._unkept:
            health.report(ERROR, self._unkept)
        if self._gate.stopped:
            health.report(ERROR, 'emergency stop, off until re-armed')
        elif not self._gate.armed:
            health.report(WARN, 'not armed')
        else:
            health.report(OK, f'{"on" if self._on else "off"}: {self._gate.decision.reason}')
        if self._input is not None:
            self._input.diagnose(health)
        health.values.update({'On': int(bool(self._on)), 'Armed': int(self._gate.armed), 'Stopped': int(self._gate.stopped),
                              'Switched': self.counts['switched']})


def main(argv: Sequence[str] | None = None) -> int:
    return run([ActuatorNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
