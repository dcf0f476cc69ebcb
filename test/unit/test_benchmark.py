"""benchmark: what is measured and told, with real child processes; what can't run is a row, what can't be read unknown."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_board import FakeBoard
from tiny_model import patch, write_bundle

from edge_resnet.hardware.power import PowerSensor
from edge_resnet.tools import benchmark

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with two bundles, frames and no sensors; children find the source tree from there."""
    for name, dtype in (('tiny', 'int8'), ('exact', 'float32')):
        write_bundle(tmp_path / name, dtype)
    (tmp_path / 'frames').mkdir()
    cv2.imwrite(str(tmp_path / 'frames/a.png'), patch('red', np.random.default_rng(1), 64))
    (tmp_path / 'bare').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    return tmp_path


def run(capsys, *argv) -> tuple[int, str, str]:
    frames = [] if '--frames' in argv else ['--frames', 'frames']
    root = [] if '--sysfs-root' in argv else ['--sysfs-root', 'bare']
    code = benchmark.main([*(str(arg) for arg in argv), *frames, *root, '--out', 'out'])
    return code, *capsys.readouterr()


def fake_runtime(folder: Path, text: str, monkeypatch) -> None:
    """Children import this in place of tflite_runtime.interpreter."""
    (folder / 'fake/tflite_runtime').mkdir(parents=True)
    (folder / 'fake/tflite_runtime/__init__.py').touch()
    (folder / 'fake/tflite_runtime/interpreter.py').write_text(text)
    monkeypatch.setenv('PYTHONPATH', f'{folder / "fake"}:{ROOT}')


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        benchmark.main(['--help'])
    assert end.value.code == 0
    assert 'ros2 run edge_resnet benchmark --models' in capsys.readouterr().out


def test_every_combination_is_a_row(capsys, here):
    code, out, err = run(capsys, '--models', 'tiny', 'exact', '--threads', 1, 2, '--no-delegate', '--runs', 7, '--rounds', 2, '--json')
    assert code == 0, err
    result = json.loads(out)
    found = {(row['model'], row['threads'], row['delegate']) for row in result['rows']}
    assert found == {(model, threads, delegate) for model in ('tiny', 'exact') for threads in (1, 2) for delegate in (True, False)}
    for row in result['rows']:
        assert row['runs'] == 8  # 4 in each of 2 rounds
        assert 0 < row['latency_ms']['p50'] <= row['latency_ms']['p95'] <= row['latency_ms']['p99'] <= row['latency_ms']['max']
        assert 10 < row['peak_rss_mb'] < 500
        assert row['load_ms'] > 0
        assert row['first_run_ms'] > 0
        unknown = ('temperature_max_c', 'clock_min_mhz', 'throttled', 'energy_mj_per_run', 'power_sensor')
        assert [row[name] for name in unknown] == [None] * 5
    assert result['throttle_events'] is None
    sizes = {entry['name']: (entry['sha256'], entry['size_bytes']) for entry in result['models']}
    assert sizes['tiny'] == (benchmark.report.open_model('tiny').sha256, Path('tiny/model.tflite').stat().st_size)
    assert json.loads(Path('out/benchmark.json').read_text()) == result
    assert cv2.imread('out/latency.png').std() > 10
    text = Path('out/benchmark.md').read_text()
    assert text.count('| tiny |') == 4
    assert 'unknown' in text


def test_both_runtimes(capsys, here):
    if importlib.util.find_spec('tflite_runtime') is None:
        pytest.skip('tflite_runtime is not installed')
    code, out, err = run(capsys, '--models', 'tiny', '--runtimes', 'litert', 'tflite_runtime', '--runs', 3, '--rounds', 1, '--json')
    assert code == 0, err
    rows = json.loads(out)['rows']
    assert [(row['runtime'], row.get('error'), row.get('runs')) for row in rows] == [('litert', None, 3), ('tflite_runtime', None, 3)]


@pytest.mark.parametrize(('runtime', 'reason'), [
    ('raise ImportError("no wheel")', 'runtime tflite_runtime is not installed (no wheel)'),
    ('import os; os.abort()', 'crashed (SIGABRT)'),
    ('import time; time.sleep(60)', 'did not end within'),
    ('raise KeyError("odd")', "KeyError: 'odd'"),
])
def test_a_runtime_that_fails_is_a_row_with_its_reason(capsys, here, monkeypatch, runtime, reason):
    fake_runtime(here, runtime, monkeypatch)
    timeout = 2 if 'sleep' in runtime else 100
    real = benchmark.in_a_child  # the good one shall not time out, however busy the machine
    monkeypatch.setattr(benchmark, 'in_a_child', lambda limit, *job: real(100 if job[2][1] == 'litert' else limit, *job))
    code, out, err = run(capsys, '--models', 'tiny', '--runtimes', 'litert', 'tflite_runtime', '--runs', 2, '--timeout', timeout, '--json')
    assert code == 0, err
    good, bad = json.loads(out)['rows']
    assert good['runs'] == 3  # one in each round
    assert reason in bad['error']
    assert f'- tiny, tflite_runtime, 1 thread: {bad["error"]}' in Path('out/benchmark.md').read_text()


def test_a_model_that_is_refused_is_a_row_with_its_reason(capsys, here):
    Path('exact/model.tflite').write_bytes(b'TFL3' * 100)
    code, out, _ = run(capsys, '--models', 'exact', 'nowhere/model', 'tiny', '--runs', 1, '--rounds', 1, '--json')
    rows = json.loads(out)['rows']
    assert code == 0
    assert 'sha256 is' in rows[0]['error']
    assert 'there is no such bundle' in rows[1]['error']
    assert rows[2]['runs'] == 1


def test_sensors_beside_the_latencies(capsys, here):
    FakeBoard(here / 'board', temperature_c=71.5, clock_mhz=1200, throttle_bits=0b100)
    meter = here / 'board/sys/class/hwmon/hwmon0'
    meter.mkdir(parents=True)
    (meter / 'name').write_text('ina219\n')
    (meter / 'power1_input').write_text('5000000\n')
    code, out, err = run(capsys, '--models', 'tiny', '--runs', 4, '--rounds', 1, '--sysfs-root', 'board', '--json')
    assert code == 0, err
    result = json.loads(out)
    row, = result['rows']
    assert (row['temperature_max_c'], row['clock_min_mhz'], row['throttled'], row['power_sensor']) == (71.5, 1200, ['throttled'], 'hwmon ina219')
    assert 5 * row['latency_ms']['p50'] / 4 < row['energy_mj_per_run'] <= 5 * row['latency_ms']['max']  # 5 W for a mean latency of ms: mJ
    assert {entry['temperature_c'] for entry in row['timeline']} == {71.5}
    assert [(event['flag'], event['on']) for event in result['throttle_events']] == [('throttled', True)]
    assert '| 71.5 | throttled |' in Path('out/benchmark.md').read_text()


def test_the_power_of_a_counter_is_its_growth(tmp_path):
    package, core = (tmp_path / f'sys/class/powercap/{name}' for name in ('intel-rapl:0', 'intel-rapl:0:0'))
    for folder, start in ((package, 1_000_000), (core, 0)):
        folder.mkdir(parents=True)
        (folder / 'energy_uj').write_text(str(start))
    sensor = PowerSensor(tmp_path)
    assert sensor.name == 'RAPL'
    assert sensor.read() is None  # growth since when?
    (package / 'energy_uj').write_text('2000000')
    (core / 'energy_uj').write_text('900000')  # a part of the package
    assert sensor.read() > 0
    assert sensor.read() == 0
    (package / 'energy_uj').write_text('5')
    assert sensor.read() is None  # wrapped
    (package / 'energy_uj').unlink()
    assert sensor.read() is None
    assert PowerSensor(tmp_path).name is None  # a package that can't be read is not 0 W


def part(latency, at=0.0, temperature=None, bits=None) -> dict:
    entry = {'at': at, 'runs': len(latency), 'p50_ms': 1.0, 'power_w': None, 'temperature_c': temperature, 'clock_mhz': None, 'throttle_bits': bits,
             'load_1min': None}
    return {'latency': latency, 'timeline': [entry], 'cpu': 1.0, 'load': 5.0, 'first': 2.0, 'rss': None, 'power_sensor': None}


def test_first_minute_against_steady_state():
    row = benchmark.summary([part([100.0] * 700), part([200.0] * 1000, 80.0, 82.0, 0b110)], 0.0)
    assert (row['first_part_s'], row['first_part_ms']['p50'], row['steady_ms']['p50']) == (60.0, 100.0, 200.0)
    assert (row['temperature_max_c'], row['throttled']) == (82.0, ['frequency_capped', 'throttled'])
    assert (row['peak_rss_mb'], row['energy_mj_per_run']) == (None, None)
    short = benchmark.summary([part([50.0] * 2 + [10.0] * 30)], 0.0)
    assert (short['first_part_s'], short['first_part_ms']['p50'], short['steady_ms']['max']) == (0.1, 50.0, 10.0)  # a quarter of 0.4 s


def test_combinations_take_turns_there_and_back(capsys, here, monkeypatch):
    seen = []

    def instead(limit, bundle, frames, how, runs, seconds, root):
        seen.append((bundle.name, runs, seconds, frames.shape))
        return part([1.0, 2.0, 3.0])

    monkeypatch.setattr(benchmark, 'in_a_child', instead)
    code, *_ = run(capsys, '--models', 'tiny', 'exact', '--seconds', 6, '--rounds', 3)
    assert code == 0
    assert [entry[0] for entry in seen] == ['tiny', 'exact', 'exact', 'tiny', 'tiny', 'exact']
    assert {entry[1:] for entry in seen} == {(None, 2.0, (1, 32, 32, 3))}


def test_a_measured_process_has_not_loaded_opencv(here):
    program = 'import sys; from edge_resnet.tools import benchmark; raise SystemExit("cv2" in sys.modules or "matplotlib" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program]).returncode == 0


@pytest.mark.parametrize(('argv', 'expected'), [
    (['--models', 'nowhere/model'], 'none of 1 combinations could run; nowhere/model, litert, 1 thread: model'),
    (['--models', 'tiny', 'copy/tiny'], 'models: tiny and copy/tiny are both named tiny but differ'),
    (['--models', 'tiny', '--threads', '1', '65'], 'threads is 65, expected 1 to 64'),
    (['--models', 'tiny', '--runs', '0'], 'runs is 0, expected 1 to'),
    (['--models', 'tiny', '--seconds', 'nan'], 'seconds is nan, expected 0.1 to'),
    (['--models', 'tiny', '--frames', 'bare'], 'bare: no images'),
])
def test_bad_input_is_one_line_and_nothing_is_written(capsys, here, argv, expected):
    write_bundle(here / 'copy/tiny')
    code, out, err = run(capsys, *argv)
    lines = [line for line in err.splitlines() if not line.startswith('benchmarking, part')]
    assert (code, out, len(lines)) == (1, '', 1)
    assert f'benchmark: {expected}' in lines[0]
    assert not Path('out').exists()


def test_ctrl_c_of_the_real_tool_leaves_nothing(here):
    program = ('from edge_resnet.tools import benchmark as tool; popen = tool.subprocess.Popen.communicate\n'
               'def tell(self, *args, **named):\n    print("running", self.pid, flush=True); return popen(self, *args, **named)\n'
               'tool.subprocess.Popen.communicate = tell\nraise SystemExit(tool.main())')
    command = [sys.executable, '-c', program, '--models', 'tiny', '--seconds', '600', '--frames', 'frames', '--out', 'out']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tool:
        child = os.pidfd_open(next(int(line.split()[1]) for line in tool.stdout if line.startswith('running')))
        tool.send_signal(signal.SIGINT)
        _, err = tool.communicate()
    assert (tool.returncode, err.splitlines()[-1]) == (130, 'benchmark: interrupted, nothing was written')
    assert select.select([child], [], [], 20)[0], 'the measuring process lives on'
    os.close(child)
    assert sorted(path.name for path in here.iterdir()) == ['bare', 'exact', 'frames', 'tiny']
