"""The faults that the pipeline has to survive, each with its target. ``python test/faults/rows.py`` lists the tests that try them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``limit_s``: the longest time that the target allows. ``also``: tests elsewhere that belong to it, by the beginning of their ids."""

    text: str
    target: str
    limit_s: float | None = None
    also: tuple[str, ...] = ()


def tests(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f'test/{file}::{name}' for name in names)


ROWS = {
    1: Fault('malformed Image, called directly', 'no crash', None, tests(
        'unit/test_conversions.py', 'test_any_image_is_refused_or_right', 'test_any_damaged_bytes_are_refused_or_right')),
    2: Fault('malformed Image over DDS', 'next good frame < 1 s', 1.0),
    3: Fault('mono16, yuv422, bayer, padded, big-endian', 'converted right or refused', None, tests(
        'unit/test_conversions.py', 'test_colour', 'test_mono8', 'test_mono16_keeps_the_high_byte', 'test_colour_of_16_bits',
        'test_yuv422_in_both_orders', 'test_nv12_and_nv21', 'test_bayer', 'test_big_endian_cdr', 'test_the_smallest_image_of_each_encoding',
        'test_a_wrong_field_is_named')),
    4: Fault('an image of 100 MB', 'refused, RSS within 20 MB'),
    5: Fault('NaN, infinite or out-of-range scores', '0 ON'),
    6: Fault('camera unplugged and back', 'resumes < 3 s', 3.0),
    7: Fault('capture call hangs', 'ERROR < 2 s', 2.0, tests('unit/test_grabber.py', 'test_a_hanging_read_is_left_behind', 'test_a_hang_is_told')),
    8: Fault('camera or file absent at start', 'named, at most 1 log/s', None, tests(
        'nodes/test_frames.py', 'test_camera_without_its_source_waits_says_so_and_goes_on_when_it_comes')),
    9: Fault('frozen, identical frames', 'WARN < 2 s', 2.0),
    10: Fault('kill -9 of each node under launch', 'flow back < 5 s', 5.0),
    11: Fault('kill -9 of the actuator while ON', 'OFF < 200 ms', 0.2),
    12: Fault('SIGSTOP of inference', 'OFF at max age + 100 ms', 0.1),
    13: Fault('SIGSTOP of the actuator', 'OFF < 500 ms', 0.5),
    14: Fault('SIGINT and SIGTERM of each node', 'exit 0, OFF < 2 s', 2.0),
    15: Fault('SIGTERM or SIGKILL of the launcher', 'no orphan, OFF < 5 s', 5.0, tests(
        'integration/test_launch.py', 'test_respawn_and_an_abrupt_end_of_the_launcher', 'test_sigterm_leaves_nothing_behind')),
    16: Fault('a node that dies at every start', 'at most 5 in 60 s, ERROR', None, tests(
        'unit/test_deployment.py', 'test_a_node_that_dies_at_every_start_is_given_up')),
    17: Fault('a callback raises, or hangs', 'counted, throttled, lives'),
    18: Fault('stamps of zero, old, an hour ahead', '0 ON, clock fault reported'),
    19: Fault('clock jumps an hour either way', 'OFF at limit + 100 ms', 0.1),
    20: Fault('/clock pauses or loops in replay', 'OFF, no negative latency'),
    21: Fault('incompatible QoS on a topic', 'both ends named < 2 s', 2.0),
    22: Fault('inference 5 times slower than the camera', 'age < 2 periods', None, tests(
        'nodes/test_frames.py', 'test_a_slow_model_gets_the_freshest_frame_and_every_drop_is_counted')),
    23: Fault('truncated or bit-flipped .tflite', '0 parent crashes'),
    24: Fault('a model that crashes the runtime', 'named, only the child dies', None, tests(
        'unit/test_probe.py', 'test_a_model_that_kills_the_runtime_kills_only_the_child', 'test_a_crash_is_told_by_its_signal')),
    25: Fault('wrong shape, dtype, quantisation, labels', 'field, value, expected', None, (*tests(
        'unit/test_classifier.py', 'test_a_card_for_another_model', 'test_a_model_with_two_outputs'), *tests(
        'unit/test_bundle.py', 'test_a_bare_model_of_another_shape', 'test_a_card_that_is_wrong_names_the_field',
        'test_labels_must_tell_classes_apart'))),
    26: Fault('inference from 8 threads', '8 x 1,000 as from one', None, tests('unit/test_classifier.py', 'test_eight_threads_get_what_one_gets')),
    27: Fault('e-stop, then its publisher dies', 'OFF < 100 ms, latched', 0.1),
    28: Fault('scores flapping around the threshold', 'toggles bounded', None, tests(
        'unit/test_decision.py', 'test_a_hundred_thousand_flapping_steps', 'test_flapping_scores_never_toggle_faster')),
    29: Fault('read-only parameter; ../ or a link out', 'refused', None, (*tests(
        'unit/test_bundle.py', 'test_no_way_up', 'test_a_link_out_of_the_bundle_is_refused'), *tests(
        'nodes/test_parameters.py', 'test_when_a_parameter_may_change'))),
    30: Fault('no keys under SROS2 Enforce', 'nothing accepted'),
    31: Fault('dashboard listening', 'loopback, no GET that acts, 404', None, (
        'test/unit/test_dashboard_server.py', 'test/nodes/test_dashboard.py')),
    32: Fault('leftover /dev/shm files after kills', 'talks < 10 s', 10.0),
    33: Fault('thermal files missing, garbage, 85 C', 'unknown, ERROR, told once', None, (
        'test/unit/test_thermal.py', 'test/nodes/test_thermal_monitor.py')),
    34: Fault('soak', 'RSS < 5 MB a node'),
    35: Fault('every gate state x every fault', 'any fault is OFF', None, tests('unit/test_decision.py', 'test_in_every_state_every_fault_is_off')),
    36: Fault('disk full or no folder while recording', 'goes on, loss reported', None, (
        'test/unit/test_recording.py', *tests('nodes/test_latency_monitor.py', 'test_a_recording_that_fails_is_reported_and_the_figures_go_on'))),
}


if __name__ == '__main__':
    print('test/faults', *sorted({test.split('::')[0] for row in ROWS.values() for test in row.also if test.split('::')[0].endswith('.py')}))
