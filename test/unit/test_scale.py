"""Figures of benchmarks/scale.py."""

import importlib

import pytest

NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    9000      10    0    0    0     0          0         0     9000      10    0    0    0     0       0          0
 cable: 4778000    3300    0    0    0     0          0        40    19730     130    0    0    0     0       0          0
"""


@pytest.fixture
def bench(root, monkeypatch):
    monkeypatch.syspath_prepend(root / 'benchmarks')
    return importlib.import_module('scale')


def test_bytes_of_an_interface(bench):
    assert bench.interfaces(NET_DEV) == {'lo', 'cable'}
    assert bench.interface_bytes(NET_DEV, 'cable') == {'received': 4778000, 'sent': 19730}


def test_spans_and_losses(bench):
    ms, times = 1_000_000, {}
    for n in range(10):  # captured 1 ms after the stamp, inferred after 20 ms; each fourth is lost
        times[n * 100 * ms] = {'captured': (n * 100 + 1) * ms, **({} if n % 4 == 3 else {'inference_started': (n * 100 + 20) * ms})}
    found = bench.spans(times, 100 * ms, 900 * ms, 'captured', 'inference_started')  # frames 1 to 8
    assert found == {'ended': 6, 'rate': pytest.approx(7.5), 'lost': 25.0, 'span_p50': 20.0, 'span_p99': 20.0}
    with pytest.raises(SystemExit, match='no frame of 1 came to inference_started'):
        bench.spans(times, 300 * ms, 400 * ms, 'captured', 'inference_started')


def test_table_has_ratios_of_the_same_repeat(bench):
    runs = {'one': [{'total': 10.0, 'load': 1.0}, {'total': 20.0, 'load': 1.0}], 'two': [{'total': 5.0, 'load': 2.0}, {'total': 30.0, 'load': 4.0}]}
    last = bench.table('title', (('total', 'ms'), ('/total', 'ratio')), runs).splitlines()[-1]
    assert last == '| two | 17.5 (5.0 to 30.0) | 1.000 (0.500 to 1.500) | 3.00 (2.00 to 4.00) |'


def test_ratios_are_of_the_same_repeat_and_to_the_floor(bench):
    pipeline = importlib.import_module('pipeline')
    runs = {'case': {kind: [{key: value for key, _ in pipeline.COLUMNS} for value in values]
                     for kind, values in (('floor', (10.0, 20.0)), ('composed', (5.0, 30.0)))}, 'no floor': {'composed': []}}
    found = pipeline.ratios(runs)
    assert list(found) == ['case']
    assert found['case'] == {'composed': {key: {'middle': 1.0, 'low': 0.5, 'high': 1.5} for key, _ in pipeline.COLUMNS}}


def test_a_process_that_ends_while_it_is_measured_is_told(bench, monkeypatch, tmp_path):
    pipeline = importlib.import_module('pipeline')
    recorder = type('Recorder', (), {'renew': lambda self: None, 'first_command_ns': lambda self, since_ns: since_ns + 1})()
    monkeypatch.setattr(pipeline, 'command', lambda *_: {'camera': ['-c', 'raise SystemExit(3)']})
    with pytest.raises(SystemExit, match='separate: camera ended with exit code 3 while it was measured'):
        pipeline.measure('separate', pipeline.Case('case'), 30.0, 1e9, recorder, 0.5, 2.0)


def test_commands_of_a_pipeline(bench, tmp_path):
    commands = bench.lines('separate', bench.Case('', bench.SMALL), 10.0, tmp_path, 'p1', inference=['nice'], threads=2)
    assert set(commands) == {'p1camera', 'p1preprocess', 'p1inference', 'p1actuator'}
    assert {name for name, line in commands.items() if line[0] == 'nice'} == {'p1inference'}
    assert all(line[-4:] == ['-r', '__ns:=/p1', '-p', 'num_threads:=2'] for line in commands.values())
    parameters = (tmp_path / 'p1' / 'state_actuator.yaml').read_text()
    assert f'"state_file": "{tmp_path}/p1/state"' in parameters
    assert commands['p1actuator'][-5] == str(tmp_path / 'p1' / 'state_actuator.yaml')


@pytest.mark.parametrize(('program', 'arguments', 'told'), [
    ('pipeline', ['--repeats', '0'], '--repeats is 0, expected at least 1'),
    ('pipeline', ['--seconds', 'nan'], '--seconds is nan, expected at least 1.0'),
    ('pipeline', ['--warm-s', '-1'], '--warm-s is -1.0, expected at least 0.0'),
    ('pipeline', ['--short', '--only', 'nonsense'], "--only is 'nonsense', expected part of one of: ResNet50"),
    ('pipeline', ['--kinds', 'floor,nonsense'], "--kinds has 'nonsense', expected some of floor,"),
    ('pipeline', ['--check', '--only', 'slow'], '--check needs all cases and kinds'),
    ('pipeline', ['--check', '--kinds', 'floor'], '--check needs all cases and kinds'),
    ('scale', ['scale', '--repeats', '0'], '--repeats is 0, expected at least 1'),
    ('scale', ['nonsense'], 'no part nonsense, expected some of ')])
def test_what_can_not_be_measured_is_refused(bench, capsys, program, arguments, told):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
