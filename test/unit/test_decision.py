"""The decision gate, which is the safety of the actuator: every rule, and that any doubt is OFF."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.decision import FUTURE_TOLERANCE_S, Decision, DecisionConfig, DecisionGate
from edge_resnet.pipeline.postprocessing import Score

NAN, INF = math.nan, math.inf
PERIOD_S = 0.1  # between results


class Bench:
    """A gate and its clock. ``see`` lets a period pass and gives it one result."""

    def __init__(self, **config: float | str | bool) -> None:
        self.time_s = 1000.0
        self.gate = DecisionGate(DecisionConfig(**config), lambda: self.time_s)

    def see(self, red: float, age_s: float = 0.05, after_s: float = PERIOD_S) -> Decision:
        self.time_s += after_s
        return self.gate.observe([Score('red', red), Score('green', 0.1)], age_s)

    def on_after(self, *reds: float) -> list[bool]:
        return [self.see(red).on for red in reds]

    def wait(self, seconds: float) -> Decision:
        """Let ``seconds`` pass in steps of the node's watchdog."""
        for _ in range(round(seconds / 0.02)):
            self.time_s += 0.02
            self.gate.tick()
        return self.gate.decision


def switched_on(**config: float | str | bool) -> Bench:
    bench = Bench(**config)
    while not bench.see(0.9).on:
        pass
    return bench


def test_off_before_the_first_result():
    assert Bench().gate.decision == Decision(False, 'no result yet')


# Thresholds and debounce

@pytest.mark.parametrize(('score', 'on'), [(0.7, True), (math.nextafter(0.7, 0), False), (1.0, True), (0.0, False)])
def test_on_from_the_upper_threshold(score, on):
    assert Bench(debounce_frames=1).see(score).on is on


@pytest.mark.parametrize(('score', 'on'), [(0.5, True), (math.nextafter(0.5, 0), False), (0.69, True), (0.0, False)])
def test_stays_on_down_to_the_lower_threshold(score, on):
    assert switched_on().see(score).on is on


def test_between_the_thresholds_it_never_comes_on():
    assert not any(Bench().on_after(*[0.6] * 50))


def test_on_with_the_last_frame_of_the_debounce():
    assert Bench(debounce_frames=3).on_after(0.9, 0.9, 0.9) == [False, False, True]


@pytest.mark.parametrize('between', [0.6, 0.1, NAN])
def test_debounce_counts_frames_in_a_row_only(between):
    assert Bench(debounce_frames=3).on_after(0.9, 0.9, between, 0.9, 0.9, 0.9) == [False] * 5 + [True]


@pytest.mark.parametrize('ticks', [True, False])
def test_frames_before_and_after_a_silence_are_not_in_a_row(ticks):
    """A node whose actuator is off may not tick, so the gate must not depend on it."""
    bench = Bench(debounce_frames=2, max_result_age_s=1.0)
    bench.see(0.9)
    if ticks:
        bench.wait(5.0)
    assert not bench.see(0.9, after_s=5.0).on
    assert bench.see(0.9).on


def test_one_low_frame_switches_off_at_once():
    assert switched_on().on_after(0.49) == [False]


def test_only_the_target_counts():
    bench = Bench(target_class='green', debounce_frames=1)
    assert not bench.see(1.0).on
    assert bench.gate.observe([Score('green', 0.9)], 0.0).on


def test_a_target_that_is_not_among_the_results_is_gone():
    bench = switched_on()
    assert bench.gate.observe([Score('green', 0.2)], 0.0) == Decision(False, 'red at 0.00')
    assert not switched_on().gate.observe([], 0.0).on


def test_the_lower_of_two_scores_for_the_same_label_counts():
    assert not Bench(debounce_frames=1).gate.observe([Score('red', 0.9), Score('red', 0.1)], 0.0).on


# Refractory time

def test_off_for_the_refractory_time():
    bench = switched_on(refractory_s=1.0, debounce_frames=1)
    bench.see(0.0)
    off_at = bench.time_s
    while not bench.see(0.9).on:
        assert bench.gate.decision.reason == 'refractory'
    assert 1.0 <= bench.time_s - off_at <= 1.0 + PERIOD_S * 1.001


def test_the_first_time_on_waits_for_nothing():
    assert Bench(refractory_s=3600.0, debounce_frames=1).see(0.9).on


def test_deactivating_does_not_cut_the_refractory_time_short():
    bench = switched_on(refractory_s=1.0, debounce_frames=1)
    bench.gate.reset()
    assert bench.gate.decision.on is False
    assert bench.see(0.9) == Decision(False, 'refractory')


def test_reset_starts_the_debounce_anew():
    bench = Bench(debounce_frames=2)
    bench.see(0.9)
    bench.gate.reset()
    assert bench.on_after(0.9, 0.9) == [False, True]


# Age and time limits

def test_off_when_results_stay_away():
    bench = switched_on(max_result_age_s=0.5)
    assert bench.wait(0.44).on  # the frame was 0.05 s old already
    assert bench.wait(0.04) == Decision(False, 'no result for 0.5 s')


def test_age_counts_from_capture_not_from_arrival():
    bench = switched_on(max_result_age_s=0.5)
    bench.see(0.9, age_s=0.45)
    assert bench.gate.decision.on
    assert not bench.wait(0.08).on


def test_a_late_older_result_does_not_extend_the_time():
    bench = switched_on(max_result_age_s=0.5)
    bench.see(0.9, age_s=0.4, after_s=0.01)
    assert not bench.wait(0.12).on


@pytest.mark.parametrize(('age_s', 'on'), [(0.5, True), (0.501, False), (3600.0, False), (INF, False)])
def test_a_result_of_an_old_frame_is_refused(age_s, on):
    assert switched_on(max_result_age_s=0.5).see(0.9, age_s=age_s).on is on


@pytest.mark.parametrize(('age_s', 'on'), [
    (-FUTURE_TOLERANCE_S, True), (-FUTURE_TOLERANCE_S - 0.001, False), (-3600.0, False), (-INF, False), (NAN, False)])
def test_a_result_from_the_future_is_refused(age_s, on):
    assert switched_on().see(0.9, age_s=age_s).on is on


def test_a_frame_slightly_ahead_does_not_live_longer():
    bench = switched_on(max_result_age_s=0.5)
    bench.see(0.9, age_s=-FUTURE_TOLERANCE_S)
    assert not bench.wait(0.52).on


def test_on_no_longer_than_the_limit_and_not_again_until_the_target_was_gone():
    bench = switched_on(max_on_s=2.0, refractory_s=0.0)
    on_at, off_at = bench.time_s, 0.0
    while bench.see(0.9).on:
        off_at = bench.time_s
    assert 1.9 <= off_at - on_at <= 2.001
    assert bench.gate.decision.reason == 'on for 2 s, the limit'
    assert not any(bench.on_after(*[0.9] * 100, *[0.6] * 10, *[0.9] * 100))
    assert bench.on_after(0.4, 0.9, 0.9) == [False, False, True]


def test_a_fault_does_not_count_as_the_target_gone():
    bench = switched_on(max_on_s=0.5, refractory_s=0.0)
    while bench.see(0.9).on:
        pass
    assert not any(bench.on_after(NAN, *[0.9] * 10))
    bench.wait(3.0)
    assert not any(bench.on_after(*[0.9] * 10))


# Arming and emergency stop

def test_disarmed_at_start_when_asked_for():
    bench = Bench(require_arm=True, debounce_frames=1)
    assert bench.see(0.9) == Decision(False, 'not armed')
    bench.gate.arm(True)
    assert bench.see(0.9).on


def test_disarming_switches_off_at_once_and_stays():
    bench = switched_on()
    assert not bench.gate.arm(False).on
    assert not any(bench.on_after(*[0.9] * 20))
    assert not bench.gate.armed


def test_arming_again_does_not_switch_on_by_itself():
    bench = switched_on(refractory_s=0.0)
    bench.gate.emergency_stop()
    assert not bench.gate.arm(True).on
    assert bench.on_after(0.9, 0.9) == [False, True]


@pytest.mark.parametrize('require_arm', [False, True])
def test_an_emergency_stop_latches_until_armed(require_arm):
    bench = Bench(require_arm=require_arm)
    bench.gate.arm(True)
    bench.on_after(0.9, 0.9)
    assert bench.gate.emergency_stop() == Decision(False, 'emergency stop')
    assert not any(bench.on_after(*[0.9] * 20))
    bench.gate.reset()
    bench.wait(100.0)
    bench.gate.arm(False)
    assert not any(bench.on_after(*[0.9] * 20))
    assert bench.gate.stopped
    bench.gate.arm(True)
    assert not bench.gate.stopped
    assert bench.on_after(0.9, 0.9) == [False, True]


# Every state x every fault

def _exhausted() -> Bench:
    bench = switched_on(max_on_s=0.3)
    while bench.see(0.9).on:
        pass
    return bench


def _refractory() -> Bench:
    bench = switched_on()
    bench.see(0.0)
    bench.on_after(0.9, 0.9)
    return bench


def _debouncing() -> Bench:
    bench = Bench(debounce_frames=2)
    bench.see(0.9)
    return bench


def _disarmed() -> Bench:
    return Bench(require_arm=True)


def _stopped() -> Bench:
    bench = switched_on()
    bench.gate.emergency_stop()
    return bench


STATES: dict[str, Callable[[], Bench]] = {
    'fresh': Bench, 'debouncing': _debouncing, 'on': switched_on, 'exhausted': _exhausted, 'refractory': _refractory, 'disarmed': _disarmed,
    'stopped': _stopped}
SCORES = (NAN, INF, -INF, 1.0001, -0.0001, 1e308)
FAULTS: dict[str, Callable[[Bench], Decision]] = {
    **{f'score {score}': lambda bench, score=score: bench.see(score) for score in SCORES},
    **{f'other score {score}': lambda bench, score=score: bench.gate.observe([Score('red', 0.9), Score('green', score)], 0.0) for score in SCORES},
    **{f'age {age}': lambda bench, age=age: bench.see(0.9, age_s=age) for age in (NAN, INF, -INF, 1.001, 1e18, -0.051, -3600.0)},
    'silence': lambda bench: bench.wait(1.1),
    'target gone': lambda bench: bench.see(0.0),
    'no scores': lambda bench: bench.gate.observe([], 0.0),
    'emergency stop': lambda bench: bench.gate.emergency_stop(),
    'disarmed': lambda bench: bench.gate.arm(False),
    'reset': lambda bench: bench.gate.reset() or bench.gate.decision,
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('state', STATES)
def test_in_every_state_every_fault_is_off(state, fault):
    bench = STATES[state]()
    decision = FAULTS[fault](bench)
    assert not decision.on
    assert decision.reason
    assert not bench.see(0.9, after_s=0.0).on  # and the next good frame alone does not bring it back


# Any sequence of events

finite = st.floats(0, 1)
good_red = st.sampled_from((0.9, 0.7, 0.95))
red_score = st.one_of(good_red, finite, st.sampled_from((NAN, INF, -INF, -0.1, 1.1, 0.5, 0.69)))
age = st.one_of(st.just(0.02), st.floats(0, 0.3), st.sampled_from((NAN, INF, -0.05, -0.06, 0.4, 0.41, 10.0)))
event = st.one_of(
    st.tuples(st.just('result'), st.just(0.9), st.just(0.02)), st.tuples(st.just('result'), red_score, age),
    st.tuples(st.just('pass'), st.floats(0, 0.6)), st.tuples(st.just('pass'), st.just(0.05)),
    st.tuples(st.just('arm'), st.booleans()), st.tuples(st.just('stop')))
configs = st.builds(
    lambda off, gap, frames, refractory, on_s, arm: DecisionConfig(
        off_threshold=off, on_threshold=min(1.0, off + gap), debounce_frames=frames, refractory_s=refractory, max_result_age_s=0.4, max_on_s=on_s,
        require_arm=arm),
    st.sampled_from((0.3, 0.5)), st.sampled_from((0.0, 0.2)), st.integers(1, 3), st.sampled_from((0.0, 0.25)), st.sampled_from((0.3, 5.0)),
    st.booleans())


@settings(max_examples=300, deadline=None)
@given(config=configs, events=st.lists(event, max_size=60))
def test_on_only_while_everything_speaks_for_it(config, events):
    """Whatever happened: ON means armed, not stopped, the last result sound, fresh and high enough, after enough in a row."""
    time_s = 5.0
    gate = DecisionGate(config, lambda: time_s)
    armed, stopped, in_a_row, last, captured, on_at = not config.require_arm, False, 0, NAN, -INF, INF
    for what, *values in events:
        was_on = gate.decision.on
        if what == 'result':
            score, age_s = values
            sound = 0 <= score <= 1 and -FUTURE_TOLERANCE_S <= age_s <= config.max_result_age_s
            fresh_before = time_s - captured <= config.max_result_age_s
            in_a_row = (in_a_row if fresh_before else 0) + 1 if sound and score >= config.on_threshold and armed and not stopped else 0
            last, captured = (score, time_s - max(0.0, age_s)) if sound else (NAN, -INF)
            on = gate.observe([Score('red', score)], age_s).on
        elif what == 'pass':
            time_s += values[0]
            on = gate.tick().on
        elif what == 'arm':
            armed, stopped, in_a_row = values[0], stopped and not values[0], 0
            on = gate.arm(values[0]).on
        else:
            stopped, in_a_row = True, 0
            on = gate.emergency_stop().on
        assert on == gate.decision.on
        assert (gate.armed, gate.stopped) == (armed and not stopped, stopped)
        if on and not was_on:
            assert what == 'result'
            assert in_a_row >= config.debounce_frames
            on_at = time_s
        if on:
            assert armed
            assert not stopped
            assert last >= config.off_threshold
            assert time_s - captured <= config.max_result_age_s + 1e-9
            assert time_s - on_at <= config.max_on_s


@settings(max_examples=100, deadline=None)
@given(scores=st.lists(st.one_of(st.sampled_from((0.0, 1.0, 0.69, 0.7, 0.49, 0.5)), finite), min_size=1, max_size=300),
       period_s=st.sampled_from((0.005, 0.033, 0.2)), refractory_s=st.sampled_from((0.0, 0.1, 0.5)))
def test_flapping_scores_never_toggle_faster_than_the_refractory_time(scores, period_s, refractory_s):
    bench = Bench(refractory_s=refractory_s, debounce_frames=1)
    edges, was_on = [], False
    for score in scores:
        on = bench.see(score, after_s=period_s).on
        if on != was_on:
            edges.append((bench.time_s, on))
        was_on = on
    offs = [time_s for time_s, on in edges if not on]
    ons = [time_s for time_s, on in edges if on]
    assert all(on - off >= refractory_s for off, on in zip(offs, ons[1:], strict=False))


def test_a_hundred_thousand_flapping_steps():
    """Scores that jump over both thresholds with every frame, at 1000 a second: on at most once a refractory time."""
    bench = Bench(refractory_s=0.5, debounce_frames=1)
    on_edges = sum(bench.see(0.9 if step % 2 else 0.1, after_s=0.001).on for step in range(100_000))
    assert 150 <= on_edges <= 201  # 100 s; each time on lasts one frame


# Configuration

@pytest.mark.parametrize(('wrong', 'message'), [
    ({'target_class': ''}, 'target_class is empty'),
    ({'off_threshold': 0.8, 'on_threshold': 0.7}, r'off_threshold is 0.8 and on_threshold 0.7, expected 0 < off <= on <= 1'),
    ({'off_threshold': 0.0}, 'off_threshold is 0.0'),
    ({'on_threshold': 1.01}, 'on_threshold 1.01'),
    ({'on_threshold': NAN}, 'on_threshold nan'),
    ({'off_threshold': NAN}, 'off_threshold is nan'),
    ({'debounce_frames': 0}, 'debounce_frames is 0, expected 1 or more'),
    ({'refractory_s': -0.1}, 'refractory_s is -0.1, expected 0.0 s or more'),
    ({'refractory_s': INF}, 'refractory_s is inf'),
    ({'max_result_age_s': 0.0}, 'max_result_age_s is 0.0, expected 0.001 s or more'),
    ({'max_result_age_s': NAN}, 'max_result_age_s is nan'),
    ({'max_on_s': INF}, 'max_on_s is inf'),
])
def test_bad_limits_are_refused_by_name(wrong, message):
    with pytest.raises(ParameterError, match=message):
        DecisionConfig(**wrong)


def test_every_limit_has_a_bound():
    """A new field without a check would let NaN through."""
    for entry in fields(DecisionConfig):
        if entry.type == 'float':
            with pytest.raises(ParameterError, match='nan'):
                DecisionConfig(**{entry.name: NAN})
