"""Record frames of the deployment camera to calibrate on, through the model's own preprocessing.

    ros2 run edge_resnet capture_calibration --model resnet50_traffic_lights --topic /image_raw --out frames --seconds 600
    ros2 run edge_resnet capture_calibration --model build/my_export --source drive.mp4 --out frames --count 100
    ros2 run edge_resnet capture_calibration --model resnet50_traffic_lights --bag drive_bag --bag-topic /image_raw/compressed --out frames

The frames are spread over the time of the source (or taken every --interval-s from a live one); dark, blurred, frozen ones and near
duplicates are passed over and counted. Writes PNGs and manifest.json, which calibrate reads. Interrupted or too short, the same command
goes on where it ended; nothing is ever overwritten. Exit code 0 with all frames, 1 with fewer or an error, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from edge_resnet.conversions import compressed_array, image_array
from edge_resnet.exceptions import ImageError, ParameterError, SourceError
from edge_resnet.hardware.cameras import IMAGE_SUFFIXES, CameraConfig, open_camera
from edge_resnet.pipeline import calibration
from edge_resnet.pipeline.drift import COLORS
from edge_resnet.pipeline.preprocessing import Preprocessing, resize
from edge_resnet.pipeline.selection import Schedule, Selection
from edge_resnet.tools import report
from edge_resnet.tools.calibrate import read_json
from edge_resnet.tools.dataset import images, read_rgb

BOUNDS = {'count': (1, 100_000), 'seconds': (0.1, 1e6), 'interval_s': (0, 3600), 'seed': (0, 2 ** 32)}
INTERVAL_S = 1.0  # of a live source without --seconds
SETTLE_S = 2.0  # a camera that was just opened still sets its exposure and white balance
PATIENCE_S = 15.0  # without an image on the topic
MANIFEST = 'manifest.json'
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
Decode = Callable[[], tuple[np.ndarray, str]]  # (image, 'rgb' or 'bgr'); ImageError when it is none
Shots = Generator[tuple[float, Decode], None, None]


@dataclass(frozen=True)
class Source:
    """Where frames come from. ``shots`` gives each frame's time, in s, and how to get it, in order of time, anew at each call; times are
    between ``start_s`` and ``end_s`` (None: unknown), a folder's are the images' numbers. ``live``: there is no going back, and times are
    of a steady clock."""

    description: dict[str, str]
    shots: Callable[[], Shots]
    start_s: float = 0.0
    end_s: float | None = None
    live: bool = False


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('capture_calibration', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help="bundle's name or folder, or a folder of export_model: gives the preprocessing")
    parser.add_argument('--out', type=Path, required=True, help='folder of the frames, new or begun by the same command')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--topic', help='of a running camera, raw or compressed, e.g. /image_raw')
    source.add_argument('--source', help='folder of images, video file, device (0, /dev/video0) or stream URL')
    source.add_argument('--bag', type=Path, help='rosbag2 folder, MCAP or SQLite')
    parser.add_argument('--bag-topic', default='/image_raw', help='raw or compressed (default: %(default)s)')
    parser.add_argument('--count', type=int, default=200, help='frames to have at the end (default: %(default)s)')
    parser.add_argument('--seconds', type=float, help='time of the source to spread the frames over (default: all of a recording)')
    parser.add_argument('--interval-s', type=float, help=f'least time between two candidates (default: {INTERVAL_S:g} if live without --seconds)')
    parser.add_argument('--seed', type=int, default=7, help='of the moments in which frames are looked for (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print the manifest as JSON')
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index('--ros-args') if '--ros-args' in argv else len(argv)
    return parser.parse_args(argv[:end], argparse.Namespace(ros_args=argv[end:]))


def folder_source(path: Path) -> Source:
    files = images(path)

    def shots() -> Shots:
        yield from ((number + 0.5, lambda file=file: (read_rgb(file), 'rgb')) for number, file in enumerate(files))

    return Source({'kind': 'folder', 'name': path.resolve().name, 'clock': 'number of the image'}, shots, 0.0, len(files))


def video_source(path: Path) -> Source:
    def opened() -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise SourceError(f'{path}: {"not a readable video" if path.is_file() else "there is no such file or folder"}')
        return capture

    def retrieve(capture: cv2.VideoCapture) -> tuple[np.ndarray, str]:
        good, image = capture.retrieve()
        if not good:
            raise ImageError(f"{path}: a frame can't be decoded")
        return image, 'bgr'

    def shots() -> Shots:
        capture, number = opened(), 0
        while capture.grab():
            yield (number + 0.5) / rate, lambda: retrieve(capture)
            number += 1

    first = opened()
    rate, count = first.get(cv2.CAP_PROP_FPS) or 30.0, first.get(cv2.CAP_PROP_FRAME_COUNT)
    return Source({'kind': 'video', 'name': path.name, 'clock': 'seconds of the video'}, shots, 0.0, count / rate if count > 0 else None)


def camera_source(name: str) -> Source:
    def shots() -> Shots:
        camera = open_camera(CameraConfig(name))
        try:
            opened_s = time.monotonic()
            while True:
                frame = camera.read()
                if frame is not None and time.monotonic() - opened_s > SETTLE_S:
                    yield time.monotonic(), lambda image=frame.image: (image, 'bgr')  # type: ignore[misc]
        finally:
            camera.close()

    url = urlsplit(name)
    shown = f'{url.scheme}://{url.hostname}{url.path}' if '://' in name else f'video{name}' if name.isdigit() else Path(name).name  # no password
    return Source({'kind': 'device', 'name': shown, 'clock': 'unix'}, shots, live=True)


def topic_source(topic: str, ros_args: list[str]) -> Source:
    from edge_resnet.nodes.frame_recorder import messages  # the only part that needs ROS 2

    return Source({'kind': 'topic', 'name': topic, 'clock': 'unix'},
                  lambda: ((time.monotonic(), decode) for decode in messages(topic, ros_args, PATIENCE_S)), live=True)


def bag_source(path: Path, topic: str, closing: contextlib.ExitStack) -> Source:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise ParameterError('rosbags is not installed: pip install -r requirements/tools.txt') from error
    folder = path.parent if path.is_file() else path
    if not (folder / 'metadata.yaml').is_file():
        raise SourceError(f'{folder}: no rosbag2 here, metadata.yaml is missing')
    try:
        reader = closing.enter_context(AnyReader([folder], default_typestore=get_typestore(Stores.ROS2_JAZZY)))
    except Exception as error:  # the library raises all kinds
        raise SourceError(f'{folder}: {type(error).__name__}: {error}') from error
    pictures = [entry for entry in reader.connections if entry.msgtype in (IMAGE, COMPRESSED) and entry.msgcount]
    chosen = [entry for entry in pictures if entry.topic == topic]
    if not chosen:
        raise SourceError(f'{folder}: no images on {topic}, there are some on {", ".join(sorted({entry.topic for entry in pictures})) or "no topic"}')

    def decode(data: bytes, kind: str) -> tuple[np.ndarray, str]:
        try:
            message: Any = reader.deserialize(data, kind)
        except Exception as error:
            raise ImageError(f'{topic}: {type(error).__name__}: {error}') from error
        return image_array(message) if kind == IMAGE else compressed_array(message.data)

    def shots() -> Shots:
        try:
            for entry, stamp_ns, data in reader.messages(chosen):
                yield stamp_ns / 1e9, lambda data=data, kind=entry.msgtype: decode(data, kind)  # type: ignore[misc]
        except Exception as error:
            raise SourceError(f'{folder}: {type(error).__name__}: {error}') from error

    described = {'kind': 'bag', 'name': folder.resolve().name, 'topic': topic, 'clock': 'unix'}
    return Source(described, shots, reader.start_time / 1e9, reader.end_time / 1e9)


def open_source(args: argparse.Namespace, closing: contextlib.ExitStack) -> Source:
    if args.topic:
        return topic_source(args.topic, args.ros_args)
    if args.bag:
        return bag_source(args.bag, args.bag_topic, closing)
    if re.fullmatch(r'\d+|/dev/.+|[a-z]+://.+', args.source):
        return camera_source(args.source)
    if not Path(args.source).is_dir():
        return video_source(Path(args.source))
    if args.seconds or args.interval_s:
        raise ParameterError(f'{args.source}: a folder of images has no time, expected neither --seconds nor --interval-s')
    return folder_source(Path(args.source))


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with the keys of inner mappings as "outer inner"."""
    inner = ((name, values if isinstance(values, dict) else {'': values}) for name, values in settings.items())
    return {f'{outer} {name}'.strip(): value for outer, values in inner for name, value in values.items()}


class Recording:
    """The frames in ``folder`` and their manifest: a frame is written first, then the manifest, each whole or not at all, so that at
    most the newest frame is not listed, and that one is taken in. A recording is continued only with the ``settings`` it has."""

    def __init__(self, folder: Path, settings: dict[str, Any], closing: contextlib.ExitStack) -> None:
        self.folder, self.selection, self._settings = folder, Selection(), settings
        self._histograms = np.zeros((3, calibration.BINS))
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        closing.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ParameterError(f'{folder}: another capture is writing there') from error
        before = read_json(folder / MANIFEST)
        if before and not all(isinstance(before.get(name), dict) for name in ('source', 'preprocessing', 'passed_over', 'frames')):
            raise ParameterError(f'{folder / MANIFEST}: not one of capture_calibration; expected a new folder')
        was, now = flat(before), flat(settings)
        for name in now:
            if before and was.get(name) != now[name]:
                raise ParameterError(f'{folder}: {name} was {was.get(name)!r}, now it is {now[name]!r}; expected the same, or a new folder')
        self.files: dict[str, dict[str, Any]] = before.get('frames', {})
        self.passed_over = Counter[str](before.get('passed_over', {}))
        there = {path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        if before and self._next() in there:
            self.files[self._next()] = {'sha256': self._digest(self._next()), 'time_s': None}
        unknown = sorted(there - set(self.files))
        if unknown:
            raise ParameterError(f'{folder}: {unknown[0]} is not in its {MANIFEST}; expected a new folder')
        for name, entry in self.files.items():
            if name not in there or self._digest(name) != entry['sha256']:
                raise ParameterError(f'{folder}: {name} is {"changed" if name in there else "missing"}; expected all frames of its {MANIFEST}')
            self._count(read_rgb(folder / name))
        self.save()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def last_s(self) -> float:
        """The time of the newest frame, -inf without one."""
        return max((entry['time_s'] for entry in self.files.values() if entry['time_s'] is not None), default=-math.inf)

    def add(self, frame: np.ndarray, time_s: float) -> None:
        """Write ``frame``, (H, W, 3) uint8 RGB, that was seen at ``time_s``."""
        name = self._next()
        self._write(name, cv2.imencode('.png', frame[..., ::-1])[1].tobytes())
        self.files[name] = {'sha256': self._digest(name), 'time_s': round(time_s, 3)}
        self._count(frame)
        self.save()

    def save(self) -> None:
        self._write(MANIFEST, json.dumps(self.manifest(), indent=1).encode())

    def manifest(self) -> dict[str, Any]:
        times = [entry['time_s'] for entry in self.files.values() if entry['time_s'] is not None]
        digests = ''.join(f'{name} {entry["sha256"]}\n' for name, entry in self.files.items())
        shares = (self._histograms / max(1, len(self))).round(5).tolist()
        return {
            'count': len(self), **self._settings, 'time_span': {'first_s': min(times), 'last_s': max(times)} if times else None,
            'passed_over': dict(sorted(self.passed_over.items())), 'sha256': hashlib.sha256(digests.encode()).hexdigest(),
            'histograms': dict(zip(COLORS, shares, strict=True)), 'frames': self.files}

    def _next(self) -> str:
        return f'{len(self):06d}.png'

    def _digest(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()

    def _count(self, frame: np.ndarray) -> None:
        self._histograms += calibration.statistics([frame]).histograms
        self.selection.keep(frame)

    def _write(self, name: str, data: bytes) -> None:
        path, part = self.folder / name, self.folder / f'{name}.part'
        if name != MANIFEST and path.exists():
            raise ParameterError(f'{path}: is there already; expected to be the only one who writes there')
        try:
            with part.open('wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)


def record(source: Source, recording: Recording, spec: Preprocessing, args: argparse.Namespace) -> None:
    """Add frames until there are ``args.count`` or the source ends. A recorded source is gone through from where it was interrupted,
    and then once more: what the schedule left out is better than too few frames."""
    interval_s = args.interval_s if args.interval_s is not None else INTERVAL_S if source.live and not args.seconds else 0.0
    looked_at: set[float] = set()
    last_end_s = source.start_s + args.seconds if args.seconds else source.end_s
    interrupted = last_end_s is not None and recording.last_s < last_end_s - (last_end_s - source.start_s) / max(1, len(recording))
    for last_s in (-math.inf,) if source.live else (recording.last_s if interrupted else -math.inf, -math.inf):
        spread, schedule = source.live or not looked_at, None
        with contextlib.closing(source.shots()) as shots:
            for now_s, decode in shots:
                if schedule is None:  # only now, since the time of a live source runs from its first frame
                    first_s = now_s if source.live else source.start_s
                    end_s = first_s + args.seconds if args.seconds else source.end_s
                    schedule = Schedule(args.count - len(recording), max(first_s, last_s), end_s if spread else None, interval_s, args.seed)
                if end_s is not None and now_s > end_s:
                    break
                if now_s in looked_at or now_s <= last_s or not schedule.due(now_s):
                    continue
                looked_at.add(now_s)
                try:
                    image, order = decode()
                    small = resize(image, spec)
                    frame = np.ascontiguousarray(small[..., ::-1] if order == 'bgr' else small)
                    reason = recording.selection.judge(frame)
                except ImageError:
                    reason = 'unreadable'
                if reason:
                    recording.passed_over[reason] += 1
                else:
                    recording.add(frame, time.time() if source.live else now_s)
                    schedule.kept()
                show(recording, args.count, kept=not reason)
                if len(recording) >= args.count:
                    return


def show(recording: Recording, count: int, *, kept: bool) -> None:
    """A bar on a terminal, else a line each quarter."""
    done = len(recording)
    text = f'{done} of {count} frames, {passed_over(recording)}'
    if sys.stderr.isatty():
        print(f'\r[{"#" * (30 * done // count):30}] {text}\x1b[K', end='\n' if done >= count else '', file=sys.stderr, flush=True)
    elif kept and done * 4 // count > (done - 1) * 4 // count:
        print(text, file=sys.stderr, flush=True)


def passed_over(recording: Recording) -> str:
    return 'passed over: ' + (', '.join(f'{number} {reason}' for reason, number in sorted(recording.passed_over.items())) or 'none')


def capture(args: argparse.Namespace) -> Recording:
    """Record, or continue, ``args.out``; EdgeResnetError refuses."""
    report.check(args, BOUNDS)
    spec = report.open_model(args.model).preprocessing
    with contextlib.ExitStack() as closing:
        source = open_source(args, closing)
        fitted = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(spec).items()}
        settings = {'source': source.description, 'preprocessing': fitted, 'seed': args.seed}
        recording = Recording(args.out, settings, closing)
        try:
            if len(recording) < args.count:
                record(source, recording, spec, args)
        finally:
            recording.save()
    return recording


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def work() -> int:
        recording = capture(args)
        print(json.dumps(recording.manifest(), indent=1) if args.json else f'{len(recording)} frames in {args.out}, {passed_over(recording)}')
        if len(recording) < args.count:
            print(f'capture_calibration: the source ended with {len(recording)} of {args.count} frames, {passed_over(recording)}', file=sys.stderr)
            return 1
        return 0

    return report.run('capture_calibration', work, f'what {args.out} has is whole, the same command goes on')


if __name__ == '__main__':
    raise SystemExit(main())
