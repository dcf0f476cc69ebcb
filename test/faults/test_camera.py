"""Cameras that are not there, go away, hang or freeze: a real camera node on a camera that does as it is told."""

from __future__ import annotations

import time

import numpy as np
import pytest
from bench import wait_for
from processes import wait_until
from rcl_interfaces.srv import GetParameters
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from test_messages import Log

from edge_resnet.hardware.cameras import Frame
from edge_resnet.hardware.grabber import FakeCamera
from edge_resnet.nodes import camera_node
from edge_resnet.nodes.camera_node import CameraNode


class Changing(FakeCamera):
    """No two frames alike, unless ``frozen``."""

    frozen = False

    def read(self) -> Frame | None:
        if not self.frozen:
            self.frame = Frame(np.random.default_rng().integers(0, 255, (48, 64, 3), np.uint8))
        return super().read()


@pytest.fixture
def camera(bench, monkeypatch):
    """(fake, node, frames heard, newest diagnostics)"""
    fake = Changing(Frame(np.zeros((48, 64, 3), np.uint8)))
    monkeypatch.setattr(camera_node, 'open_camera', lambda config, wanted: fake.open())
    newest, images = bench.diagnostics('camera'), bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    node = bench.start(CameraNode, source='synthetic', framerate=30.0, image_width=64, image_height=48)
    wait_for(lambda: images, 'a frame')
    yield fake, node, images, newest
    fake.release.set()


@pytest.mark.row(6)
def test_unplugged_and_back(row, camera):
    fake, node, images, _ = camera
    log, start = Log(node), time.monotonic()
    for attempt in range(row.times(50, 3)):
        fake.failing = True
        time.sleep(4.0 if attempt == 1 else 0.1 + 0.02 * attempt)  # once long enough for the longest delay
        images.clear()
        fake.failing = False
        back = time.monotonic()
        wait_for(lambda: images, 'frames')
        row.trial(seconds=time.monotonic() - back)
    assert len(log.lines) <= 1 + (time.monotonic() - start) / 4, log.lines
    assert fake.closed >= fake.opened - 1, 'nothing was left open'
    row.note = f'{len(log.lines)} log lines'


@pytest.mark.row(7)
def test_a_read_that_hangs(row, camera, bench):
    fake, _, images, newest = camera
    client = bench.probe.create_client(GetParameters, '/camera/get_parameters')
    for _ in range(row.times(5, 1)):
        wait_for(lambda: newest().get('', '').startswith('0'), 'a good diagnostic')
        fake.release.clear()
        fake.hanging.set()
        start = time.monotonic()
        wait_for(lambda: newest()[''].startswith('2 '), 'an ERROR')
        row.trial(seconds=time.monotonic() - start)
        answer = client.call_async(GetParameters.Request(names=['source']))
        wait_for(answer.done, 'an answer of the node')
        fake.hanging.clear()
        images.clear()
        wait_for(lambda: images, 'frames of the source that was opened anew')
        fake.release.set()


@pytest.mark.row(9)
def test_a_picture_that_does_not_change(row, camera):
    fake, _, _, newest = camera
    for _ in range(row.times(5, 1)):
        wait_for(lambda: newest().get('', '').startswith('0'), 'a good diagnostic')
        fake.frozen = True
        start = time.monotonic()
        wait_for(lambda: newest()[''].startswith('1 the picture has not changed'), 'a WARN')
        row.trial(seconds=time.monotonic() - start)
        fake.frozen = False


@pytest.mark.row(8)
@pytest.mark.parametrize('source', ['/dev/video97', '/no/such/folder', '/no/such.mp4'])
def test_absent_at_start(row, processes, bench, source):
    newest = bench.diagnostics('camera')
    process = processes.start('camera_node', source=source)
    wait_until(lambda: newest().get('', '').startswith('2') and source in newest()[''], 'an ERROR that names it')
    time.sleep(row.times(10, 2))
    seconds = row.times(10, 2)
    lines = [line for line in processes.output('camera_node').splitlines() if source in line]
    assert 1 <= len(lines) <= 2 + seconds, lines
    row.trial(process.poll() is None)
