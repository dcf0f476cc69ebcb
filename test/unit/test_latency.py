"""Latencies of one and the same frame, joined by its capture stamp; faulty clocks are counted, not averaged."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, CAPTURED, FRAME_READY, INFERENCE_DONE, INFERENCE_STARTED, STAGES, StageJoiner, percentile

MS = 1_000_000
T0 = 1_700_000_000_000 * MS
TIMES = {CAPTURED: 0, FRAME_READY: 5, INFERENCE_STARTED: 7, INFERENCE_DONE: 25, ACTUATOR_COMMANDED: 26}


def feed(joiner: StageJoiner, stamp_ns: int = T0, stages: tuple[str, ...] = STAGES, **changes: float):
    """Report ``stages`` of a frame, ms after its stamp as in TIMES or ``changes``; what the joiner made of it."""
    times = {**TIMES, **changes}
    return [done for stage in stages if (done := joiner.add(stage, stamp_ns, stamp_ns + round(times[stage] * MS)))]


def test_the_slices_add_up_to_the_total():
    (latency,) = feed(StageJoiner())
    assert (latency.camera_to_frame_ready, latency.frame_to_inference_done, latency.inference_to_actuator, latency.total) == (5, 20, 1, 26)
    assert latency.stamp_ns == T0


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
    assert (joiner.clock_faults, list(joiner.recent)) == (1, [])
    assert len(feed(joiner, T0 + MS)) == 1


@pytest.mark.parametrize('stamp_ns', [0, -1])
def test_a_camera_that_does_not_stamp_is_a_clock_fault(stamp_ns):
    joiner = StageJoiner()
    assert feed(joiner, stamp_ns) == []
    assert joiner.clock_faults == 1


def test_what_is_no_stage_is_ignored():
    joiner = StageJoiner()
    assert joiner.add('brake', T0, T0) is None
    assert len(feed(joiner)) == 1


def test_frames_that_get_nowhere_are_counted_where_they_ended_and_forgotten():
    joiner = StageJoiner(capacity=10)
    for number in range(100):
        stages = (CAPTURED, FRAME_READY, INFERENCE_STARTED)[:1 + number % 3]
        feed(joiner, T0 + number * MS, stages)
    assert sum(joiner.last_stage.values()) == 90
    assert joiner.last_stage == {CAPTURED: 30, FRAME_READY: 30, INFERENCE_STARTED: 30}


def test_memory_is_bounded():
    joiner = StageJoiner(capacity=10, window=20)
    for number in range(1000):
        feed(joiner, T0 + number * MS, STAGES if number % 2 else STAGES[:2])
    assert len(joiner.recent) == 20
    assert len(joiner._open) <= 10
    assert joiner.recent[-1].stamp_ns == T0 + 999 * MS


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
        if latency is not None:
            slices = (latency.camera_to_frame_ready, latency.frame_to_inference_done, latency.inference_to_actuator)
            assert min(slices) >= 0
            assert latency.total == pytest.approx(sum(slices))
