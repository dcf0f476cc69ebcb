"""capture_calibration on a live topic, as a process of its own."""

import json
import signal
import subprocess
import sys
import time
from array import array

import cv2
import numpy as np
import pytest
from bench import image_bytes, wait_for
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from tiny_model import patch, write_bundle

from edge_resnet.conversions import Stamp
from edge_resnet.pipeline.preprocessing import Preprocessing, resize
from edge_resnet.tools.dataset import images, read_rgb

IMPATIENT = """
import sys
from edge_resnet.tools import capture_calibration

if 'nobody' in sys.argv[-1]:
    capture_calibration.PATIENCE_S = 1.0
sys.exit(capture_calibration.main())
"""


def scene(number):
    return patch('red', np.random.default_rng(number), 64)


@pytest.fixture
def capture(tmp_path, root):
    """Start the command with the given arguments more; ended after the test."""
    started = []

    def capture(*given):
        command = [sys.executable, '-c', IMPATIENT, '--model', str(tmp_path / 'bundle'), '--out', str(tmp_path / 'frames'), *given]
        started.append(subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True))
        return started[-1]

    write_bundle(tmp_path / 'bundle')
    yield capture
    for process in started:
        process.kill()
        process.wait()


def publish_until(publisher, message, done):
    """Publish ``message`` of 0, 1, 2, ... until ``done``; how many."""
    number, deadline = 0, time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        publisher.publish(message(number))
        number += 1
        time.sleep(0.05)
    return number


def raw(number):
    return image_bytes(number, scene(number)[..., ::-1], 'bgr8')


def compressed(number):
    message = CompressedImage(format='png', data=array('B', cv2.imencode('.png', scene(number)[..., ::-1])[1].tobytes()))
    message.header.stamp.sec = Stamp(number).sec
    return message


@pytest.mark.parametrize(('kind', 'topic', 'message'), [(Image, '/image_raw', raw), (CompressedImage, '/image_raw/compressed', compressed)])
@pytest.mark.parametrize('qos', ['reliable', 'best effort'])
def test_frames_of_a_running_camera_are_recorded(bench, capture, tmp_path, kind, topic, message, qos):
    publisher = bench.probe.create_publisher(kind, topic, qos_profile_sensor_data if qos == 'best effort' else 1)
    process = capture('--topic', topic, '--count', '5', '--interval-s', '0.1')
    sent = publish_until(publisher, message, lambda: process.poll() is not None)
    said = process.stderr.read()
    assert process.returncode == 0, said
    assert '5 of 5 frames' in said
    manifest = json.loads((tmp_path / 'frames' / 'manifest.json').read_text())
    assert manifest['source'] == {'kind': 'topic', 'name': topic, 'clock': 'unix'}
    assert abs(manifest['time_span']['last_s'] - time.time()) < 60
    known = {resize(scene(number), Preprocessing(32, 32)).tobytes() for number in range(sent)}
    assert all(read_rgb(path).tobytes() in known for path in images(tmp_path / 'frames')), "the pipeline's own preprocessing, RGB"


def test_a_remapped_topic(bench, capture, tmp_path):
    publisher = bench.probe.create_publisher(Image, '/front/image', 1)
    process = capture('--topic', 'image_raw', '--count', '2', '--interval-s', '0', '--ros-args', '-r', 'image_raw:=/front/image')
    publish_until(publisher, raw, lambda: process.poll() is not None)
    assert process.returncode == 0


def test_ctrl_c_leaves_whole_frames_and_their_manifest(bench, capture, tmp_path):
    publisher = bench.probe.create_publisher(Image, '/image_raw', 1)
    process = capture('--topic', '/image_raw', '--count', '1000', '--interval-s', '0')
    publish_until(publisher, raw, lambda: (tmp_path / 'frames' / '000002.png').exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr.read().splitlines()[-1].startswith('capture_calibration: interrupted')
    manifest = json.loads((tmp_path / 'frames' / 'manifest.json').read_text())
    assert sorted(path.name for path in (tmp_path / 'frames').iterdir()) == [*sorted(manifest['frames']), 'manifest.json']


def test_the_time_given_ends_it_with_what_there_is(bench, capture):
    publisher = bench.probe.create_publisher(Image, '/image_raw', 1)
    process = capture('--topic', '/image_raw', '--count', '1000', '--seconds', '2')
    publish_until(publisher, lambda number: raw(0), lambda: process.poll() is not None)
    assert process.returncode == 1
    assert 'ended with 1 of 1000 frames, passed over: ' in process.stderr.read()


def test_a_topic_of_another_type_is_refused_by_name(bench, capture):
    bench.probe.create_publisher(String, '/image_raw', 1)
    process = capture('--topic', '/image_raw')
    wait_for(lambda: process.poll() is not None, 'the end')
    assert process.returncode == 1
    assert process.stderr.read() == ('capture_calibration: /image_raw: its type is std_msgs/msg/String, expected '
                                     'sensor_msgs/msg/Image or sensor_msgs/msg/CompressedImage\n')


def test_a_topic_that_nobody_publishes_is_given_up(capture, tmp_path):
    process = capture('--topic', '/nobody')
    assert process.wait(30) == 1
    assert process.stderr.read() == 'capture_calibration: /nobody: nobody published it for 1 s\n'
    assert json.loads((tmp_path / 'frames' / 'manifest.json').read_text())['count'] == 0
