"""Which frames are used, on a simulated clock."""

import math
import random
from statistics import mean

import pytest
from clock import Clock

from edge_resnet.pipeline.demand import PATIENCE, STREAM_S, FrameDemand

T = 1 / 30


def fed(frames=10, period=T):
    """A clock at 0, the arrival of a first frame, and a demand that knows the camera's period."""
    clock = Clock(0.0)
    demand = FrameDemand(clock)
    for n in range(frames):
        demand.seen((n - frames + 1) * period)
    return clock, demand


def simulate(service, period=T, frames=20_000, policy=None, jitter=0.0, seed=1):
    """(mean age of information at the end of the chain, ages at start), in seconds, of a model that takes ``service`` seconds.

    ``policy`` None: ``FrameDemand``; 'last': always the newest frame; 'next': always the next one."""
    dice, clock = random.Random(seed), Clock(0.0)
    demand = FrameDemand(clock)
    arrivals = [n * period + dice.uniform(-jitter, jitter) for n in range(1, frames)]
    index, area, ages, last = 0, 0.0, [], None
    for n in range(5):
        demand.seen(arrivals[n])
    index = 4  # of the newest frame that has arrived
    clock.now_s, used = arrivals[4], -1
    while index < len(arrivals) - 50:
        asked = clock.now_s  # the model is free now; it asked when it started, for now
        demand.ask(0.0)
        while True:
            while arrivals[index + 1] <= clock.now_s:
                index += 1
                demand.seen(arrivals[index])
            wait = demand.wait_s(arrivals[index]) if policy is None else 0.0 if policy == 'last' or arrivals[index] >= asked else math.inf
            if wait == 0 and index > used:
                break
            clock.now_s = min(arrivals[index + 1], clock.now_s + max(wait, 1e-9))
        demand.used()
        used = index
        ages.append(clock.now_s - arrivals[index])
        done = clock.now_s + service(dice) if callable(service) else clock.now_s + service
        if last is not None:
            gap = done - last[0]
            area += (last[0] - last[1]) * gap + gap ** 2 / 2
        else:
            first = done
        last, clock.now_s = (done, arrivals[index]), done
    return area / (last[0] - first), ages


def test_of_two_who_ask_the_first_to_want_a_frame_gets_it_in_time():
    """A fast and a slow model on one camera, whichever asks last."""
    for fast, slow in ((0.01, 0.19), (0.19, 0.01)):
        clock, demand = fed()
        demand.ask(fast)
        demand.ask(slow)
        clock.now_s = T
        demand.seen(clock.now_s)
        assert demand.wait_s(clock.now_s) == 0.0
        demand.used()
        assert demand.wait_s() == math.inf
        demand.ask(0.19)
        assert demand.wait_s() > 0.1, 'a demand that was met is forgotten'


def test_nobody_asks_nothing_is_used():
    clock, demand = fed()
    assert demand.wait_s(0.0) == math.inf
    demand.ask(0.0)
    assert demand.wait_s(0.0) == 0
    demand.used()
    assert demand.wait_s(clock.now_s) == math.inf


def test_all_frames_are_used_when_told_to_and_after_a_demand_that_came_too_late():
    clock, demand = fed()
    demand.every = True
    assert demand.wait_s(0.0) == 0
    demand.every = False
    demand.ask(-0.001)
    for _ in range(3):
        assert demand.wait_s(clock.now_s) == 0
        demand.used()
    clock.now_s += STREAM_S + 0.01
    assert demand.wait_s(clock.now_s) == math.inf


@pytest.mark.parametrize(('age', 'waits'), [(0.0, False), (0.3, False), (0.36, True), (0.9, True)])
def test_a_free_model_waits_from_a_third_of_a_period_on(age, waits):
    clock, demand = fed()
    clock.now_s = age * T
    demand.ask(0.0)
    assert (demand.wait_s(0.0) > 0) is waits


def test_an_early_demand_waits_for_frames_that_come_in_time():
    clock, demand = fed()
    demand.ask(2.5 * T)
    assert demand.wait_s() == pytest.approx((2.5 - 1 / 3) * T)
    clock.now_s = 2.2 * T
    assert demand.wait_s(2.0 * T) > 0, 'the next one comes at 3.0, half a period after the time asked for'
    clock.now_s = 2.5 * T
    assert demand.wait_s(2.0 * T) > 0
    clock.now_s = 3.0 * T
    assert demand.wait_s(3.0 * T) == 0


@pytest.mark.parametrize(('framerate', 'waits'), [(75.0, True), (85.0, False)])
def test_the_next_frame_of_a_fast_camera_is_not_waited_for(framerate, waits):
    clock, demand = fed(period=1 / framerate)
    clock.now_s = 0.9 / framerate
    demand.ask(0.0)
    assert (demand.wait_s(0.0) > 0) is waits


def test_what_was_chosen_upstream_is_not_chosen_again():
    clock, demand = fed()
    clock.now_s = 0.9 * T
    demand.ask(0.0)
    assert demand.wait_s(0.0) > 0
    demand.served = True
    assert demand.wait_s(0.0) == 0


def test_of_a_fast_camera_the_last_frame_that_comes_in_time_is_used():
    short = 1 / 200
    clock, demand = fed(period=short)
    demand.ask(2.5 * short)
    assert demand.wait_s() == pytest.approx(1.5 * short)
    clock.now_s = 1.6 * short
    assert demand.wait_s(1.0 * short) > 0, 'the next one comes at 2.0'
    clock.now_s = 2.0 * short
    assert demand.wait_s(2.0 * short) == 0, 'the next one comes at 3.0, too late'


def test_a_camera_that_stops_or_falters_is_not_waited_for():
    clock, demand = fed()
    clock.now_s = 0.9 * T
    demand.ask(0.0)
    wait = demand.wait_s(0.0)
    assert wait == pytest.approx((PATIENCE - 0.9) * T)
    clock.now_s += wait
    assert demand.wait_s(0.0) == 0


def test_without_a_known_period_the_newest_frame_is_used_at_once():
    clock = Clock(0.0)
    demand = FrameDemand(clock)
    demand.seen(0.0)
    clock.now_s = 100.0
    demand.ask(0.0)
    assert demand.wait_s(0.0) == 0


def test_the_period_is_that_of_all_frames_also_of_those_that_were_not_told():
    demand = FrameDemand(Clock(0.0))
    for n in range(10):
        demand.seen(n * 3 * T, frames=3)
    demand.seen(100.0)  # after a pause
    assert demand.period_s == pytest.approx(T)


@pytest.mark.parametrize('periods', [1.7, 4.4, 6.0, 6.3, 10.5])
def test_frames_are_at_most_a_third_of_a_period_old_and_results_fresher_than_with_either_plain_policy(periods):
    service = periods * T
    age, ages = simulate(lambda dice: service * dice.uniform(0.97, 1.03))
    assert max(ages[5:]) <= T / 3 + 1e-6
    others = {policy: simulate(lambda dice: service * dice.uniform(0.97, 1.03), policy=policy)[0] for policy in ('last', 'next')}
    assert age < min(others.values()) + 0.002 * service, others


def test_the_figures_for_a_model_six_times_slower_than_the_camera():
    spread = lambda dice: 6 * T * dice.uniform(0.9, 1.1)  # noqa: E731
    age, ages = simulate(spread)
    last, last_ages = simulate(spread, policy='last')
    assert age / (6 * T) == pytest.approx(1.5 + 1 / 36, abs=0.005)
    assert mean(ages) == pytest.approx(T / 18, abs=T / 100), 'one in three is taken at once, T/6 old'
    assert last / (6 * T) == pytest.approx(1.585, abs=0.005)
    assert mean(last_ages) == pytest.approx(T / 2, abs=T / 50)


@pytest.mark.parametrize('drift', [0.01, 0.02, 0.05, 0.1])
def test_a_model_in_step_with_the_camera_waits_when_that_is_worth_most(drift):
    service, old = (6 + drift) * T, max(math.sqrt(drift), 1 / 12) * T
    age, ages = simulate(service)
    assert old - drift * T < max(ages[50:]) < old + 1e-6
    assert age == pytest.approx(1.5 * service + old / 2 + drift * T * (T - old) / (2 * old), abs=0.6 * drift * T), 'but for whole steps'
    assert age < simulate(service, policy='last')[0] - 0.25 * T


def test_a_result_that_is_out_of_the_ordinary_does_not_end_being_in_step():
    turns = iter(range(100_000))
    _, ages = simulate(lambda dice: (6.05 + 0.5 * (next(turns) % 20 == 0)) * T)
    assert max(ages[50:]) < T / 4


def test_being_in_step_is_known_after_as_many_ordinary_results_as_out_of_the_ordinary_ones_and_one():
    turns = iter([7.6, 6.3, 6.95, *[6.01] * 100_000])
    _, ages = simulate(lambda dice: next(turns) * T)
    assert max(ages[8:]) < T / 5


def test_a_jittery_camera_costs_little():
    age, _ = simulate(lambda dice: 6 * T * dice.uniform(0.95, 1.05), jitter=0.2 * T)
    assert age / (6 * T) < 1.56


def test_before_a_frame_is_of_interest_the_one_at_hand_is_looked_at_again_only_if_no_other_comes():
    clock, demand = fed()
    demand.ask(2 * T)  # of interest from 5/3 T on: the frame that comes at T is passed over, and the next one used
    opens = demand.wait_s()
    assert opens == pytest.approx(5 / 3 * T)
    assert demand.wait_s(0.0) == pytest.approx(max(opens, PATIENCE * T))
    clock.now_s = T
    demand.seen(T)
    assert demand.wait_s(T) == pytest.approx(PATIENCE * T)
    clock.now_s += demand.wait_s(T)
    assert demand.wait_s(T) == 0, 'none came'


def test_when_the_frame_is_expected_that_will_be_used():
    clock, demand = fed()
    assert demand.expected_s() == math.inf, 'nobody asks'
    clock.now_s = T / 4
    demand.ask(0.0)
    assert demand.expected_s() == pytest.approx(3 / 4 * T), 'the next one'
    clock, demand = fed()
    clock.now_s = T / 4
    demand.ask(4 * T)
    clock.now_s = T / 2
    assert demand.expected_s() == pytest.approx(3.5 * T), 'the last one in time, at 4 T'
    demand.ask(-0.001)
    assert demand.expected_s() == pytest.approx(T / 2), 'each one'
    assert FrameDemand(clock).expected_s() == math.inf, 'no period'
    fast = FrameDemand(clock)
    for n in range(5):
        fast.seen(clock.now_s + n * 0.004)
    fast.ask(0.0)
    assert fast.expected_s() == math.inf, 'a pause of 4 ms is none'
