"""Reports of recorded runs: a throttle moment at the right second with its cost, drops, verdict, comparison."""

from __future__ import annotations

import base64
import json
import re
import sys
import time

import numpy as np
import pytest

pytest.importorskip('mcap')
pytest.importorskip('matplotlib')
from edge_resnet.hardware.thermal import FULL_MHZ, SimulatedPi4, TransitionLog
from edge_resnet.pipeline.latency import METRICS, SLICES
from edge_resnet.pipeline.recording import SCHEMAS, Recorder, read_run
from edge_resnet.tools import latency_report, plots

T0 = 1_700_000_000 * 10 ** 9


def record_run(folder, seconds=600, rate_hz=30.0, total_ms=30.0) -> tuple[float, int]:
    """A run of a bare simulated board at full load whose inference is slower by its clock; when it throttles first (s), and frames."""
    now_s = 0.0
    board, transitions, recorder, first = SimulatedPi4(clock=lambda: now_s), TransitionLog(), Recorder(folder, 10 ** 9), None
    recorder.describe(T0, {'configuration': {'inference': {'model': '<lights>', 'sha256': 'abc'}}, 'host': {'machine': 'test'}})
    noise = np.random.default_rng(1)
    frames = round(seconds * rate_hz)
    for number in range(frames):
        now_s = number / rate_hz
        if number % round(rate_hz) == 0:
            reading = board.read()
            tags = {'temperature_c': reading.temperature_c, 'clock_mhz': reading.clock_mhz, 'throttle_bits': reading.throttle_bits, 'simulated': True}
            recorder.write('board', T0 + round(now_s * 1e9), tags)
            for flag, on in transitions.update(reading):
                first = now_s if first is None else first
                recorder.write('events', T0 + round(now_s * 1e9), {'event': flag, 'on': on, **tags})
        inference = (total_ms - 5) * FULL_MHZ / reading.clock_mhz + noise.random()
        values = dict(zip(METRICS, (3.0, inference + 1, 1.0, inference + 5, 3.5, 1.0, 1.0, 1.0, 1.0, inference, 0.5, 0.5), strict=True))
        recorder.write('frames', T0 + round(now_s * 1e9), {'stamp_ns': T0 + round(now_s * 1e9), **values, **tags})
    recorder.write('drops', T0, {'ended': {'actuator_commanded': frames, 'frame_ready': 7}, 'missed': {'inference superseded': 7}, 'faults': {}})
    recorder.close()
    return first, frames


@pytest.fixture(scope='module')
def ten_minutes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return folder, *record_run(folder)


def run(capsys, *arguments) -> tuple[int, str]:
    code = latency_report.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def test_ten_minutes_open_in_a_moment_and_show_the_throttle_moment_at_its_second(ten_minutes, tmp_path, capsys):
    folder, throttled_s, frames = ten_minutes
    began = time.monotonic()
    recorded = read_run(folder)
    assert time.monotonic() - began < 10, 'it takes half a second'
    assert len(recorded.frames['total']) == frames == 18_000
    code, _ = run(capsys, folder, '--budget-ms', 40, '--out', tmp_path / 'report')
    result = json.loads((tmp_path / 'report' / 'latency.json').read_text())['runs'][0]
    first = next(event for event in result['events'] if event['event'] == 'throttled')
    assert first['t_s'] == throttled_s
    assert 120 < throttled_s < 240
    assert (first['on'], first['clock_mhz'], first['simulated']) == (True, 1000.0, True)
    assert first['cost_ms'] == pytest.approx(12.5, abs=0.5), '25 ms of inference at 1500 MHz'
    ended = next(event for event in result['events'] if event['event'] == 'throttled' and not event['on'])
    assert ended['cost_ms'] == pytest.approx(-12.5, abs=0.5)
    assert result['throttled']['throttled']['p50'] == pytest.approx(43, abs=0.5)
    assert result['throttled']['free']['p50'] == pytest.approx(30.5, abs=0.5)
    assert code == 3, 'the budget was missed'
    assert result['budget']['over'] == result['throttled']['throttled']['frames']


def test_the_page_needs_nothing_else_and_says_what_is_simulated(ten_minutes, tmp_path, capsys):
    run(capsys, ten_minutes[0], '--budget-ms', 1000, '--out', tmp_path / 'report')
    page = (tmp_path / 'report' / 'index.html').read_text()
    assert {path.name for path in (tmp_path / 'report').iterdir()} == set(latency_report.FILES[:5])
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert [base64.b64decode(data)[:4] for data in pictures] == [b'\x89PNG'] * 3
    assert '<b>Temperature, clock and throttling are simulated</b>' in page
    assert '<b>Budget kept</b>: 0 of 18000 frames' in page
    assert '<td>between preprocess and inference</td><td>7</td>' in page
    assert '&lt;lights&gt;' in page, 'escaped'
    moments = re.findall(r'<td>([^<]*throttled (?:began|ended))</td>', page)
    assert set(moments) == {'frequency capped, throttled began', 'frequency capped, throttled ended'}
    assert re.search(r'<td>while throttled</td><td>\d+</td><td>43', page)


def test_figures(tmp_path):
    recorder = Recorder(tmp_path, 10 ** 7)
    for number, total in enumerate((20.0, 40.0, 20.0, 20.0)):
        values = {**dict.fromkeys(METRICS, 5.0), 'total': total, 'capture': None}
        recorder.write('frames', T0, {'stamp_ns': T0 + number * 100_000_000, **values})
    recorder.close()
    result = latency_report.analyse(read_run(tmp_path), 30.0)
    assert result['seconds'] == 0.3
    assert result['rate_hz'] == 10.0
    assert result['inference_duty_percent'] == pytest.approx(20 / 3, abs=0.001)
    # Commands at 20, 140, 220, 320 ms: information is 20..140, 40..120 and 20..120 ms old.
    assert result['age_of_information_ms']['peak']['max'] == 140
    assert result['age_of_information_ms']['mean'] == pytest.approx((80 * 120 + 80 * 80 + 70 * 100) / 300, abs=0.001)
    assert result['budget'] == {'ms': 30.0, 'over': 1, 'percent': 25.0, 'kept': False}
    assert result['ms']['capture']['p50'] is None
    assert result['temperature_max_c'] is None


def test_two_runs_side_by_side(tmp_path, capsys):
    for name, total_ms in (('a', 30.0), ('b', 50.0)):
        record_run(tmp_path / name, seconds=20, total_ms=total_ms)
    code, _ = run(capsys, tmp_path / 'a', '--compare', tmp_path / 'b', '--out', tmp_path / 'report')
    results = json.loads((tmp_path / 'report' / 'latency.json').read_text())['runs']
    assert code == 0
    assert results[1]['ms']['inference']['p50'] - results[0]['ms']['inference']['p50'] == pytest.approx(20)
    assert [set(result['ms']) >= set(SLICES) for result in results] == [True, True]
    page = (tmp_path / 'report' / 'index.html').read_text()
    for number in (1, 2):
        name = results[number - 1]['files'][0]
        assert f'run {number}: p99' in page
        assert f'<p>run {number}, {name}' in page
        assert f'What ran: run {number}, {name}' in page
    assert re.search(r'<th>run 2 - run 1: p50</th><th>run 2 - run 1: p99</th>.*<td>- inference</td>.*?<td>20</td><td>20</td></tr>', page)
    assert page.count('<figcaption>') == 5, 'slices and heat of each, and the spread of both'
    assert {path.name for path in (tmp_path / 'report').iterdir()} == set(latency_report.FILES)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['{runs}', '--budget-ms', '0'], 'budget_ms is 0.0, expected 0.01 to 60000'),
    (['{empty}'], 'no recording of edge_resnet in it'),
    (['{empty}/nothing.mcap'], 'nothing.mcap: no such run, expected a recording or a folder of them'),
])
def test_what_is_wrong_is_one_line(ten_minutes, tmp_path, capsys, arguments, message):
    (tmp_path / 'empty').mkdir()
    given = [text.format(runs=ten_minutes[0], empty=tmp_path / 'empty') for text in arguments]
    code, error = run(capsys, *given, '--out', tmp_path / 'report')
    assert code == 1
    assert message in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'report').exists()


@pytest.mark.parametrize(('missing', 'code', 'message'), [('matplotlib.figure', 0, 'pictures are left out'), ('mcap.records', 1, 'pip install mcap')])
def test_what_is_not_installed_is_told(tmp_path, capsys, monkeypatch, missing, code, message):
    record_run(tmp_path / 'runs', seconds=2)
    monkeypatch.setitem(sys.modules, missing, None)
    found, error = run(capsys, tmp_path / 'runs', '--out', tmp_path / 'report')
    assert found == code
    assert message in error
    assert {path.name for path in (tmp_path / 'report').glob('*')} == ({'latency.json', 'index.html'} if code == 0 else set())


def test_a_run_without_a_frame_is_refused(tmp_path, capsys):
    recorder = Recorder(tmp_path / 'runs', 10 ** 7)
    recorder.describe(T0, {})
    recorder.close()
    code, error = run(capsys, tmp_path / 'runs', '--out', tmp_path / 'report')
    assert code == 1
    assert 'no frame in it came from the camera to the actuator' in error


ODD = ('[]', '1', '{}', '{"stamp_ns": NaN}', '{"temperature_c": "warm"}', '{"total": 1e999}', '{"total": [1]}', '{"stamp_ns": 1' + 300 * '0' + '}',
       'x', '{"event": 7}',
       '{"ended": [1]}', '{"ended": {"captured": NaN, "frame_ready": "x"}, "faults": {"x": 1e999}}', '{"configuration": 1}',
       1000 * '[', '{"event": "throttled", "on": "yes", "temperature_c": Infinity}')


def test_what_is_odd_in_a_recording_is_left_out_and_that_is_said(tmp_path, capsys, monkeypatch):
    good = {'stamp_ns': T0, **dict.fromkeys(METRICS, 5.0)}
    recorder = Recorder(tmp_path / 'runs', 10 ** 7)
    with monkeypatch.context() as patch:
        for content in ({**good, 'inference': float('nan'), 'temperature_c': float('inf')}, {**good, 'total': float('nan')}):
            recorder.write('frames', T0, content)
        patch.setattr('edge_resnet.pipeline.recording.json.dumps', lambda content, **_: content)
        for topic in SCHEMAS:
            for text in ODD:
                recorder._add(topic, T0, Text(text))
    recorder.write('frames', T0, good)
    recorder.close()
    code, error = run(capsys, tmp_path / 'runs', '--out', tmp_path / 'report')
    assert (code, error) == (0, '')
    result = json.loads((tmp_path / 'report' / 'latency.json').read_text())['runs'][0]
    assert (result['frames'], result['ms']['inference']['max'], result['temperature_max_c']) == (2, 5.0, None)
    assert 'Not all of it could be read' in (tmp_path / 'report' / 'index.html').read_text()


class Text(str):
    """Goes into a recording as it is."""


def test_pictures_say_what_is_unknown_and_what_is_simulated(tmp_path):
    from matplotlib.figure import Figure

    record_run(tmp_path / 'a', seconds=2)
    recorder = Recorder(tmp_path / 'b', 10 ** 7)
    recorder.write('frames', T0, {'stamp_ns': T0, **dict.fromkeys(METRICS, 5.0)})
    recorder.close()
    runs, heat, spread = [read_run(tmp_path / name) for name in 'ab'], Figure(), Figure(layout='constrained')
    plots.heat(runs[1], latency_report.analyse(runs[1], None), heat)
    assert {axes.get_ylabel() for axes in heat.axes} == {'temperature unknown', 'clock unknown', 'total, ms'}
    plots.spread(runs, spread)
    assert [text.get_text() for text in spread.legends[0].get_texts()] == [
        f'run 1, {runs[0].paths[0].name} (board simulated)', f'run 2, {runs[1].paths[0].name}']
