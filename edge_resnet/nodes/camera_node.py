"""Publishes a camera's frames, each stamped with its time of capture, and only the freshest of them."""

from __future__ import annotations

import math
import re
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header as HeaderMessage
from vision_msgs.msg import Classification

from edge_resnet.conversions import Header, Results, Stamp, view_of, write_results
from edge_resnet.exceptions import ParameterError
from edge_resnet.hardware.cameras import CameraConfig, check_camera_config, open_camera
from edge_resnet.hardware.grabber import FrameGrabber, StampedFrame
from edge_resnet.nodes.base import ERROR, OK, WARN, Health, ManagedNode, compressed_topic, frame_publisher
from edge_resnet.nodes.frames import UPCOMING_S
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.runner import run
from edge_resnet.pipeline.bundle import find_shared
from edge_resnet.pipeline.demand import FrameDemand
from edge_resnet.pipeline.latency import CAPTURED, NOT_ASKED, OVERWRITTEN
from edge_resnet.pipeline.postprocessing import Score

FOCAL_RATIO = 0.829  # focal length over image width of a Camera Module 2: 3.04 mm over its 3.68 mm sensor, 62.2 degrees across
FROZEN_S = 1.2  # of identical live frames, from which on they are called frozen
WATCH_PERIOD_S = 0.4
WANTED_PERIODS = 1.5  # before a frame is of interest one is decoded: the next may come a little late


@dataclass(frozen=True)
class CameraParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    source: str = param('samples', 'device (0, /dev/video0), URL, video, image or folder; "samples" or "synthetic"')
    image_width: int = param(640, 'width to ask for, px', low=16, high=8192)
    image_height: int = param(480, 'height to ask for, px', low=16, high=8192)
    framerate: float = param(30.0, 'frames per second to ask for', low=0.1, high=240.0)
    pixel_format: str = param('', 'four-character code to ask a device for, such as YUYV or MJPG; empty: its own choice')
    flip: str = param('none', 'mirror the image', choices=('none', 'horizontal', 'vertical', 'both'))
    loop: bool = param(True, 'start files and folders again at their end')
    image_hold_s: float = param(1.0, 'how long each image of a folder is shown, s', low=0.0, high=3600.0)
    frame_id: str = param('camera', 'TF frame of the images')
    camera_name: str = param('camera', 'name in the calibration file')
    camera_info_url: str = param('', 'calibration: file:///... or package://PACKAGE/...; empty: a pinhole of 62 degrees')
    jpeg_quality: int = param(85, 'quality of image_raw/compressed', low=1, high=100, live=True)


class CameraNode(ManagedNode[CameraParameters]):
    """Frames come from a capture thread's mailbox of one, and are published by that thread, or by the executor on a request."""

    Parameters = CameraParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('camera', **options)
        self._grabber: FrameGrabber | None = None
        self._demand = FrameDemand()
        self._lock = threading.Lock()  # frames come from the capture thread, requests from the executor or from inference's
        self._again = False
        self._later = self.create_timer(1e-9, self._on_later, clock=self._steady)
        self._later.cancel()
        self._ahead = self.create_timer(1.0, self._announce, clock=self._steady)
        self._ahead.cancel()
        self._arrived_s = 0.0
        self._image = self.frame_output(Image, 'image_raw', self._on_request)
        self._compressed = frame_publisher(self, CompressedImage, compressed_topic(self))
        self._info = frame_publisher(self, CameraInfo, 'camera_info')
        self._truth = frame_publisher(self, Classification, 'ground_truth')
        self._camera_info = CameraInfo()
        self._last: tuple[Any, int] = (None, 0)
        self._told_frozen = False
        self._watch_timer: Any = None

    def configure(self) -> None:
        p = self.parameters
        source = str(find_shared('samples')) if p.source == 'samples' else p.source
        config = CameraConfig(source, p.image_width, p.image_height, p.framerate, p.pixel_format, p.loop, p.image_hold_s)
        check_camera_config(config)
        self._camera_info = load_camera_info(p.camera_info_url, p.camera_name, p.image_width, p.image_height)
        self._grabber = FrameGrabber(lambda: open_camera(config, self._wants_frame), p.framerate, self.now_ns, self._on_frame)

    def activate(self) -> None:
        assert self._grabber is not None
        self._grabber.start()
        self._watch_timer = self.create_timer(WATCH_PERIOD_S, self._watch, clock=self._steady)

    def deactivate(self) -> None:
        self._ahead.cancel()
        if self._watch_timer is not None:
            self.destroy_timer(self._watch_timer)
            self._watch_timer = None
        if self._grabber is not None:
            self._grabber.stop()

    def cleanup(self) -> None:
        self._grabber = None

    def _wants_frame(self) -> bool:
        """Whether a frame that is captured now may be used, and not only the next one."""
        return not self._demand.period_s or self._demand.wait_s() < WANTED_PERIODS * self._demand.period_s

    def _on_frame(self, unused: int) -> None:
        """From the capture thread: a frame is in the mailbox, or was skipped, and some were ``unused``: wanted and not taken in time, or not
        wanted, or not as much as this one."""
        if unused:
            self.counts[OVERWRITTEN if self._demand.wait_s(self._arrived_s) == 0 else NOT_ASKED] += unused
        self._arrived_s = time.monotonic()
        self._demand.seen(self._arrived_s)
        if self._demand.wait_s(self._arrived_s) == 0:
            self.guarded(self._look)()  # from here, so that the frame doesn't wait for another thread to wake up

    def _on_request(self, in_s: float) -> None:
        self._demand.ask(in_s)
        self._look()
        self._ahead.cancel()
        if self.active and UPCOMING_S < (expected_s := self._demand.expected_s()) < math.inf:
            self._ahead.timer_period_ns = round((expected_s - UPCOMING_S) * 1e9)
            self._ahead.reset()

    def _announce(self) -> None:
        self._ahead.cancel()
        self._image.announce()

    def _look(self) -> None:
        """Publish the frame in the mailbox if it is the right one, else look again when it may be. Never waits: whoever finds another thread
        at it, which may be publishing for long, leaves it to that one."""
        self._again = True
        for _ in range(2):
            if not (self._again and self._lock.acquire(blocking=False)):
                return
            try:
                self._again = False
                self._later.cancel()
                wait_s = self._demand.wait_s(self._arrived_s)
                if wait_s == 0:
                    self._publish()
            finally:
                self._lock.release()
        if self._again:  # frames come faster than they are published: that is the executor's, not the caller's
            self._later.reset()

    def _on_later(self) -> None:
        self._later.cancel()
        self._look()

    def _publish(self) -> None:
        taken = self._grabber.take() if self._grabber is not None and self.active else None
        if taken is None:
            return
        self._demand.used()
        image = flipped(taken.frame.image, self.parameters.flip)
        header = Header(Stamp.from_ns(taken.stamp_ns), self.parameters.frame_id)
        captured_ns = self.now_ns()
        self._image.publish(view_of(header, image, 'bgr8'))
        self.stage(CAPTURED, header, captured_ns)
        self.counts['published'] += 1
        self._ahead.cancel()
        if self._info.get_subscription_count():
            self._publish_info(header, image)
        if taken.frame.label and self._truth.get_subscription_count():
            self._truth.publish(write_results(Results(header, [Score(taken.frame.label, 1.0)])))
        if self._compressed.get_subscription_count():
            _, jpeg = cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, self.parameters.jpeg_quality))
            data = array('B', jpeg.tobytes())
            self._compressed.publish(CompressedImage(header=header_message(header), format='bgr8; jpeg compressed bgr8', data=data))
        self._watch_freshness(taken)

    def _publish_info(self, header: Header, image: np.ndarray) -> None:
        self._camera_info.header = header_message(header)
        if (image.shape[1], image.shape[0]) != (self._camera_info.width, self._camera_info.height):
            scale_camera_info(self._camera_info, image.shape[1], image.shape[0])
        self._info.publish(self._camera_info)

    def _watch_freshness(self, taken: StampedFrame) -> None:
        """Remember since when the source has given the same picture; only a live source is expected to change."""
        sample = taken.frame.image[::16, ::16].tobytes()
        if sample != self._last[0]:
            self._last = (sample, taken.stamp_ns)
        frozen_s = 0.0 if taken.frame.name else (taken.stamp_ns - self._last[1]) / 1e9
        self.counts['frozen'] = int(frozen_s * 1000)

    def _watch(self) -> None:
        """Look who subscribes, publish the frame at hand if it is wanted and the next one does not come, and tell of a source that hangs or is
        frozen at once, not only with the next round of diagnostics."""
        self._demand.every = self._image.every_frame(self._compressed.get_subscription_count())
        self._look()
        frozen, before = self.counts['frozen'] >= FROZEN_S * 1000, self._told_frozen
        self._told_frozen = frozen
        if (self._grabber is not None and not self._grabber.check()) or (frozen and not before):
            self.publish_diagnostics()

    def diagnose(self, health: Health) -> None:
        grabber = self._grabber
        assert grabber is not None
        if grabber.error:
            health.report(ERROR, grabber.error)
            self.fault(grabber.error, grabber.error)
        elif grabber.finished:
            health.report(OK, 'the source came to its end')
        elif self.counts['frozen'] >= FROZEN_S * 1000:
            health.report(WARN, f'the picture has not changed for {self.counts["frozen"] / 1000:.1f} s')
        self.counts['captured'] = grabber.captured
        health.values.update({
            'Frame rate (Hz)': self.rate('captured'), 'Requested rate (Hz)': self.parameters.framerate, 'Captured': grabber.captured,
            'Published': self.counts['published'], OVERWRITTEN: self.counts[OVERWRITTEN], NOT_ASKED: self.counts[NOT_ASKED],
            'Source failures': grabber.failures, 'Source hangs': grabber.hangs})


def header_message(header: Header) -> HeaderMessage:
    return HeaderMessage(stamp=Time(sec=header.stamp.sec, nanosec=header.stamp.nanosec), frame_id=header.frame_id)


def flipped(image: Any, flip: str) -> Any:
    """``image`` mirrored as the parameter ``flip`` says."""
    codes = {'horizontal': 1, 'vertical': 0, 'both': -1}
    return cv2.flip(image, codes[flip]) if flip in codes else image


def load_camera_info(url: str, camera_name: str, width: int, height: int) -> CameraInfo:
    """The calibration at ``url`` in camera_calibration_parsers' YAML, or a plausible pinhole of ``width`` x ``height``."""
    if not url:
        focal = FOCAL_RATIO * width
        info = CameraInfo(width=width, height=height, distortion_model='plumb_bob', d=[0.0] * 5, r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
        info.k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
        info.p = [focal, 0.0, width / 2, 0.0, 0.0, focal, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info
    path = _local_path(url)
    try:
        content = yaml.safe_load(path.read_text())
        if content['camera_name'] != camera_name:
            raise ParameterError(f'camera_info_url {url}: camera_name is {content["camera_name"]!r}, expected {camera_name!r}')
        info = CameraInfo(width=content['image_width'], height=content['image_height'], distortion_model=content['distortion_model'])
        info.d = [float(value) for value in content['distortion_coefficients']['data']]
        for name, key in (('k', 'camera_matrix'), ('r', 'rectification_matrix'), ('p', 'projection_matrix')):
            setattr(info, name, [float(value) for value in content[key]['data']])
        return info
    except OSError as error:
        raise ParameterError(f'camera_info_url {url}: {error.strerror}') from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AssertionError) as error:
        raise error if isinstance(error, ParameterError) else ParameterError(f'camera_info_url {url}: not a camera calibration ({error})') from error


def scale_camera_info(info: CameraInfo, width: int, height: int) -> None:
    """Fit ``info`` to the size that the camera really gives, as a full-frame scaling."""
    x, y = width / info.width, height / info.height
    info.k = [value * scale for value, scale in zip(info.k, (x, x, x, y, y, y, 1, 1, 1), strict=True)]
    info.p = [value * scale for value, scale in zip(info.p, (x, x, x, x, y, y, y, y, 1, 1, 1, 1), strict=True)]
    info.width, info.height = width, height


def _local_path(url: str) -> Path:
    found = re.fullmatch(r'(file|package)://(.+)', url)
    if found is None:
        raise ParameterError(f'camera_info_url is {url!r}, expected file:///path or package://PACKAGE/path')
    if found[1] == 'file':
        return Path(found[2])
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    package, _, rest = found[2].partition('/')
    try:
        return Path(get_package_share_directory(package)) / rest
    except (PackageNotFoundError, ValueError) as error:
        raise ParameterError(f'camera_info_url {url}: {error}') from error


def main(argv: Sequence[str] | None = None) -> int:
    return run([CameraNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
