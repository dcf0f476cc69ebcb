"""Real processes and real signals: nodes and launchers that are killed, stopped, interrupted, or die at every start."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from processes import Processes, wait_until
from tiny_model import patch, write_bundle
from vision_msgs.msg import Classification

from edge_resnet.deployment import MAX_STARTS, NODES, STARTED
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.pipeline.recording import read_run

MAX_AGE_S = 0.5
EVERY_NODE = [*(f'{node}_node' for node in NODES), 'pipeline']


class Tiny:
    """A small pipeline that sees red, so that its brake is on; its files are in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.state, pictures = folder / 'actuator.state', folder / 'pictures'
        self.model = write_bundle(folder / 'tiny')
        pictures.mkdir()
        cv2.imwrite(str(pictures / 'red.png'), patch('red', np.random.default_rng(7), 256)[..., ::-1])
        self.parameters = {
            'camera_node': {'source': pictures, 'framerate': 20.0}, 'preprocess_node': {'model': self.model}, 'inference_node': {'model': self.model},
            'actuator_node': {'state_file': self.state, 'refractory_s': 0.1, 'max_result_age_s': MAX_AGE_S, 'max_on_s': 600.0}}
        self.params = folder / 'params.yaml'
        self.params.write_text(yaml.safe_dump({f'/**/{name.removesuffix("_node")}': {'ros__parameters': {
            key: str(value) if isinstance(value, Path) else value for key, value in own.items()}} for name, own in self.parameters.items()}))

    @property
    def on(self) -> bool:
        return self.state.exists() and self.state.read_text() == '1\n'

    def start(self, processes: Processes) -> dict[str, subprocess.Popen]:
        """The nodes as processes of their own, once the brake is on."""
        running = {name: processes.start(name, **own) for name, own in reversed(self.parameters.items())}
        wait_until(lambda: self.on, 'the brake on')
        return running

    def launch(self, processes: Processes, *arguments: str, name: str = 'launcher') -> subprocess.Popen:
        """The project's own launcher, as from a terminal."""
        return processes.start(name, f'params_file:={self.params}', *arguments, module='edge_resnet.tools.demo')


@pytest.fixture
def tiny(tmp_path):
    return Tiny(tmp_path)


def time_to(condition, what: str) -> float:
    """Seconds until ``condition``, looked at every millisecond."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 30, f'{what} did not come'
        time.sleep(0.001)
    return time.monotonic() - start


def running(module: str, folder: Path) -> list[int]:
    """The processes of ``module`` whose environment has ``folder``, so ours."""
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            if f'edge_resnet.{module}'.encode() in (entry / 'cmdline').read_bytes() and str(folder).encode() in (entry / 'environ').read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.row(10)
def test_killed_under_a_launcher(row, processes, bench, tiny, tmp_path):
    results = bench.listen(Classification, 'classification', FRAME_QOS)
    tiny.launch(processes, 'use_respawn:=true')
    wait_until(lambda: tiny.on, 'the brake on')
    chain = [f'{node}_node' for node in ('camera', 'preprocess', 'inference', 'actuator')]
    others = [f'{node}_node' for node in STARTED if f'{node}_node' not in chain]
    for attempt in range(row.times(20, 1)):
        for name in (*chain, *others) if row.full else (chain[attempt % 4], 'actuator_node'):
            before = wait_until(lambda name=name: running(f'nodes.{name}', tmp_path), name)
            os.kill(before[0], signal.SIGKILL)
            start = time.monotonic()
            wait_until(lambda before=before, name=name: set(running(f'nodes.{name}', tmp_path)) - set(before), f'{name} again')
            results.clear()
            wait_until(lambda: results, f'results after kill -9 of {name}')
            wait_until(lambda: tiny.on, f'the brake after kill -9 of {name}')
            row.trial(seconds=time.monotonic() - start)
    assert 'ended with exit code -9: started again in' in processes.output('launcher')
    assert processes.end('launcher') == 0


@pytest.mark.row(11)
def test_actuator_killed_while_on(row, processes, tiny):
    nodes = tiny.start(processes)
    for attempt in range(row.times(20, 2)):
        if attempt:
            nodes['actuator_node'] = processes.start('actuator_node', **tiny.parameters['actuator_node'])
            wait_until(lambda: tiny.on, 'the brake on')
        nodes['actuator_node'].kill()
        row.trial(seconds=time_to(lambda: not tiny.on, 'OFF'))
        nodes['actuator_node'].wait()


@pytest.mark.parametrize(('name', 'old_s'), [pytest.param('inference_node', MAX_AGE_S, marks=pytest.mark.row(12)),
                                             pytest.param('actuator_node', 0.0, marks=pytest.mark.row(13))])
def test_stopped(row, processes, tiny, name, old_s):
    node = tiny.start(processes)[name]
    for _ in range(row.times(20, 2)):
        wait_until(lambda: tiny.on, 'the brake on')
        node.send_signal(signal.SIGSTOP)
        row.trial(seconds=max(0.0, time_to(lambda: not tiny.on, 'OFF') - old_s))
        node.send_signal(signal.SIGCONT)


@pytest.mark.row(14)
@pytest.mark.parametrize('turn', [0, 1])
def test_signals(row, processes, tiny, tmp_path, turn):
    if turn and not row.full:
        pytest.skip('the short version gives each node one of the two signals')
    tiny.start(processes)
    for name in EVERY_NODE:
        if name not in tiny.parameters:
            own = {key: value for parameters in tiny.parameters.values() for key, value in parameters.items()} if name == 'pipeline' else {}
            processes.start(name, **{**own, **({'state_file': tmp_path / 'composed.state'} if own else {})})
    states = {'actuator_node': tiny.state, 'pipeline': tmp_path / 'composed.state'}
    wait_until(states['pipeline'].exists, 'the composed pipeline')
    time.sleep(2.0)
    for index, name in enumerate(sorted(EVERY_NODE, key=lambda name: name != 'actuator_node')):  # that one while it is fed
        if name in states:
            wait_until(lambda name=name: states[name].read_text() == '1\n', 'ON before the signal')
        start = time.monotonic()
        code = processes.end(name, (signal.SIGINT, signal.SIGTERM)[(index + turn) % 2])
        row.trial(code == 0, time.monotonic() - start)
        assert code == 0, name
        assert 'Traceback' not in processes.output(name)
        if name in states:
            assert states[name].read_text() == '0\n'


@pytest.mark.row(15)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_launcher(row, processes, tiny, tmp_path, number):
    for attempt in range(row.times(3, 1)):
        launcher = tiny.launch(processes, name=f'launcher{attempt}')
        wait_until(lambda: tiny.on, 'the brake on')
        start = time.monotonic()
        launcher.send_signal(number)
        launcher.wait(20.0)
        wait_until(lambda: not running('', tmp_path) and not tiny.on, f'the end of {running("", tmp_path)}')
        row.trial(seconds=time.monotonic() - start)


@pytest.mark.row(16)
def test_dying_at_every_start(row, processes, tiny):
    tiny.params.write_text(tiny.params.read_text() + '/**/thermal_monitor: {ros__parameters: {period_s: often}}\n')
    tiny.launch(processes, 'use_respawn:=true')
    code, text = processes.wait('launcher', 120.0), processes.output('launcher')
    starts = text.count("period_s is 'often', expected a number")
    row.trial(code == 1 and starts == MAX_STARTS and f'thermal_monitor_node ended {MAX_STARTS} times within 60 s' in text)
    assert code == 1, text
    assert starts == MAX_STARTS
    row.note = f'{starts} starts'


TALKER = """
import rclpy
from std_msgs.msg import String
rclpy.init()
node = rclpy.create_node('talker')
publisher = node.create_publisher(String, 'talk', 10)
publisher.publish(String(data='hello'))
print('here', flush=True)
rclpy.spin(node)
"""


@pytest.mark.row(32)
def test_leftovers_of_killed_participants(row, processes, bench, tiny):
    def kill_one(_: int) -> None:
        with subprocess.Popen([sys.executable, '-c', TALKER], stdout=subprocess.PIPE, text=True) as talker:
            assert talker.stdout.readline() == 'here\n'
            talker.kill()

    before, kills = set(os.listdir('/dev/shm')), row.times(100, 6)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(kill_one, range(kills)))
    left = len(set(os.listdir('/dev/shm')) - before)
    row.note = f'{kills} kills, {left} files more in /dev/shm'
    assert left >= kills, 'there has to be something left over'
    results = bench.listen(Classification, 'classification', FRAME_QOS)
    start = time.monotonic()
    tiny.start(processes)
    wait_until(lambda: results, 'a result')
    row.trial(seconds=time.monotonic() - start, count=kills)


@pytest.mark.row(34)
def test_soak(row, root, tmp_path):
    """Minutes here; ``make soak`` for the hour that docs/faults.md tells of."""
    minutes = row.times(30, 2) / 10
    command = [sys.executable, 'benchmarks/soak.py', '--minutes', str(minutes), '--settle', str(minutes / 3), '--period', '2', '--framerate', '20',
               '--out', str(tmp_path / 'soak'), f'model:={write_bundle(tmp_path / "tiny")}']
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    grown = [float(value) for value in re.findall(r'MB *([+-]\d+\.\d+) MB', done.stdout)]
    row.trial(count=len(grown))
    row.note = f'{minutes:g} min, at most {max(grown):+.2f} MB'


@pytest.mark.row(34)
@pytest.mark.parametrize(('field', 'value', 'since', 'told'), [
    ('guard rss_mb', 20.0, 6, 'guard: memory grew by 6.0'), ('guard rss_mb', math.nan, 0, 'guard: memory grew by nan'),
    ('guard shared_mb', 17.0, 6, 'guard: shared memory grew by 17.0'),
    ('guard threads', 2.0, 6, 'guard: threads grew by 1'), ('frames', 0, 6, 'no frame came through at the end')])
def test_what_a_soak_misses(row, root, tmp_path, monkeypatch, capsys, field, value, since, told):
    monkeypatch.syspath_prepend(root / 'benchmarks')
    soak = importlib.import_module('soak')
    options = argparse.Namespace(minutes=10.0, framerate=10.0, max_growth=5.0, out=tmp_path)
    rows = [{'time_s': 60.0 * n, 'frames': 50, 'p50_ms': 10.0, 'p95_ms': 12.0, 'guard rss_mb': 14.0, 'guard shared_mb': 0.0,
             'guard files': 5.0, 'guard threads': 1.0, 'guard cpu_percent': 0.1} for n in range(11)]
    assert soak.report(rows, options, 60.0, [], off=True) == 0
    for entry in rows[since:]:
        entry[field] = value
    assert soak.report(rows, options, 60.0, [], off=True) == 1
    row.trial(told in capsys.readouterr().err)


@pytest.mark.row(36)
@pytest.mark.parametrize('harm', ['folder removed', 'no folder possible', 'disk full', 'kill -9'])
def test_recording(row, processes, bench, tiny, tmp_path, harm):
    folder = tmp_path / 'runs'
    results, newest = bench.listen(Classification, 'classification', FRAME_QOS), bench.diagnostics('latency_monitor')
    if harm == 'no folder possible':
        folder.write_text('a file')
    if harm == 'disk full':
        folder.mkdir()
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(folder)], capture_output=True).returncode:
            pytest.skip('a file system of 64 kB needs the right to mount')
    try:
        tiny.start(processes)
        monitor = processes.start('latency_monitor_node', record_to=folder)
        wait_until(newest, 'the latency monitor')
        if harm in ('folder removed', 'kill -9'):
            files = wait_until(lambda: [path for path in folder.glob('*.mcap') if path.stat().st_size > 5000], 'a recording')
            time.sleep(2.0)
            killed_ns = time.time_ns()
            monitor.kill() if harm == 'kill -9' else shutil.rmtree(folder)
        if harm == 'kill -9':
            lost_s = (killed_ns - read_run(files[-1]).frames['stamp_ns'][-1]) / 1e9
            assert lost_s < (1.0 if row.full else 5.0), f'kill -9 lost {lost_s:.2f} s'
        else:
            wait_until(lambda: "can't record into" in newest()[''], 'the report of the loss')
            assert monitor.poll() is None
        results.clear()
        wait_until(lambda: len(results) > 10 and tiny.on, 'the pipeline going on')
        row.trial()
    finally:
        if harm == 'disk full':
            processes.close()
            subprocess.run(['umount', str(folder)], check=True)
