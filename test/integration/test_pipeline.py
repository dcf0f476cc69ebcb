"""The five executables as processes over DDS, and composed: they play the samples through the real model."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from processes import wait_until
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import Image, TimeReference
from std_msgs.msg import Bool
from vision_msgs.msg import Classification

from edge_resnet.conversions import stamp_ns
from edge_resnet.nodes.base import LATCHED_QOS
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.pipeline.bundle import load_bundle
from edge_resnet.pipeline.classifier import Classifier

WINDOWS = 5


def hold_time_s():
    """How long to show an image: eight inferences at the speed that this machine has now, 1 to 4 s."""
    classifier = Classifier(load_bundle('resnet50_traffic_lights'))
    classifier.warm_up()
    times = []
    for _ in range(5):
        start = time.monotonic()
        classifier.classify(np.zeros((224, 224, 3), np.uint8))
        times.append(time.monotonic() - start)
    return min(max(1.0, 8 * float(np.median(times))), 4.0)


def start_pipeline(processes, composed, state_file, hold_s):
    parameters = {
        'camera_node': {'framerate': 10.0, 'image_hold_s': hold_s, 'loop': 'false'}, 'preprocess_node': {}, 'inference_node': {},
        'actuator_node': {'state_file': state_file, 'refractory_s': 0.1, 'max_result_age_s': hold_s}, 'thermal_monitor_node': {}}
    if composed:
        processes.start('pipeline', **{key: value for own in parameters.values() for key, value in own.items()})
        return ['pipeline']
    for name in reversed(parameters):  # the camera last, so that its first image is seen
        processes.start(name, **parameters[name])
        if name != 'camera_node':
            time.sleep(0.2)
    return list(parameters)


@pytest.mark.parametrize('composed', [False, True], ids=['five processes', 'one process'])
def test_samples_are_labelled_right_and_the_brake_follows(processes, bench, root, tmp_path, composed):
    expected = [row['label'] for row in csv.DictReader((root / 'samples' / 'labels.csv').open())]
    truths, results = bench.listen(Classification, 'ground_truth'), bench.listen(Classification, 'classification', FRAME_QOS)
    images, stages = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data), bench.listen(TimeReference, 'stage_times')
    states = []
    bench.probe.create_subscription(Bool, 'actuator/state', lambda message: states.append((time.time_ns(), message.data)), LATCHED_QOS)
    newest = {name: bench.diagnostics(name) for name in ('camera', 'preprocess', 'inference', 'actuator')}
    hold_s = hold_time_s()
    names = start_pipeline(processes, composed, tmp_path / 'state', hold_s)

    wait_until(lambda: len({message.results[0].class_id for message in truths}) == 3, 'all three labels')
    wait_until(lambda: 'came to its end' in newest['camera']().get('', ''), 'the end of the samples', 60.0 + 25 * hold_s)
    time.sleep(2 * hold_s)
    truth = {stamp_ns(message.header): message.results[0].class_id for message in truths}
    assert Counter(truth.values()).keys() == set(expected)

    judged = [(truth[stamp_ns(message.header)], message.results[0].class_id) for message in results if stamp_ns(message.header) in truth]
    right = sum(a == b for a, b in judged)
    assert len(judged) >= 2 * len(expected), f'{len(judged)} results for {len(truth)} frames'
    assert right >= 0.95 * len(judged), f'{right} of {len(judged)} right: {Counter(pair for pair in judged if pair[0] != pair[1])}'

    # Stamps and frame ids are the camera's, in every message on the way.
    captured = {stamp_ns(record.header) for record in stages if record.source == 'captured'}
    later = {stamp_ns(message.header) for message in [*results, *images, *stages]}
    assert {stamp for stamp in later if stamp >= min(captured)} <= captured  # those before were sent before this test heard the camera
    assert {message.header.frame_id for message in [*results, *images]} == {'camera'}

    # The brake at the end of each image that had the three results which debouncing takes, and a spare one, 0.2 s before it ended: the state is of
    # when it was heard here.
    ends = [(earlier, truth[earlier]) for earlier, later in pairwise(sorted(truth)) if truth[later] != truth[earlier]]
    commanded = [(stamp_ns(record.header), Time.from_msg(record.time_ref).nanoseconds) for record in stages if record.source == 'actuator_commanded']
    enough = [(last, label) for (first, _), (last, label) in pairwise([(0, ''), *ends])
              if sum(first < stamp <= last and done <= last - 200_000_000 for stamp, done in commanded) >= 3]
    wrong = [(label, state) for stamp, label in enough
             if (state := ([False] + [on for at, on in states if at <= stamp])[-1]) != (label == 'red')]
    assert len(enough) >= 0.3 * len(ends) >= 3, f'{len(enough)} of {len(ends)} images had three results: {len(commanded)} in all'
    assert len(wrong) <= 0.05 * len(ends), f'brake wrong at the end of {wrong}'
    wait_until(lambda: (tmp_path / 'state').read_text() == '0\n', 'OFF after the last image')

    # Every frame is accounted for: at each hop what was received, superseded and lost adds up to what was sent.
    sent = int(newest['camera']()['Published'])
    hop = {key: int(newest['preprocess']()[f'Input {key}']) for key in ('received', 'superseded', 'lost in transport')}
    assert sum(hop.values()) == pytest.approx(sent, abs=0.02 * sent + 2), f'{sent} sent, {hop}'
    assert int(newest['inference']()['Input received']) > 0

    codes = {name: processes.end(name, number) for name, number in zip(names, [signal.SIGINT, signal.SIGTERM] * 3, strict=False)}
    assert set(codes.values()) == {0}, codes
    assert not [processes.output(name) for name in names if 'Traceback' in processes.output(name)]
    ages = [Time.from_msg(record.time_ref).nanoseconds - stamp_ns(record.header) for record in stages if record.source == 'actuator_commanded']
    assert min(ages) > 0
    assert np.median(ages) < 1e9


@pytest.mark.parametrize('profile', [True, False], ids=['shipped profile', 'started by hand'])
def test_frames_get_through(processes, bench, profile):
    newest = bench.diagnostics('preprocess')
    bench.listen(Image, 'image_preprocessed')  # somebody who wants all frames
    processes.start('preprocess_node', profile=profile)
    wait_until(lambda: bench.probe.count_subscribers('image_raw'), 'preprocess')
    processes.start('camera_node', profile=profile, source='synthetic')
    best = 0.0
    for _ in range(WINDOWS):  # a machine that is busy with something else for a while may pass over a frame, a bad transport always does
        before = counted(newest)
        wait_until(lambda before=before: sum(counted(newest)) - sum(before) >= 100, 'another 100 frames', 90.0)
        received, superseded, lost = (now - then for now, then in zip(counted(newest), before, strict=True))
        best = max(best, received / (received + superseded + lost))
        if best >= 0.99:
            break
    assert best >= 0.99, f'at best {best:.1%} of 100 frames got through'
    assert 'XML' not in processes.output('camera_node'), 'Fast DDS complains of the profile'


def counted(newest):
    """Frames received, superseded and lost so far, as a node's diagnostics say."""
    return [int(newest().get(f'Input {key}', 0)) for key in ('received', 'superseded', 'lost in transport')]


@pytest.mark.parametrize(('node', 'parameters', 'message'), [
    ('inference_node', {'model': 'no_such_model'}, "no models named 'no_such_model'; installed:"),
    ('inference_node', {'model': '/no/such/folder'}, "model '/no/such/folder': there is no such bundle folder or .tflite file"),
    ('inference_node', {'model': '{spoiled}'}, 'model.tflite: sha256 is'),
    ('inference_node', {'model': '{few_labels}'}, 'few_labels: 3 outputs, but 2 labels and label_offset 0'),
    ('preprocess_node', {'model': '/no/such/folder'}, 'there is no such bundle folder'),
    ('preprocess_node', {'image_transport': 'theora'}, "image_transport is 'theora', expected one of raw, compressed"),
    ('camera_node', {'framerate': '0.0'}, 'framerate is 0.0, expected 0.1 to 240.0'),
    ('camera_node', {'camera_info_url': 'file:///no/such.yaml'}, 'camera_info_url file:///no/such.yaml: No such file or directory'),
    ('actuator_node', {'on_threshold': 0.2}, 'off_threshold is 0.5 and on_threshold 0.2, expected 0 < off <= on <= 1'),
    ('thermal_monitor_node', {'period_s': 'often'}, "period_s is 'often', expected a number"),
])
def test_bad_configuration_is_one_line_that_names_it(processes, root, tmp_path, node, parameters, message):
    import shutil

    for name in ('spoiled', 'few_labels'):
        shutil.copytree(root / 'models' / 'resnet50_traffic_lights', tmp_path / name)
    with (tmp_path / 'spoiled' / 'model.tflite').open('r+b') as file:
        file.seek(100_000)
        file.write(b'spoiled')
    (tmp_path / 'few_labels' / 'labels.txt').write_text('green\nred\n')
    given = {key: str(value).format(spoiled=tmp_path / 'spoiled', few_labels=tmp_path / 'few_labels') for key, value in parameters.items()}
    processes.start(node, **given)
    assert processes.wait(node) == 1
    lines = [line for line in processes.output(node).splitlines() if not line.startswith('INFO: Created')]
    assert len(lines) == 1, lines
    assert message in lines[0]


def test_ctrl_c_while_the_nodes_of_the_demo_start_is_quiet():
    demo = subprocess.Popen([sys.executable, '-m', 'edge_resnet.tools.demo', 'source:=synthetic'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)
    assert 'Ctrl-C ends it' in demo.stdout.readline()
    time.sleep(0.3)  # they import by now
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    text, _ = demo.communicate(timeout=60)
    assert (demo.returncode, 'Traceback' in text) == (0, False), text


def test_demo_scores_itself_and_leaves_nothing_behind(processes, monkeypatch):
    monkeypatch.delenv('HOME')  # where ROS would keep its logs
    processes.start('demo', 'composed:=true', 'namespace:=robot1', module='edge_resnet.tools.demo')
    wait_until(lambda: processes.output('demo').count('% right') > 5, 'a live line')
    assert processes.end('demo', signal.SIGINT) == 0
    text = processes.output('demo')
    assert 'first classification: ' in text
    assert 'labels right on' in text
    assert 'killed' not in text
