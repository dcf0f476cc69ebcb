"""The thermal monitor on a pretended board."""

from bench import wait_for
from diagnostic_msgs.msg import DiagnosticArray
from fake_board import FakeBoard
from sensor_msgs.msg import Temperature

from edge_resnet.hardware.thermal import ThermalReading
from edge_resnet.nodes.thermal_monitor_node import ThermalMonitorNode, reading_of


def test_temperature_and_throttling_are_published_and_each_change_logged_once(bench, tmp_path):
    board = FakeBoard(tmp_path, 50.0)
    temperatures, newest = bench.listen(Temperature, 'cpu_temperature'), bench.diagnostics('thermal_monitor')
    node = bench.start(ThermalMonitorNode, sysfs_root=str(tmp_path), period_s=0.1)
    wait_for(lambda: temperatures, 'a temperature')
    assert temperatures[0].temperature == 50.0
    wait_for(lambda: newest().get('') == '0 50.0 C', 'an OK diagnostic')
    assert (newest()['Clock (MHz)'], newest()['Throttled'], newest()['Throttled since boot']) == ('1500', '0', 'unknown')
    board.set(82.5, 1000.0, 0b0100)
    wait_for(lambda: newest().get('', '').startswith('2 82.5 C; throttled'), 'an ERROR diagnostic')
    assert node.counts['transitions'] == 1
    board.set(70.0, 1500.0, 0)
    wait_for(lambda: newest().get('') == '0 70.0 C', 'an OK diagnostic')
    assert node.counts['transitions'] == 2
    assert newest()['Last throttle transition'].startswith('throttled ended at 70.0 C')
    assert newest()['Errors'] == '0'


def test_what_cannot_be_read_is_unknown_and_a_warning(bench, tmp_path):
    temperatures, newest = bench.listen(Temperature, 'cpu_temperature'), bench.diagnostics('thermal_monitor')
    bench.start(ThermalMonitorNode, sysfs_root=str(tmp_path / 'nothing'), period_s=0.1)
    wait_for(lambda: newest().get('') == '1 temperature unknown', 'a WARN diagnostic')
    assert {newest()[key] for key in ('Temperature (C)', 'Clock (MHz)', 'Throttled', 'Under voltage', 'Memory available (MB)')} == {'unknown'}
    assert not temperatures


def test_a_simulated_board_says_so_wherever_its_numbers_appear(bench):
    temperatures, newest, arrays = bench.listen(Temperature, 'cpu_temperature'), bench.diagnostics('thermal_monitor'), bench.listen(
        DiagnosticArray, '/diagnostics')
    bench.start(ThermalMonitorNode, board='simulated', load=1.0, ambient_c=60.0, period_s=0.1)
    wait_for(lambda: newest().get('Simulated') == '1', 'its diagnostics')
    assert temperatures[0].header.frame_id == 'cpu_simulated'
    assert newest()[''].startswith('2 simulated: 87.')
    assert arrays[-1].status[0].hardware_id == 'simulated Raspberry Pi 4'
    wait_for(lambda: newest()['Last throttle transition'].startswith('throttled began at 87.'), 'the transition')
    reading = reading_of(newest())
    assert (reading.clock_mhz, reading.simulated, reading.flag('throttled'), reading.flag('under_voltage')) == (600.0, True, True, False)
    assert reading_of({}) == ThermalReading()
