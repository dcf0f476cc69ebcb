"""When the actuator may be on. Pure logic on injected clocks; any doubt means OFF."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.postprocessing import Score

FUTURE_TOLERANCE_S = 0.05  # what two well-synchronised hosts' clocks may differ by; beyond it a stamp is a fault


@dataclass(frozen=True)
class DecisionConfig:
    """Limits of the gate. Hysteresis: on at ``on_threshold`` or more, off below ``off_threshold``."""

    target_class: str = 'red'
    on_threshold: float = 0.7
    off_threshold: float = 0.5
    debounce_frames: int = 2
    refractory_s: float = 0.5
    max_result_age_s: float = 1.0
    max_on_s: float = 60.0
    require_arm: bool = False

    def __post_init__(self) -> None:
        if not self.target_class:
            raise ParameterError('target_class is empty, expected a label of the model')
        if not 0 < self.off_threshold <= self.on_threshold <= 1:
            raise ParameterError(f'off_threshold is {self.off_threshold} and on_threshold {self.on_threshold}, expected 0 < off <= on <= 1')
        if self.debounce_frames < 1:
            raise ParameterError(f'debounce_frames is {self.debounce_frames}, expected 1 or more')
        for name, low in (('refractory_s', 0.0), ('max_result_age_s', 0.001), ('max_on_s', 0.001)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ParameterError(f'{name} is {value}, expected {low} s or more')


@dataclass(frozen=True)
class Decision:
    """What the actuator shall be, and why in a few words."""

    on: bool
    reason: str


class DecisionGate:
    """Turns a stream of scores into ON and OFF.

    ``now`` is a steady clock in seconds. Call ``observe`` for every result and ``tick`` often enough for the timeouts to
    be as punctual as they have to be. After ``max_on_s`` the gate stays OFF until the target was gone once. An
    emergency stop latches until ``arm(True)``.
    """

    def __init__(self, config: DecisionConfig, now: Callable[[], float]) -> None:
        self._config, self._now = config, now
        self._armed = not config.require_arm
        self._stopped = False
        self._on, self._streak = False, 0
        self._on_since = self._off_since = -math.inf
        self.reset()

    def reset(self) -> None:
        """OFF and without memory of earlier results; armed, stopped and the refractory time stay as they are."""
        self._off('no result yet')
        self._exhausted = False  # max_on_s ran out and the target has not been gone since
        self._result_time: float | None = None  # when the newest result's frame was captured, on the steady clock

    @property
    def armed(self) -> bool:
        return self._armed and not self._stopped

    @property
    def stopped(self) -> bool:
        return self._stopped

    def arm(self, armed: bool) -> Decision:
        """Arm (which also releases an emergency stop) or disarm; the debounce starts anew."""
        self._armed = armed
        if armed:
            self._stopped = False
        return self._off('armed, waiting for a result' if armed else 'not armed')

    def emergency_stop(self) -> Decision:
        """OFF now, and until ``arm(True)``."""
        self._stopped = True
        return self._off('emergency stop')

    def observe(self, scores: Sequence[Score], age_s: float) -> Decision:
        """Take one result, best score first, whose frame was captured ``age_s`` ago."""
        now = self._now()
        if not self._armed or self._stopped:
            return self._off('emergency stop' if self._stopped else 'not armed')
        self.tick()  # a result after a silence begins a new streak, even if nobody ticked meanwhile
        fault = self._fault(scores, age_s)
        if fault:
            self._result_time = None
            return self._off(fault)
        self._result_time = now - max(0.0, age_s)
        config = self._config
        score = min((entry.score for entry in scores if entry.label == config.target_class), default=0.0)
        if score < config.off_threshold:
            self._exhausted = False
            return self._off(f'{config.target_class} at {score:.2f}')
        self._streak = self._streak + 1 if score >= config.on_threshold else 0
        if self._on or self._exhausted:
            return self.tick()
        if self._streak < config.debounce_frames:
            return self._off(f'{config.target_class} at {score:.2f}, {self._streak} of {config.debounce_frames} frames', keep_streak=True)
        if now - self._off_since < config.refractory_s:
            return self._off('refractory', keep_streak=True)
        self._on, self._on_since, self._reason = True, now, f'{config.target_class} at {score:.2f}'
        return self.decision

    def tick(self) -> Decision:
        """Let time pass: OFF when the newest result got too old or the actuator was on for too long."""
        now = self._now()
        if self._result_time is not None and now - self._result_time > self._config.max_result_age_s:
            age, self._result_time = now - self._result_time, None
            return self._off(f'no result for {age:.1f} s')
        if self._on and now - self._on_since > self._config.max_on_s:
            self._exhausted = True
            return self._off(f'on for {self._config.max_on_s:g} s, the limit')
        return self.decision

    @property
    def decision(self) -> Decision:
        return Decision(self._on, self._reason)

    def _fault(self, scores: Sequence[Score], age_s: float) -> str:
        if not math.isfinite(age_s):
            return f'result age is {age_s}'
        if age_s < -FUTURE_TOLERANCE_S:
            return f'result is {-age_s:.3g} s in the future'
        if age_s > self._config.max_result_age_s:
            return f'result is {age_s:.3g} s old'
        bad = next((entry for entry in scores if not 0.0 <= entry.score <= 1.0), None)  # NaN fails the comparison too
        return '' if bad is None else f'score of {bad.label!r} is {bad.score}'

    def _off(self, reason: str, keep_streak: bool = False) -> Decision:
        if self._on:
            self._on, self._off_since = False, self._now()
        if not keep_streak:
            self._streak = 0
        self._reason = reason
        return self.decision
