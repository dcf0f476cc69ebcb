"""Temperature, clock and throttling from a fake board: what can't be read is unknown, never fine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clock import Clock
from fake_board import FakeBoard
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.hardware import thermal
from edge_resnet.hardware.thermal import THROTTLE_BITS, HostLoad, SimulatedPi4, ThermalReader, ThermalReading, TransitionLog

TEMP = 'sys/class/thermal/thermal_zone0/temp'
CLOCK = 'sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq'
THROTTLED = 'sys/devices/platform/soc/soc:firmware/get_throttled'


@pytest.fixture
def board(tmp_path) -> FakeBoard:
    return FakeBoard(tmp_path, 61.25, 1500.0, 0)


def put(board: FakeBoard, name: str, data: bytes) -> ThermalReading:
    (board.root / name).write_bytes(data)
    return ThermalReader(board.root).read()


def test_a_whole_reading(board):
    reading = ThermalReader(board.root).read()
    assert reading == ThermalReading(61.25, 1500.0, 0, False, 0.5, pytest.approx(3000000 / 1024), pytest.approx(3884304 / 1024))


def test_it_follows_the_board(board):
    reader = ThermalReader(board.root)
    board.set(85.0, 600.0, 0x4)
    reading = reader.read()
    assert (reading.temperature_c, reading.clock_mhz) == (85.0, 600.0)
    assert [name for name in THROTTLE_BITS if reading.flag(name)] == ['throttled']


def test_an_empty_machine_knows_nothing(tmp_path):
    assert ThermalReader(tmp_path).read() == ThermalReading()
    assert ThermalReading().flag('under_voltage') is None


@pytest.mark.parametrize(('data', 'expected'), [
    (b'48312\n', 48.312), (b'-5000', -5.0), (b'', None), (b'garbage', None), (b'\xff\xfe\x00', None), (b'nan', None), (b'inf', None),
    (b'999999999', None), (b'-274000', None),
])
def test_temperatures(board, data, expected):
    assert put(board, TEMP, data).temperature_c == expected


@pytest.mark.parametrize(('data', 'expected'), [(b'600000', 600.0), (b'0', None), (b'-1', None), (b'<unknown>', None)])
def test_clocks(board, data, expected):
    assert put(board, CLOCK, data).clock_mhz == expected


@pytest.mark.parametrize(('data', 'bits'), [
    (b'0\n', 0), (b'50005\n', 0x50005), (b'e0000', 0xE0000), (b'0x4', 4), (b'', None), (b'yes', None), (b'-1', None), (b'1ffffffff', None),
])
def test_throttle_bits(board, data, bits):
    assert put(board, THROTTLED, data).throttle_bits == bits


@pytest.mark.parametrize(('bits', 'now'), [
    (0x1, ['under_voltage']), (0x2, ['frequency_capped']), (0x4, ['throttled']), (0x8, ['soft_temperature_limit']), (0xF0000, []), (0x50005, [
        'under_voltage', 'throttled'])])
def test_flags_by_the_raspberry_pi_documentation(board, bits, now):
    board.set(50.0, throttle_bits=bits)
    reading = ThermalReader(board.root).read()
    assert [name for name in THROTTLE_BITS if reading.flag(name)] == now


def test_sticky_bits_of_sysfs_are_not_taken_for_since_boot(board):
    """Reading the file clears them, so that they mean since the last reader, whoever that was."""
    board.set(50.0, throttle_bits=0xF0000)
    reading = ThermalReader(board.root, vcgencmd=lambda: 'throttled=0x0').read()
    assert [reading.flag_since_boot(name) for name in THROTTLE_BITS] == [None] * 4


@pytest.mark.parametrize(('answer', 'bits', 'since_boot'), [
    ('throttled=0x50000\n', 0x50000, [True, False, True, False]), ('throttled=0x0', 0, [False] * 4),
    (None, None, [None] * 4), ('VCHI initialization failed', None, [None] * 4), ('throttled=', None, [None] * 4),
    ('error=1 error_msg="x"', None, [None] * 4),
])
def test_vcgencmd_knows_since_boot(board, answer, bits, since_boot):
    os.remove(board.root / THROTTLED)
    reading = ThermalReader(board.root, vcgencmd=lambda: answer).read()
    assert reading.throttle_bits == bits
    assert [reading.flag_since_boot(name) for name in THROTTLE_BITS] == since_boot


def test_vcgencmd_of_this_machine_is_not_asked_about_a_fake_board(tmp_path, monkeypatch):
    monkeypatch.setattr(thermal, '_vcgencmd', lambda: pytest.fail('asked'))
    assert ThermalReader(tmp_path).read().throttle_bits is None


@pytest.mark.parametrize('script', ['exit 1', 'echo "Can\'t open device file: /dev/vcio" >&2; exit 255', 'exec tail -f /dev/null'],
                         ids=['fails', 'not in the video group', 'hangs'])
def test_a_vcgencmd_that_fails_is_unknown(tmp_path, monkeypatch, script):
    tool = tmp_path / 'vcgencmd'
    tool.write_text(f'#!/bin/sh\n{script}\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setattr(thermal, 'VCGENCMD_TIMEOUT_S', 0.1)
    assert thermal._vcgencmd() is None


def test_the_cpus_zone_is_found_among_others(tmp_path):
    for number, (kind, millidegrees) in enumerate((('acpitz', 20000), ('gpu-thermal', 30000), ('cpu-thermal', 55000), ('cpu-thermal', 99000))):
        zone = tmp_path / f'sys/class/thermal/thermal_zone{number}'
        zone.mkdir(parents=True)
        (zone / 'type').write_text(kind + '\n')
        (zone / 'temp').write_text(f'{millidegrees}\n')
    assert ThermalReader(tmp_path).read().temperature_c == 55.0


def test_a_directory_where_a_file_should_be(board):
    os.remove(board.root / TEMP)
    (board.root / TEMP).mkdir()
    assert ThermalReader(board.root).read().temperature_c is None


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([TEMP, CLOCK, THROTTLED, 'proc/loadavg', 'proc/meminfo', 'sys/class/thermal/thermal_zone0/type']),
       data=st.one_of(st.binary(max_size=60), st.text(alphabet='0123456789-+.eExXa_ :\nkBMemAvailable', max_size=60).map(str.encode)))
def test_garbage_in_any_file_is_no_error(tmp_path_factory, name, data):
    reading = put(FakeBoard(tmp_path_factory.mktemp('board')), name, data)
    for value in vars(reading).values():
        assert value is None or abs(value) < float('inf')


def bits(value: int | None) -> ThermalReading:
    return ThermalReading(throttle_bits=value)


def test_transitions_are_told_once():
    log = TransitionLog()
    assert log.update(bits(0)) == []
    assert log.update(bits(0x5)) == [('under_voltage', True), ('throttled', True)]
    assert log.update(bits(0x5)) == []
    assert log.update(bits(0x4)) == [('under_voltage', False)]


def test_a_flag_that_is_set_at_the_start_is_told():
    assert TransitionLog().update(bits(0x1)) == [('under_voltage', True)]


def test_unknown_is_no_change():
    log = TransitionLog()
    log.update(bits(0x1))
    assert log.update(bits(None)) == []
    assert log.update(bits(0x1)) == []


def test_this_machine_can_be_read():
    reading = ThermalReader(Path('/')).read()
    assert reading.memory_total_mb is None or reading.memory_total_mb > 100


# The simulated board

def run_board(minutes: float, load: float = 1.0, **cooling) -> list[tuple[float, ThermalReading]]:
    """(s, reading) once a second."""
    clock = Clock(0.0)
    board, readings = SimulatedPi4(load=lambda: load, clock=clock, **cooling), []
    for second in range(round(minutes * 60)):
        clock.now_s = float(second)
        readings.append((clock.now_s, board.read()))
    return readings


def first_throttled(readings) -> float | None:
    return next((second for second, reading in readings if reading.flag('throttled')), None)


def test_a_bare_board_under_load_throttles_after_some_minutes_and_hovers_there():
    readings = run_board(20)
    assert readings[0][1].temperature_c == pytest.approx(52, abs=3), 'as measured when idle'
    assert 120 < first_throttled(readings) < 240, 'as measured'
    assert all(reading.temperature_c < 81 for _, reading in readings)
    assert {reading.clock_mhz for _, reading in readings} == {1500.0, 1000.0}
    for _, reading in readings:
        assert reading.simulated
        assert reading.flag('throttled') == reading.flag('frequency_capped') == (reading.clock_mhz < 1500)
        assert reading.flag('under_voltage') is False


@pytest.mark.parametrize('cooling', [{'heatsink': True}, {'fan': True}, {'heatsink': True, 'fan': True}])
def test_cooling_keeps_it_from_throttling(cooling):
    readings = run_board(60, **cooling)
    assert first_throttled(readings) is None
    assert readings[-1][1].temperature_c < run_board(60, load=0.7)[-1][1].temperature_c


@pytest.mark.parametrize(('most_c', 'cooling'), [(30, {'heatsink': True}), (44, {'fan': True}), (57, {'heatsink': True, 'fan': True})])
def test_how_warm_it_may_be_around_it_as_the_documentation_says(most_c, cooling):
    assert first_throttled(run_board(60, ambient_c=most_c, **cooling)) is None
    assert first_throttled(run_board(60, ambient_c=most_c + 3, **cooling)) is not None


def test_the_last_five_kelvin_take_a_bare_board_some_fifty_seconds():
    readings = run_board(10)
    assert first_throttled(readings) - next(second for second, reading in readings if reading.temperature_c >= 75) == pytest.approx(50, abs=10)


def test_in_an_oven_it_throttles_hard():
    readings = run_board(30, ambient_c=60.0)
    assert readings[-1][1].clock_mhz == 600.0
    assert readings[-1][1].temperature_c > 85


def test_an_idle_board_stays_as_it_is():
    readings = run_board(30, load=0.0)
    assert readings[-1][1].temperature_c == pytest.approx(readings[0][1].temperature_c)


def test_how_often_it_is_asked_makes_no_difference():
    clock, other = Clock(0.0), Clock(0.0)
    often, seldom = SimulatedPi4(clock=clock), SimulatedPi4(clock=other)
    for step in range(1, 1001):
        clock.now_s = step / 10
        often.read()
    other.now_s = 100.0
    assert seldom.read().temperature_c == pytest.approx(often.read().temperature_c, abs=1e-6)


def test_the_load_of_this_machine_is_a_share(tmp_path):
    (tmp_path / 'proc').mkdir()
    stat, load = tmp_path / 'proc/stat', HostLoad(tmp_path)
    for line, share in (('cpu  100 0 100 700 100 0 0 0 0 0\n', 0.2), ('cpu  150 0 150 800 100 0 0 0 0 0\n', 0.5), ('garbage', 0.0)):
        stat.write_text(line)
        assert load() == pytest.approx(share)
    assert 0 <= HostLoad()() <= 1
