"""Where frames come from: folders, videos, the synthetic pattern, and devices behind a stand-in for cv2.VideoCapture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_resnet.exceptions import FrameError, ParameterError, SourceError
from edge_resnet.hardware import cameras
from edge_resnet.hardware.cameras import (
    SKIPPED,
    CameraConfig,
    FolderSource,
    SyntheticSource,
    VideoSource,
    check_camera_config,
    open_camera,
    read_labels,
)

SIZE = {'width': 32, 'height': 24}


def write(path: Path, grey: int, shape: tuple[int, int] = (24, 32)) -> Path:
    cv2.imwrite(str(path), np.full((*shape, 3), grey, np.uint8))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, grey in (('b.png', 20), ('a.png', 10), ('c.PNG', 30)):
        write(tmp_path / name, grey)
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def greys(source: cameras.CameraSource, count: int) -> list[int | None]:
    frames = [source.read() for _ in range(count)]
    return [None if frame is None else int(frame.image[0, 0, 0]) for frame in frames]


# Folders

def test_a_folder_in_order_of_name_over_and_over(folder):
    source = open_camera(CameraConfig(str(folder), **SIZE, image_hold_s=0))
    assert greys(source, 7) == [10, 20, 30, 10, 20, 30, 10]
    assert not source.live


def test_a_folder_that_does_not_loop_ends(folder):
    assert greys(open_camera(CameraConfig(str(folder), **SIZE, image_hold_s=0, loop=False)), 5) == [10, 20, 30, None, None]


def test_each_image_is_held(folder):
    source = open_camera(CameraConfig(str(folder), **SIZE, framerate=2.0, image_hold_s=1.5))
    assert greys(source, 8) == [10] * 3 + [20] * 3 + [30] * 2


@pytest.mark.parametrize('shape', [(24, 32), (240, 320), (6, 8), (10, 100)])
def test_images_come_in_the_size_that_was_asked_for(tmp_path, shape):
    write(tmp_path / 'a.png', 50, shape)
    frame = open_camera(CameraConfig(str(tmp_path), **SIZE)).read()
    assert frame.image.shape == (24, 32, 3)
    assert (frame.image == 50).all()


def test_labels_and_names_come_along(folder):
    (folder / 'labels.csv').write_text('file,label\na.png,green\nb.png,"red, dark"\n')
    source = open_camera(CameraConfig(str(folder), **SIZE, image_hold_s=0))
    assert [(frame.name, frame.label) for frame in (source.read() for _ in range(3))] == [('a.png', 'green'), ('b.png', 'red, dark'), ('c.PNG', '')]


def test_one_image(folder):
    assert greys(open_camera(CameraConfig(str(folder / 'b.png'), **SIZE, image_hold_s=0)), 2) == [20, 20]


def test_a_broken_image_is_named(folder):
    (folder / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n broken')
    source = open_camera(CameraConfig(str(folder), **SIZE, image_hold_s=0.1))
    for _ in range(3):  # for as long as it would be shown
        with pytest.raises(FrameError, match=r'a.png: not a readable image'):
            source.read()
    assert [frame.name for frame in (source.read() for _ in range(6))] == ['b.png'] * 3 + ['c.PNG'] * 3


def test_a_folder_without_images(tmp_path):
    with pytest.raises(SourceError, match=r'no images \(.jpg, .*\) in this folder'):
        open_camera(CameraConfig(str(tmp_path)))


@pytest.mark.parametrize('name', ['missing', 'missing.png', 'missing.mp4'])
def test_a_source_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(SourceError, match=f'camera {tmp_path / name}: there is no such file or folder'):
        open_camera(CameraConfig(str(tmp_path / name)))


@pytest.mark.parametrize(('data', 'message'), [
    (b'name,class\na.png,red\n', r"columns are \['name', 'class'\], expected file,label"), (b'', 'columns are None'),
    (b'file,label\n\xe9.png,red\n', 'labels.csv: .*utf-8'), (b'file,label\n' + b'x' * 200_000 + b',red\n', 'labels.csv: field larger than'),
])
def test_a_labels_file_that_is_wrong(tmp_path, data, message):
    (tmp_path / 'labels.csv').write_bytes(data)
    with pytest.raises(SourceError, match=message):
        read_labels(tmp_path / 'labels.csv')


def test_a_labels_file_of_a_spreadsheet(tmp_path):
    (tmp_path / 'labels.csv').write_bytes(b'\xef\xbb\xbffile,label,remark\r\na.png,red,x\r\nb.png\r\n')
    assert read_labels(tmp_path / 'labels.csv') == {'a.png': 'red', 'b.png': ''}


# Videos

@pytest.fixture
def video(tmp_path) -> Path:
    """Five frames, 64x48, each brighter than the one before."""
    path = tmp_path / 'video.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10.0, (64, 48))
    for grey in range(0, 250, 50):
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()
    return path


def test_a_video_from_first_to_last_frame(video):
    source = open_camera(CameraConfig(str(video), 64, 48, loop=False))
    found = greys(source, 6)
    np.testing.assert_allclose(found[:5], range(0, 250, 50), atol=3)
    assert found[5] is None
    source.close()


def test_a_video_starts_again_at_its_first_frame(video):
    source = open_camera(CameraConfig(str(video), 64, 48))
    np.testing.assert_allclose(greys(source, 12), [0, 50, 100, 150, 200] * 2 + [0, 50], atol=3)
    source.close()


def test_a_video_is_resized_and_paced_by_the_reader(video):
    source = open_camera(CameraConfig(str(video), **SIZE))
    frame = source.read()
    assert frame.image.shape == (24, 32, 3)
    assert frame.age_s == 0.0
    assert not source.live
    source.close()


def test_a_file_that_is_no_video(tmp_path):
    (tmp_path / 'video.mp4').write_text('no')
    with pytest.raises(SourceError, match="video.mp4: can't be opened as a video"):
        open_camera(CameraConfig(str(tmp_path / 'video.mp4')))


# Devices and streams, without one

class FakeCapture:
    """cv2.VideoCapture of a device that works: frames of 320x240 whatever is asked for, waiting in the driver since ``captured_s``."""

    opened = True
    captured_s = 0.0
    good = True
    retrieved = 0

    def __init__(self, source: str, api: int, options: list[int] | None = None) -> None:
        self.source, self.api, self.settings, self.released = source, api, {}, False
        self.options = options or []

    def isOpened(self) -> bool:
        return self.opened

    def set(self, setting: int, value: float) -> None:
        self.settings[setting] = value

    def get(self, setting: int) -> float:
        return self.captured_s * 1000 if setting == cv2.CAP_PROP_POS_MSEC else self.settings[setting]

    def grab(self) -> bool:
        return self.good

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        self.retrieved += 1
        return self.good, np.zeros((240, 320, 3), np.uint8) if self.good else None

    def release(self) -> None:
        self.released = True


@pytest.fixture
def device(monkeypatch):
    """The class of the stand-in; /dev/null stands for a device that is there."""
    monkeypatch.setattr(cv2, 'VideoCapture', type('Capture', (FakeCapture,), {}))
    return cv2.VideoCapture


@pytest.mark.parametrize(('captured_s', 'age_s'), [
    (1000.0, 0.0), (999.98, 0.02), (995.0, 5.0),
    (0.0, 0.0), (1000.5, 0.0), (980.0, 0.0),  # no time, the future, absurdly long ago: unknown
])
def test_the_time_that_a_frame_waited_in_the_driver_is_its_age(device, captured_s, age_s):
    device.captured_s = captured_s
    frame = VideoSource(CameraConfig('/dev/null'), monotonic=lambda: 1000.0).read()
    assert frame.age_s == pytest.approx(age_s)


def test_a_device_is_asked_for_what_was_configured(device):
    source = open_camera(CameraConfig('/dev/null', 1280, 720, 25.0, 'MJPG'))
    settings = source._capture.settings
    assert (settings[cv2.CAP_PROP_FRAME_WIDTH], settings[cv2.CAP_PROP_FRAME_HEIGHT], settings[cv2.CAP_PROP_FPS]) == (1280, 720, 25.0)
    assert int(settings[cv2.CAP_PROP_FOURCC]).to_bytes(4, 'little') == b'MJPG'
    assert next(iter(settings)) == cv2.CAP_PROP_FOURCC  # a device's sizes depend on its format
    assert settings[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert source.live
    assert source.read().image.shape == (240, 320, 3)  # what it gives, not resized


def test_a_device_that_stops_giving_frames(device):
    source = open_camera(CameraConfig('/dev/null'))
    device.good = False
    with pytest.raises(SourceError, match='camera /dev/null: no frame'):
        source.read()


def test_a_frame_that_nobody_wants_is_not_decoded(device):
    wanted = iter([False, True, False])
    source = open_camera(CameraConfig('/dev/null'), lambda: next(wanted))
    assert [source.read() is SKIPPED for _ in range(3)] == [True, False, True]
    assert source._capture.retrieved == 1


def test_a_device_that_is_busy_is_released(device, monkeypatch):
    device.opened = False
    released = []
    monkeypatch.setattr(device, 'release', lambda capture: released.append(capture.source))
    with pytest.raises(SourceError, match="camera /dev/null: can't be opened as a device"):
        open_camera(CameraConfig('/dev/null'))
    assert released == ['/dev/null']


@pytest.mark.parametrize('source', ['97', '/dev/video97'])
def test_a_device_that_is_not_there(source):
    with pytest.raises(SourceError, match='camera /dev/video97: there is no such device'):
        open_camera(CameraConfig(source))


def test_a_stream_is_live_and_may_not_hang_for_ever(device):
    source = open_camera(CameraConfig('rtsp://camera.local/stream'))
    assert source.live
    options = dict(zip(source._capture.options[::2], source._capture.options[1::2], strict=True))
    assert 0 < options[cv2.CAP_PROP_OPEN_TIMEOUT_MSEC] <= 10_000
    assert 0 < options[cv2.CAP_PROP_READ_TIMEOUT_MSEC] <= 10_000


# The synthetic pattern

def test_the_pattern_changes_from_frame_to_frame_and_not_from_run_to_run():
    one, two = (SyntheticSource(CameraConfig('synthetic', **SIZE)) for _ in range(2))
    frames = [one.read().image for _ in range(60)]
    for before, after in pairwise(frames):
        assert (before != after).any()
    np.testing.assert_array_equal(frames[0], two.read().image)


@pytest.mark.parametrize(('width', 'height'), [(16, 16), (640, 480), (17, 300)])
def test_the_pattern_in_any_size(width, height):
    source = open_camera(CameraConfig('synthetic', width, height))
    for _ in range(70):
        image = source.read().image
        assert image.shape == (height, width, 3)
        red = (image == (40, 40, 230)).all(axis=-1)
        assert red.sum() == max(1, min(width, height) // 6) ** 2  # the square is whole, wherever it is


# Configuration

@pytest.mark.parametrize(('wrong', 'message'), [
    ({'source': ''}, 'source is empty'), ({'source': '0', 'pixel_format': 'YUY'}, "pixel_format is 'YUY', expected a four-character code")])
def test_what_no_source_could_fulfil(wrong, message):
    with pytest.raises(ParameterError, match=message):
        check_camera_config(CameraConfig(**wrong))


def test_the_kind_of_a_source(folder, video, device):
    kinds = {str(folder): FolderSource, str(folder / 'a.png'): FolderSource, str(video): VideoSource, '/dev/null': VideoSource,
             'http://host/stream.mjpg': VideoSource, 'synthetic': SyntheticSource}
    assert {source: type(open_camera(CameraConfig(source))) for source in kinds} == kinds
