"""Latencies of one and the same frame, joined by its capture stamp; faulty clocks are counted, not averaged."""

from __future__ import annotations

import itertools
import math

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st

from edge_resnet.pipeline.latency import (
    ACTUATOR_COMMANDED,
    ACTUATOR_STARTED,
    CAPTURED,
    FRAME_READY,
    INFERENCE_DONE,
    INFERENCE_STARTED,
    METRICS,
    PARTS,
    PREPROCESS_STARTED,
    SETTLE_S,
    STAGES,
    ClockWatch,
    LatencyStatistics,
    StageJoiner,
    percentile,
)

MS = 1_000_000
T0 = 1_700_000_000_000 * MS
TIMES = {CAPTURED: 0, PREPROCESS_STARTED: 2, FRAME_READY: 5, INFERENCE_STARTED: 7, INFERENCE_DONE: 25, ACTUATOR_STARTED: 25.5, ACTUATOR_COMMANDED: 26}


def feed(joiner: StageJoiner, stamp_ns: int = T0, stages: tuple[str, ...] = STAGES, **changes: float):
    """Report ``stages`` of a frame, ms after its stamp as in TIMES or ``changes``; what the joiner made of it."""
    times = {**TIMES, **changes}
    return [done for stage in stages if (done := joiner.add(stage, stamp_ns, stamp_ns + round(times[stage] * MS)))]


def test_the_slices_add_up_to_the_total():
    (latency,) = feed(StageJoiner())
    assert (latency.camera_to_frame_ready, latency.frame_to_inference_done, latency.inference_to_actuator, latency.total) == (5, 20, 1, 26)
    assert latency.stamp_ns == T0
    assert [getattr(latency, part) for part in PARTS] == [0, 2, 3, 2, 18, 0.5, 0.5]
    assert latency.frame_age_at_inference == 7


@pytest.mark.parametrize('part', PARTS)
def test_a_delay_shows_in_its_part_and_no_other(part):
    first = PARTS.index(part)
    (before,), (after,) = feed(StageJoiner()), feed(StageJoiner(), **{stage: TIMES[stage] + 50 for stage in STAGES[first:]})
    assert [b - a for a, b in zip(before[1:], after[1:], strict=True)] == [
        50 * (name in (part, 'total') or name == slice_of(part) or (name == 'frame_age_at_inference' and first <= 3)) for name in METRICS]


def slice_of(part: str) -> str:
    return ('camera_to_frame_ready', 'frame_to_inference_done', 'inference_to_actuator')[(PARTS.index(part) - 1) // 2 if part != 'capture' else 0]


def test_a_camera_of_anothers_reports_nothing_and_its_part_is_unknown():
    (latency,) = feed(StageJoiner(), stages=STAGES[1:])
    assert math.isnan(latency.capture)
    assert math.isnan(latency.wait_for_preprocess)
    assert (latency.preprocess, latency.total) == (3, 26)


@pytest.mark.parametrize('order', itertools.permutations((FRAME_READY, INFERENCE_DONE, ACTUATOR_COMMANDED)))
def test_records_may_come_in_any_order(order):
    """They come from three processes."""
    (latency,) = feed(StageJoiner(), stages=order)
    assert latency.total == 26


def test_frames_that_overlap_are_not_mixed_up():
    joiner, other = StageJoiner(), T0 + 33 * MS
    feed(joiner, T0, (FRAME_READY,))
    feed(joiner, other, (FRAME_READY,), frame_ready=9)
    feed(joiner, other, (INFERENCE_DONE,))
    feed(joiner, T0, (INFERENCE_DONE,))
    (second,) = feed(joiner, other, (ACTUATOR_COMMANDED,))
    (first,) = feed(joiner, T0, (ACTUATOR_COMMANDED,))
    assert (first.camera_to_frame_ready, second.camera_to_frame_ready) == (5, 9)
    assert [latency.stamp_ns for latency in joiner.recent] == [other, T0]


def test_a_frame_counts_once():
    joiner = StageJoiner()
    assert len(feed(joiner)) == 1
    assert feed(joiner) == []
    assert len(joiner.recent) == 1


@pytest.mark.parametrize('changes', [
    {FRAME_READY: -1}, {INFERENCE_DONE: 4}, {ACTUATOR_COMMANDED: 24.9}, {FRAME_READY: 60_001, INFERENCE_DONE: 60_002, ACTUATOR_COMMANDED: 60_003},
    {FRAME_READY: 3_600_000, INFERENCE_DONE: 3_600_020, ACTUATOR_COMMANDED: 3_600_021}, {ACTUATOR_COMMANDED: 86_400_000}])
def test_a_clock_that_is_wrong_is_counted_and_not_averaged_in(changes):
    joiner = StageJoiner()
    assert feed(joiner, **changes) == []
    assert (sum(joiner.faults.values()), list(joiner.recent)) == (1, [])
    assert len(feed(joiner, T0 + MS)) == 1


@pytest.mark.parametrize(('changes', 'fault'), [
    ({FRAME_READY: 1.9}, 'negative preprocess'), ({PREPROCESS_STARTED: -1}, 'negative wait_for_preprocess'),
    ({INFERENCE_STARTED: 4}, 'negative wait_for_inference'), ({ACTUATOR_STARTED: 24}, 'negative wait_for_actuator'),
    ({ACTUATOR_STARTED: 70_000, ACTUATOR_COMMANDED: 70_001}, 'older than a minute')])
def test_a_clock_fault_is_named(changes, fault):
    joiner = StageJoiner()
    feed(joiner, **changes)
    assert joiner.faults == {fault: 1}


@pytest.mark.parametrize('stamp_ns', [0, -1])
def test_a_camera_that_does_not_stamp_is_a_clock_fault(stamp_ns):
    joiner = StageJoiner()
    assert feed(joiner, stamp_ns) == []
    assert joiner.faults == {'zero stamp': 1}


def test_what_is_no_stage_is_ignored():
    joiner = StageJoiner()
    assert joiner.add('brake', T0, T0) is None
    assert len(feed(joiner)) == 1


def test_every_frame_is_counted_where_it_ended_and_once():
    clock = Clock()
    joiner = StageJoiner(clock=clock)
    for number in range(700):
        feed(joiner, T0 + number * MS, STAGES[:1 + number % 7])
        joiner.settle()
    assert joiner.ended == {STAGES[-1]: 100}, 'the others may still get on'
    clock.now_s += SETTLE_S + 0.1
    joiner.settle()
    assert joiner.ended == dict.fromkeys(STAGES, 100)
    assert feed(joiner, T0 + 3 * MS) == []
    assert (joiner.late, sum(joiner.ended.values())) == (7, 700)


def test_memory_is_bounded():
    joiner = StageJoiner(capacity=10, window=20)
    for number in range(1000):
        feed(joiner, T0 + number * MS, STAGES if number % 2 else STAGES[:2])
        joiner.settle()
    assert len(joiner.recent) == 20
    assert (len(joiner._open), len(joiner._settled)) == (10, 10)
    assert sum(joiner.ended.values()) == 995, 'and 5 that are on their way'
    joiner.settle(at_once=True)
    assert sum(joiner.ended.values()) == 1000
    assert joiner.recent[-1].stamp_ns == T0 + 999 * MS


def test_what_inference_does():
    joiner = StageJoiner()
    feed(joiner)
    feed(joiner, T0 + MS, STAGES[:5])
    assert (joiner.results, joiner.busy_ns) == (2, 2 * 18 * MS)


# Statistics

@given(st.lists(st.floats(0.002, 59_000), min_size=1, max_size=200))
def test_percentiles_since_the_start_are_right_to_a_percent(values):
    statistics = LatencyStatistics(30.0)
    statistics.add([(0, *[value] * len(METRICS)) for value in values])
    exact = [sorted(values)[max(1, math.ceil(q / 100 * len(values))) - 1] for q in (50, 95, 99, 100)]
    assert statistics.since_start()['total'] == pytest.approx(exact, rel=0.0101)
    assert statistics.since_start()['total'][-1] == max(values)


def test_the_window_slides_and_the_rest_stays():
    clock = Clock()
    statistics = LatencyStatistics(30.0, clock)
    statistics.add([(0, *[1000.0] * len(METRICS))])
    clock.now_s += 31
    statistics.add([(0, *[float(value)] * len(METRICS)) for value in (1, 2, 3)])
    assert statistics.window()['total'] == pytest.approx([2.0, 2.9, 2.98, 3.0])
    assert statistics.since_start()['total'][-1] == 1000.0
    clock.now_s += 31
    assert all(math.isnan(value) for value in statistics.window()['inference'])


def test_the_window_holds_so_many_frames_at_most():
    statistics = LatencyStatistics(1e9)
    for value in range(30):
        statistics.add([(0, *[float(value)] * len(METRICS))] * 1000)
    assert statistics.window()['total'] == pytest.approx([24.5, 29.0, 29.0, 29.0])


def test_an_unknown_part_does_not_spoil_the_known_ones():
    statistics = LatencyStatistics(30.0)
    (latency,) = feed(StageJoiner(), stages=STAGES[1:])
    statistics.add([latency])
    for found in (statistics.window(), statistics.since_start()):
        assert math.isnan(found['capture'][0])
        assert found['preprocess'][0] == pytest.approx(3, rel=0.01)


def test_nothing_has_come_yet():
    statistics = LatencyStatistics(30.0)
    statistics.add([])
    assert all(math.isnan(value) for found in (statistics.window(), statistics.since_start()) for values in found.values() for value in values)


# Clocks

def test_a_clock_that_jumps_is_told_by_how_much():
    watch = ClockWatch()
    assert [watch.jump_s(T0 + round(ros_s * 1e9), steady_s, False) for ros_s, steady_s in ((0, 5), (1, 6), (1.4, 6.2), (3602, 7.2), (3, 8.2))] == (
        [0, 0, 0, pytest.approx(3599.6), pytest.approx(-3600)])


def test_a_simulated_clock_may_stand_still_and_race_but_not_go_back():
    watch = ClockWatch()
    assert [watch.jump_s(round(ros_s * 1e9), 0.0, True) for ros_s in (0, 0, 100, 100, 99)] == [0, 0, 0, 0, -1]


def test_percentiles():
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 100) == 5.0
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))


@given(st.lists(st.tuples(st.sampled_from([*STAGES, 'x']), st.integers(-2, 5), st.integers(-10 ** 12, 10 ** 12)), max_size=60))
def test_whatever_is_reported_a_latency_is_sound(records):
    joiner = StageJoiner(capacity=3, window=5)
    for stage, stamp, time_ns in records:
        latency = joiner.add(stage, stamp * MS, time_ns)
        joiner.settle()
        if latency is not None:
            slices = (latency.camera_to_frame_ready, latency.frame_to_inference_done, latency.inference_to_actuator)
            assert min(slices) >= 0
            assert latency.total == slices[0] + slices[1] + slices[2], 'to the last bit'
            parts = [getattr(latency, part) for part in PARTS]
            assert not any(part < 0 for part in parts)
            if not any(math.isnan(part) for part in parts):
                assert sum(parts) == pytest.approx(latency.total)
