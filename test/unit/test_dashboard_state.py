"""What the dashboard knows, on a clock of the test's."""

import json

import pytest

from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, FRAME_READY, INFERENCE_DONE
from edge_resnet.web.state import HISTORY_S, MAX_STATUSES, LiveState, number

MS = 1_000_000


@pytest.fixture
def state(clock):
    return LiveState('/robot1', clock)


def frame(state, stamp_ns, ready_ms=3, done_ms=20, commanded_ms=21):
    for source, offset in ((FRAME_READY, ready_ms), (INFERENCE_DONE, done_ms), (ACTUATOR_COMMANDED, commanded_ms)):
        state.stage(source, stamp_ns, stamp_ns + offset * MS)


def seconds(state, clock, count=1):
    for _ in range(count):
        clock.now_s += 1.0
        state.tick()


def test_nothing_heard_is_nothing_claimed(state):
    shown = state.snapshot()
    assert [shown[part]['age_s'] for part in ('result', 'latency', 'thermal', 'actuator', 'drift')] == [None] * 5
    assert shown['actuator']['on'] is None
    assert shown['thermal']['celsius'] is None
    assert (shown['nodes'], shown['hops'], shown['point']) == ([], [], None)


def test_ages_grow_when_the_topics_stop(state, clock):
    state.result([('red', 0.9), ('green', 0.1)])
    frame(state, 5 * MS)
    state.diagnostic('robot1/actuator', 0, 'off: red at 0.20', {'Armed': '1', 'On': '0', 'Stopped': '0'}, 0.0)
    clock.now_s += 3.2
    shown = state.snapshot()
    assert [shown[part]['age_s'] for part in ('result', 'latency', 'actuator')] == [pytest.approx(3.2)] * 3
    assert shown['nodes'][0]['age_s'] == pytest.approx(3.2)


def test_a_second_is_a_point_with_its_own_frames(state, clock):
    frame(state, 1000 * MS)
    frame(state, 1033 * MS, done_ms=40, commanded_ms=43)
    seconds(state, clock)
    seconds(state, clock)
    first, second = state.points
    assert (first['ms'], first['worst'], first['rate']) == ([3.0, 27.0, 2.0], 43.0, 2.0)
    assert (second['ms'], second['worst'], second['rate']) == (None, None, 0.0)
    assert (first['n'], second['n'], second['t'] - first['t']) == (1, 2, 1.0)
    shown = state.snapshot()
    assert shown['latency']['latest'] == {'camera_to_frame_ready': 3.0, 'frame_to_inference_done': 37.0, 'inference_to_actuator': 3.0, 'total': 43.0}
    assert shown['latency']['quantiles']['total'] == pytest.approx([32.0, 41.9, 42.78, 43.0])


def test_drops_a_second_are_between_two_reports_of_a_hop_and_a_restart_is_none(state, clock):
    def report(superseded):
        state.diagnostic('robot1/inference', 0, 'OK', {'Input superseded': str(superseded), 'Input lost in transport': '2', 'Input rate (Hz)': '10'},
                         clock())

    report(10)
    clock.now_s += 2.0
    report(50)
    seconds(state, clock)
    assert state.points[-1]['drops'] == {'inference': 20.0}
    hop, = state.snapshot()['hops']
    assert (hop['hop'], hop['rate']) == ('preprocess → inference', 10.0)
    assert hop['missed'] == [['Input superseded', 50.0], ['Input lost in transport', 2.0]]
    report(1)
    seconds(state, clock)
    assert state.points[-1]['drops'] == {'inference': 0.0}
    seconds(state, clock, 3)
    assert state.points[-1]['drops'] == {}, 'a silent node tells nothing'


@pytest.mark.parametrize('said_s', [(0.0, 1.0, 2.0), (0.0, 1.9995, 2.0)])
def test_reports_that_are_heard_at_once_make_no_rate_of_the_moment_between_them(state, clock, said_s):
    for made_s, overwritten, heard_s in zip(said_s, (0, 1, 2), (0.0, 2.0, 2.0002), strict=True):
        clock.now_s = heard_s
        state.diagnostic('robot1/camera', 0, 'OK', {'Overwritten before publishing': str(overwritten)}, made_s)
    assert 0.5 <= state.snapshot()['hops'][0]['missed_hz'] <= 1.0
    state.diagnostic('robot1/camera', 0, 'OK', {'Overwritten before publishing': '3'}, 3.0)
    assert 0.9 <= state.snapshot()['hops'][0]['missed_hz'] <= 2.0, 'none is forgotten'


def test_heat_and_throttle_moments_are_on_the_axis_of_the_latencies(state, clock):
    def board(celsius, throttled, **more):
        state.diagnostic('robot1/thermal_monitor', 0, '', {'Temperature (C)': celsius, 'Clock (MHz)': '1500', 'Throttled': throttled, **more},
                         clock())

    board('unknown', 'unknown')
    seconds(state, clock)
    board('81.5', '1', Simulated='1')
    seconds(state, clock)
    assert [(point['celsius'], point['flags'], point['simulated']) for point in state.points] == [(None, [], False), (81.5, ['Throttled'], True)]
    assert state.snapshot()['thermal']['flags'] == {'Under voltage': None, 'Frequency capped': None, 'Throttled': 1.0, 'Soft temperature limit': None}


def test_the_history_is_bounded(state, clock):
    seconds(state, clock, HISTORY_S + 7)
    assert [len(state.points), state.points[0]['n']] == [HISTORY_S, 8]


def test_strangers_on_diagnostics_are_bounded_and_our_own_come_first(state):
    for index in range(2 * MAX_STATUSES):
        state.diagnostic(f'stranger {index}', 2, 'x' * 10_000, {f'{key}' * 1000: 'y' * 10_000 for key in range(300)}, 0.0)
        if index == 3:
            state.diagnostic('robot1/actuator', 0, 'inactive', {}, 0.0)
    shown = state.snapshot()
    assert len(shown['nodes']) == MAX_STATUSES
    assert (shown['nodes'][0]['name'], shown['nodes'][0]['state']) == ('actuator', 'inactive')
    assert len(json.dumps(shown['nodes'][1])) < MAX_STATUSES * 700


def test_a_snapshot_is_json_even_with_values_that_are_no_numbers(state, clock):
    values = {'Calibration drift (levels)': 'nan', 'Sharpness of calibration (%)': 'inf', 'Input rate (Hz)': 'none'}
    state.diagnostic('robot1/inference', 1, 'OK', values, 0.0)
    frame(state, 10 * MS, ready_ms=-5)
    seconds(state, clock)
    shown = json.loads(json.dumps(state.snapshot(), allow_nan=False))
    assert [value for _, value, _ in shown['drift']['values']] == [None, None, None]
    assert shown['latency']['clock_faults'] == 1


def test_number():
    assert [number(text) for text in ('1.5', '-2', 'nan', 'unknown', '', None)] == [1.5, -2.0, None, None, None, None]
