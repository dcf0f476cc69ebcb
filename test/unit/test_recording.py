"""Recordings: whole, bounded, cut off, and on disks that fail."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('mcap')
from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.latency import METRICS
from edge_resnet.pipeline.recording import BOARD, RETRY_S, SCHEMAS, Recorder, number_of, read_run

T0 = 1_700_000_000 * 10 ** 9
FRAME = {**dict.fromkeys(METRICS, 1.0), 'temperature_c': 61.5, 'clock_mhz': 1500.0, 'throttle_bits': 0, 'simulated': False}


def record(recorder, count=10, first=0, **changes):
    for number in range(first, first + count):
        recorder.write('frames', T0 + number * 33_000_000, {'stamp_ns': T0 + number * 33_000_000, **FRAME, 'total': float(number), **changes})


def test_what_was_written_is_read(tmp_path):
    recorder = Recorder(tmp_path / 'new' / 'folder', 10 ** 7)
    recorder.describe(T0, {'configuration': {'inference': {'sha256': 'abc'}}, 'host': {}})
    record(recorder, capture=None, temperature_c=None)
    recorder.write('board', T0, {'temperature_c': 50.0, 'simulated': True})
    recorder.write('events', T0 + 5, {'event': 'throttled', 'on': True})
    recorder.write('drops', T0 + 9, {'ended': {'captured': 3}, 'missed': {}, 'faults': {}})
    recorder.close()
    run = read_run(tmp_path / 'new' / 'folder')
    assert run.about['configuration']['inference']['sha256'] == 'abc'
    assert run.frames['total'].tolist() == list(range(10))
    assert np.isnan(run.frames['capture']).all()
    assert np.isnan(run.frames['temperature_c']).all()
    assert (run.frames['stamp_ns'][1] - run.frames['stamp_ns'][0]) / 1e6 == pytest.approx(33, abs=0.001)
    assert run.events == [{**dict.fromkeys((*BOARD, 'simulated')), 'event': 'throttled', 'on': True, 'time_ns': T0 + 5}]
    assert (run.drops['ended'], run.simulated, run.cut_off) == ({'captured': 3}, True, False)
    assert (recorder.lost, recorder.error) == (0, '')


def test_what_ran_is_written_once_and_nothing_after_the_end(tmp_path):
    from mcap.reader import make_reader

    recorder = Recorder(tmp_path, 10 ** 7)
    recorder.describe(T0, {'host': 'pi'})
    record(recorder)
    recorder.close()
    record(recorder)  # another thread that was still at it
    assert [path.name for path in tmp_path.iterdir()] == [recorder.path.name]
    with recorder.path.open('rb') as stream:
        counts = make_reader(stream).get_summary().statistics.channel_message_counts
    assert sorted(counts.values()) == [1, 10]


def test_other_readers_find_channels_schemas_and_an_index(tmp_path):
    from mcap.reader import make_reader

    recorder = Recorder(tmp_path, 10 ** 7)
    record(recorder)
    recorder.close()
    with recorder.path.open('rb') as stream:
        summary = make_reader(stream).get_summary()
    assert {channel.topic for channel in summary.channels.values()} == {f'/edge_resnet/{topic}' for topic in SCHEMAS}
    assert summary.statistics.message_count == 10
    schema = next(schema for schema in summary.schemas.values() if schema.name == 'edge_resnet.frames')
    assert schema.encoding == 'jsonschema'
    assert set(METRICS) < set(json.loads(schema.data)['properties'])


def test_a_file_that_is_cut_off_anywhere_is_good_up_to_there(tmp_path):
    recorder = Recorder(tmp_path, 10 ** 7)
    record(recorder, 5)
    recorder.close()
    data, counts = recorder.path.read_bytes(), []
    for length in range(len(data) - 3000, len(data), 7):
        recorder.path.write_bytes(data[:length])
        run = read_run(tmp_path)
        assert run.cut_off
        counts.append(len(run.frames['total']))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 5


@pytest.mark.parametrize('data', [b'', b'no recording', b'\x89MCAP0\r\n'])
def test_what_is_no_recording_is_refused_by_name(tmp_path, data):
    (tmp_path / 'edge_resnet_x_001.mcap').write_bytes(data)
    with pytest.raises(ParameterError, match='x_001.mcap: no recording of edge_resnet in it'):
        read_run(tmp_path / 'edge_resnet_x_001.mcap')


def test_an_empty_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ParameterError, match='no recording of edge_resnet in it'):
        read_run(tmp_path)


def test_kill_9_loses_only_what_was_not_flushed(tmp_path):
    code = ('import os, signal, sys; from pathlib import Path; from edge_resnet.pipeline.recording import Recorder\n'
            f'recorder = Recorder(Path({str(tmp_path)!r}), 10 ** 7)\n'
            'for number in range(100):\n    recorder.write("frames", number, {"stamp_ns": number, "total": 1.0})\n'
            'recorder.flush()\n'
            'for number in range(7):\n    recorder.write("frames", number, {"stamp_ns": number, "total": 2.0})\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n')
    assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == -signal.SIGKILL
    run = read_run(tmp_path)
    assert run.cut_off
    assert len(run.frames['total']) >= 100
    assert run.frames['total'][:100].tolist() == [1.0] * 100


def test_space_is_bounded_the_oldest_go_and_nothing_of_anothers(tmp_path):
    (tmp_path / 'holiday.mcap').write_bytes(bytes(500_000))
    (tmp_path / 'edge_resnet_20200101_000000_001.mcap').write_bytes(bytes(90_000))
    recorder = Recorder(tmp_path, 200_000)
    recorder.describe(T0, {'configuration': {'camera': 1}})
    for number in range(0, 2000, 10):
        record(recorder, 10, number)
        recorder.flush()
        assert sum(path.stat().st_size for path in tmp_path.glob('edge_resnet_*')) < 220_000
    recorder.close()
    assert (tmp_path / 'holiday.mcap').exists()
    assert not (tmp_path / 'edge_resnet_20200101_000000_001.mcap').exists()
    run = read_run(tmp_path)
    assert len(run.paths) >= 3
    totals = run.frames['total']
    assert totals[-1] == 1999
    assert (np.diff(totals) == 1).all(), 'nothing is lost where files meet'
    assert run.about == {'configuration': {'camera': 1}, 'host': {}, 'time_ns': run.about['time_ns']}, 'every file tells what ran'


def test_the_thousandth_file_is_newer_than_the_one_before(tmp_path):
    (tmp_path / 'edge_resnet_20200101_000000_997.mcap').write_bytes(bytes(90_000))
    recorder = Recorder(tmp_path, 200_000)
    for number in range(2000):
        record(recorder, 1, number)
    recorder.close()
    run = read_run(tmp_path)
    assert number_of(recorder.path) > 1002
    assert [number_of(path) for path in run.paths] == list(range(number_of(run.paths[0]), number_of(recorder.path) + 1))
    assert run.frames['total'][-1] == 1999
    assert (np.diff(run.frames['total']) == 1).all()


def test_a_run_of_a_clock_that_was_behind_is_the_newest(tmp_path):
    for date, total in (('20300101_000000', 1.0), ('19700101_000000', 2.0)):
        recorder = Recorder(tmp_path, 400_000)
        recorder._name = f'edge_resnet_{date}'
        record(recorder, 200, total=total)
        recorder.close()
    assert read_run(tmp_path).frames['total'].tolist() == [2.0] * 200
    recorder = Recorder(tmp_path, 100_000)
    record(recorder, 1)
    recorder.close()
    assert not list(tmp_path.glob('*_20300101_*')), 'what was recorded first goes first'


def test_a_disk_that_is_full_loses_records_and_says_so(tmp_path, clock):
    recorder = Recorder(tmp_path, 10 ** 7, clock)
    record(recorder, 5)
    real, recorder._stream = recorder._stream, FullDisk()
    recorder.flush()
    real.close()
    assert recorder.error == f"can't record into {recorder.path}: No space left on device"
    assert recorder.lost == 5
    record(recorder, 3)
    assert recorder.lost == 8, 'not tried again at once'
    clock.now_s += RETRY_S
    record(recorder, 4)
    recorder.flush()
    assert (recorder.lost, recorder.error) == (8, '')
    recorder.close()
    assert read_run(recorder.path).frames['total'].tolist() == [0, 1, 2, 3]


class FullDisk:
    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    close = flush


def test_a_folder_that_was_removed_is_made_again(tmp_path, clock):
    folder = tmp_path / 'runs'
    recorder = Recorder(folder, 10 ** 7, clock)
    record(recorder, 5)
    recorder.flush()
    recorder.path.unlink()
    folder.rmdir()
    record(recorder, 2)
    recorder.flush()
    assert recorder.error.endswith('it was removed')
    assert recorder.lost == 2
    clock.now_s += RETRY_S
    record(recorder, 4)
    recorder.flush()
    recorder.close()
    assert recorder.error == ''
    assert len(read_run(folder).frames['total']) == 4


def test_a_folder_that_can_not_be_made_is_reported(tmp_path, clock):
    (tmp_path / 'runs').write_text('a file')
    recorder = Recorder(tmp_path / 'runs' / 'today', 10 ** 7, clock)
    record(recorder, 3)
    recorder.flush()
    recorder.close()
    assert recorder.error.startswith(f"can't record into {tmp_path / 'runs' / 'today'}: ")
    assert recorder.lost == 3


def test_without_the_package_it_is_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mcap', None)
    monkeypatch.setitem(sys.modules, 'mcap.writer', None)
    with pytest.raises(ParameterError, match=r'recording needs the mcap package \(pip install mcap\)'):
        Recorder(tmp_path, 10 ** 7)
