"""The actuator over topics and services: red switches on, any doubt off."""

import time

import pytest
from actuator_rig import Rig
from bench import wait_for
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import Bool
from vision_msgs.msg import LabelInfo, VisionClass

from edge_resnet.exceptions import BackendError
from edge_resnet.hardware.actuators import HeldOff
from edge_resnet.nodes.actuator_node import ActuatorNode, default_state_file
from edge_resnet.nodes.base import LATCHED_QOS


def test_red_is_on_green_is_off_and_the_topic_says_so(bench, tmp_path):
    rig = Rig(bench, tmp_path)
    assert not rig.on
    rig.see('red', times=1)
    assert not rig.on, 'debounced'
    rig.see('red', times=1)
    assert rig.on
    rig.see('green', times=1)
    assert not rig.on
    wait_for(lambda: [state.data for state in rig.states] == [False, True, False], 'three states')


@pytest.mark.parametrize(('score', 'age_s'), [(float('nan'), 0), (float('inf'), 0), (1.5, 0), (-0.1, 0), (0.95, 3600), (0.95, -3600), (0.95, 2.0)])
def test_any_doubt_is_off(bench, tmp_path, score, age_s):
    rig = Rig(bench, tmp_path)
    rig.see()
    assert rig.on
    rig.see(score=score, age_s=age_s)
    assert not rig.on
    rig.see(score=score, age_s=age_s, times=5)
    assert not rig.on


def test_without_a_clock_and_a_stamp_it_is_never_on(bench, tmp_path):
    rig = Rig(bench, tmp_path, use_sim_time=True)  # and no /clock: it is 0 s, as old as a stamp of zero
    for _ in range(5):
        rig.see(age_s=None)
    assert not rig.on


def test_a_target_class_that_the_model_does_not_know_is_told(bench, tmp_path):
    rig, newest = Rig(bench, tmp_path, target_class='stop'), bench.diagnostics('actuator')
    labels = bench.publisher(LabelInfo, 'label_info', LATCHED_QOS)
    wait_for(lambda: newest().get('', '').startswith('0'), 'a diagnostic without labels')
    labels.publish(LabelInfo(class_map=[VisionClass(class_name=f'sign {n}') for n in range(8)]))
    told = "2 target_class is 'stop', the model knows sign 0, sign 1, sign 2, sign 3, sign 4 and 3 more"
    wait_for(lambda: newest()[''].startswith(told), 'an ERROR in the diagnostics')
    labels.publish(LabelInfo(class_map=[VisionClass(class_name='stop')]))
    wait_for(lambda: newest()[''].startswith('0'), 'a good diagnostic with the right model')
    rig.see('stop')
    assert rig.on


def test_each_domain_and_namespace_has_a_state_file_of_its_own(monkeypatch):
    files = set()
    for domain in ('', '0', '1'):
        monkeypatch.setenv('ROS_DOMAIN_ID', domain)
        files |= {default_state_file('/actuator'), default_state_file('/robot1/actuator')}
    assert len(files) == 4, 'no domain is domain 0'


def test_off_when_results_stop(bench, tmp_path):
    rig = Rig(bench, tmp_path, max_result_age_s=0.3)
    rig.see()
    assert rig.on
    wait_for(lambda: not rig.on, 'OFF by the watchdog', 3.0)


def test_emergency_stop_latches_until_armed(bench, tmp_path):
    rig, newest = Rig(bench, tmp_path), bench.diagnostics('actuator')
    rig.see()
    assert rig.on
    stop = bench.publisher(Bool, 'emergency_stop', qos_profile_sensor_data)
    stop.publish(Bool(data=True))
    wait_for(lambda: not rig.on, 'OFF', 3.0)
    bench.probe.destroy_publisher(stop)
    rig.see(times=5)
    assert not rig.on, 'latched though its publisher is gone'
    wait_for(lambda: newest().get('', '').startswith('2 emergency stop'), 'an ERROR in the diagnostics')
    assert rig.call(True).success
    assert not rig.on
    rig.see()
    assert rig.on


def test_emergency_stop_is_heard_and_kept_in_every_state(bench, tmp_path):
    rig = Rig(bench, tmp_path)
    stop = bench.publisher(Bool, 'emergency_stop', qos_profile_sensor_data)
    rig.node.trigger_deactivate()
    rig.node.trigger_cleanup()
    wait_for(lambda: stop.get_subscription_count(), 'the subscription')
    stop.publish(Bool(data=True))
    wait_for(lambda: rig.node._gate.stopped, 'the stop')
    refused = rig.call(True)
    assert (refused.success, refused.message) == (False, 'not configured')
    rig.node.trigger_configure()
    rig.node.trigger_activate()
    rig.see('red', times=5)
    assert not rig.on
    assert rig.call(True).success
    rig.see('red', times=5)
    assert rig.on


def test_what_was_stopped_or_disarmed_by_hand_stays_so_in_another_process(bench, tmp_path):
    rig = Rig(bench, tmp_path)
    stop = bench.publisher(Bool, 'emergency_stop', qos_profile_sensor_data)
    for reason, hold in (('emergency stop', lambda: stop.publish(Bool(data=True))), ('not armed', lambda: rig.call(False))):
        rig.see()
        assert rig.on
        hold()
        wait_for(lambda: not rig.on, 'OFF')
        wait_for(lambda: HeldOff(rig.file).read(), 'that it is kept')
        another = bench.make(ActuatorNode, state_file=str(rig.file))  # as one that is started after kill -9
        another.trigger_configure()
        assert another._gate.decision.reason == reason
        another.destroy_node()
        assert rig.call(True).success
        assert HeldOff(rig.file).read() == HeldOff.NO


def test_a_stop_that_is_published_again_and_again_is_kept_once(bench, tmp_path, monkeypatch):
    rig, kept = Rig(bench, tmp_path), []
    monkeypatch.setattr(rig.node, '_keep', kept.append)
    stop, stops = bench.publisher(Bool, 'emergency_stop', qos_profile_sensor_data), []
    emergency_stop = rig.node._gate.emergency_stop
    monkeypatch.setattr(rig.node._gate, 'emergency_stop', lambda: stops.append(1) or emergency_stop())
    wait_for(lambda: stop.publish(Bool(data=True)) or len(stops) > 5, 'stops')
    assert kept == [HeldOff.STOPPED]


def test_a_stop_is_kept_though_the_backend_fails(bench, tmp_path, monkeypatch):
    rig = Rig(bench, tmp_path)

    def fail(on):
        raise BackendError('the pin is gone')

    monkeypatch.setattr(rig.node._actuator, 'write', fail)
    bench.publisher(Bool, 'emergency_stop', qos_profile_sensor_data).publish(Bool(data=True))
    wait_for(lambda: HeldOff(rig.file).read() == HeldOff.STOPPED, 'that it is kept')


def test_what_can_not_be_kept_is_an_error(bench, tmp_path):
    rig, newest = Rig(bench, tmp_path), bench.diagnostics('actuator')
    HeldOff(rig.file).path.mkdir()
    rig.call(False)
    wait_for(lambda: newest().get('', '').startswith('2 ') and 'after a crash the actuator will not know' in newest()[''], 'an ERROR')
    HeldOff(rig.file).path.rmdir()
    rig.call(False)
    wait_for(lambda: newest().get('', '').startswith('1 not armed'), 'no ERROR any more')


def test_disarmed_is_off_from_the_start(bench, tmp_path):
    rig = Rig(bench, tmp_path, require_arm=True)
    rig.see(times=5)
    assert not rig.on
    rig.call(True)
    rig.see()
    assert rig.on
    rig.call(False)
    assert not rig.on


@pytest.mark.parametrize('end', ['trigger_deactivate', 'make_safe', 'destroy_node'])
def test_off_however_it_ends(bench, tmp_path, end):
    rig = Rig(bench, tmp_path)
    rig.see()
    assert rig.on
    if end == 'destroy_node':
        rig.node.trigger_shutdown()
    else:
        getattr(rig.node, end)()
    assert not rig.on


def test_off_after_activation_again(bench, tmp_path):
    rig = Rig(bench, tmp_path)
    rig.see()
    rig.node.trigger_deactivate()
    rig.node.trigger_activate()
    assert not rig.on
    wait_for(lambda: bench.probe.count_subscribers('classification'), 'the subscription')
    time.sleep(0.2)
    rig.see()
    assert rig.on


def test_unwritable_state_file_refuses_configure_by_name(bench, tmp_path):
    node = bench.make(ActuatorNode, state_file=str(tmp_path))
    node.trigger_configure()
    assert not node.is_configured()
    assert str(tmp_path) in node.failure
    node.destroy_node()
