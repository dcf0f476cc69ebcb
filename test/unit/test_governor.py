"""The governor against no governor, on the simulated board, and its moves one by one."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from edge_resnet.pipeline.governor import LEAST, STALE_S, Governor

spec = importlib.util.spec_from_file_location('benchmarks_governor', Path(__file__).resolve().parents[2] / 'benchmarks' / 'governor.py')
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.fixture
def governor(clock) -> Governor:
    return Governor(78.0, clock)


def see(governor, clock, *temperatures):
    for temperature in temperatures:
        clock.now_s += 1.0
        governor.see(temperature)


@pytest.mark.parametrize('cooling', [{}, {'heatsink': True, 'ambient_c': 40.0}, {'ambient_c': 40.0}])
def test_with_it_a_hot_board_never_throttles_and_p99_stays_flat(cooling):
    free, governed = (benchmark.summary(benchmark.simulate(25, on, **cooling), 25, 5) for on in (False, True))
    assert free['throttled_percent'] > 20
    assert free['p99_ms'] == pytest.approx(150)
    assert governed['throttled_percent'] == 0
    assert governed['p99_ms'] == pytest.approx(governed['p50_ms']) == pytest.approx(100)
    assert 76 < governed['max_c'] < 80, 'just below, so no more rate is given up than has to be'


def test_a_cooled_board_is_left_alone():
    free, governed = (benchmark.simulate(25, on, heatsink=True, fan=True) for on in (False, True))
    assert governed == free


def test_after_an_inference_it_rests_by_its_share(governor, clock):
    assert governor.allows()
    governor.worked(0.1)
    assert governor.allows(), 'at full share there is no rest'
    assert governor.rest_s() == 0
    governor.share = 0.5
    governor.worked(0.1)
    clock.now_s += 0.099
    assert not governor.allows()
    assert governor.rest_s() == pytest.approx(0.001)
    clock.now_s += 0.002
    assert governor.allows()
    assert governor.held_back == 1


def test_it_acts_on_the_slope_before_it_is_too_hot(governor, clock):
    see(governor, clock, *(70 + 0.4 * second for second in range(10)))
    assert governor.share < 1


def test_it_gives_back_what_it_took(governor, clock):
    see(governor, clock, *[85.0] * 100)
    assert governor.share == LEAST
    see(governor, clock, *[60.0] * 100)
    assert governor.share == 1.0


@pytest.mark.parametrize('absurd', [math.nan, math.inf, -math.inf, 1e30])
def test_an_absurd_temperature_is_passed_over(governor, clock, absurd):
    see(governor, clock, *[85.0] * 10, absurd)
    share = governor.share
    assert LEAST <= share < 1
    governor.worked(0.1)
    clock.now_s += 0.1 / share
    assert governor.allows()


def test_without_temperatures_it_does_nothing(governor, clock):
    see(governor, clock, *[85.0] * 100)
    clock.now_s += STALE_S + 1
    assert governor.allows()
    governor.worked(10.0)
    assert governor.allows()
