"""Where frames come from: V4L2 devices, stream URLs, video files, folders of images, a synthetic pattern."""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from edge_resnet.exceptions import FrameError, ParameterError, SourceError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
LABELS_FILE = 'labels.csv'
MAX_BUFFER_AGE_S = 10.0
OPEN_TIMEOUT_MS = READ_TIMEOUT_MS = 5000


@dataclass(frozen=True)
class Frame:
    """``image``: (H, W, 3) uint8 BGR, as OpenCV gives it. ``age_s``: how long ago it was exposed, as far as is known.
    ``label``: what it shows, where the source knows. ``name``: the file it came from, else empty."""

    image: np.ndarray
    age_s: float = 0.0
    label: str = ''
    name: str = ''


SKIPPED = Frame(np.empty((0, 0, 3), np.uint8))  # one that nobody wanted, and that was not decoded


@dataclass(frozen=True)
class CameraConfig:
    """What the camera is asked for; a source that can't do it is resized (files) or says what it gives (devices)."""

    source: str
    width: int = 640
    height: int = 480
    framerate: float = 30.0
    pixel_format: str = ''
    loop: bool = True
    image_hold_s: float = 1.0


class CameraSource(Protocol):
    """``read`` blocks for the next frame, None at the end of a source that does not loop; SKIPPED for one that is not wanted, where that spares
    work; SourceError when it fails.

    ``live`` sources set the pace themselves, from the others frames are read ahead and taken at ``framerate``."""

    live: bool

    def read(self) -> Frame | None: ...

    def close(self) -> None: ...


class VideoSource:
    """Anything that ``cv2.VideoCapture`` opens. Devices carry the kernel's buffer time, so that the time a frame has
    waited in the driver counts into its age. A device's frame is decoded only if it is ``wanted`` once it
    is there; a video's is read ahead of its time."""

    def __init__(self, config: CameraConfig, wanted: Callable[[], bool] = lambda: True, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._config, self._wanted, self._monotonic = config, wanted, monotonic
        self._device = bool(re.fullmatch(r'\d+|/dev/.+', config.source))
        self.live = self._device or '://' in config.source
        self._capture = self._open()

    def _open(self) -> cv2.VideoCapture:
        config = self._config
        if self._device:
            path = f'/dev/video{config.source}' if config.source.isdigit() else config.source
            if not Path(path).exists():
                raise SourceError(f'camera {path}: there is no such device')
            capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
            if config.pixel_format:
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.pixel_format))
            for setting, value in ((cv2.CAP_PROP_FRAME_WIDTH, config.width), (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
                                   (cv2.CAP_PROP_FPS, config.framerate), (cv2.CAP_PROP_BUFFERSIZE, 1)):
                capture.set(setting, value)
        else:
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS] if self.live else []
            capture = cv2.VideoCapture(config.source, cv2.CAP_FFMPEG, timeouts)
        if not capture.isOpened():
            capture.release()
            raise SourceError(f'camera {config.source}: can\'t be opened as a {"device" if self._device else "video"}')
        return capture

    def read(self) -> Frame | None:
        good = self._capture.grab()
        if not good and not self.live:
            if not self._config.loop:
                return None
            self._capture.release()  # seeking to the start is not exact in every container, opening again is
            self._capture = self._open()
            good = self._capture.grab()
        if good and self.live and not self._wanted():
            return SKIPPED
        image = self._capture.retrieve()[1] if good else None
        if image is None:
            raise SourceError(f'camera {self._config.source}: no frame')
        return Frame(image if self.live else _fit(image, self._config), self._buffer_age_s())

    def _buffer_age_s(self) -> float:
        if not self._device:
            return 0.0
        age = self._monotonic() - self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # V4L2 buffers are stamped CLOCK_MONOTONIC
        return age if 0 <= age <= MAX_BUFFER_AGE_S else 0.0

    def close(self) -> None:
        self._capture.release()


class FolderSource:
    """The images of a folder in order of name, or a single image, each shown for ``image_hold_s``.

    A ``labels.csv`` in the folder (columns file, label) says what they show.
    """

    live = False

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        path = Path(config.source)
        self._files = [path] if path.is_file() else sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
        if not self._files:
            raise SourceError(f'camera {path}: no images ({", ".join(IMAGE_SUFFIXES)}) in this folder')
        self._labels = read_labels(self._files[0].parent / LABELS_FILE)
        self._repeats = max(1, round(config.image_hold_s * config.framerate))
        self._count = 0
        self._current: Frame | None = None

    def read(self) -> Frame | None:
        index, phase = divmod(self._count, self._repeats)
        if index >= len(self._files) and not self._config.loop:
            return None
        self._count += 1
        if phase == 0 or self._current is None:
            path = self._files[index % len(self._files)]
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:  # for as long as it would have been shown
                self._current = None
                raise FrameError(f'camera {path}: not a readable image')
            self._current = Frame(_fit(image, self._config), 0.0, self._labels.get(path.name, ''), path.name)
        return self._current

    def close(self) -> None:
        self._current = None


class SyntheticSource:
    """A grey gradient that drifts, with a bright square that goes round: no two neighbouring frames are alike."""

    live = False

    def __init__(self, config: CameraConfig) -> None:
        self._config = config
        ramp = np.linspace(40, 200, config.width, dtype=np.uint8)
        self._background = np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (config.height, config.width, 3)))
        self._count = 0

    def read(self) -> Frame | None:
        config, angle = self._config, self._count / 60 * 2 * math.pi
        self._count += 1
        image = np.roll(self._background, self._count, axis=1)
        side = max(1, min(config.width, config.height) // 6)
        left, top = (round((0.5 + 0.4 * f(angle)) * (size - side)) for f, size in ((math.cos, config.width), (math.sin, config.height)))
        image[top:top + side, left:left + side] = (40, 40, 230)
        return Frame(image)

    def close(self) -> None:
        pass


def open_camera(config: CameraConfig, wanted: Callable[[], bool] = lambda: True) -> CameraSource:
    """The source that ``config.source`` names: 'synthetic', a device (0, /dev/video0), a URL, a folder, an image or a video."""
    if config.source == 'synthetic':
        return SyntheticSource(config)
    if re.fullmatch(r'\d+|/dev/.+|[a-z]+://.+', config.source):
        return VideoSource(config, wanted)
    path = Path(config.source)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        if not path.exists():
            raise SourceError(f'camera {path}: there is no such file or folder')
        return FolderSource(config)
    if not path.is_file():
        raise SourceError(f'camera {path}: there is no such file or folder')
    return VideoSource(config, wanted)


def check_camera_config(config: CameraConfig) -> None:
    """ParameterError for what no source could fulfil."""
    if not config.source:
        raise ParameterError('source is empty, expected a device, URL, folder, video or "synthetic"')
    if config.pixel_format and len(config.pixel_format) != 4:
        raise ParameterError(f'pixel_format is {config.pixel_format!r}, expected a four-character code such as YUYV or MJPG')


def read_labels(path: Path) -> dict[str, str]:
    """File name -> label of a ``labels.csv``; empty without one."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            rows = csv.DictReader(file)
            if not {'file', 'label'} <= set(rows.fieldnames or ()):
                raise SourceError(f'{path}: columns are {rows.fieldnames}, expected file,label')
            return {row['file']: row['label'] or '' for row in rows}
    except (csv.Error, UnicodeDecodeError) as error:
        raise SourceError(f'{path}: {error}') from error


def _fit(image: np.ndarray, config: CameraConfig) -> np.ndarray:
    if image.shape[:2] == (config.height, config.width):
        return image
    shrinking = config.width < image.shape[1]
    return cv2.resize(image, (config.width, config.height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
