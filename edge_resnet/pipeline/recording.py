"""A run on disk: MCAP files of JSON messages with their schemas, and their reader.

MCAP because Foxglove and PlotJuggler open it as it is, because it holds streams of different rates in one file, and because its records
follow each other: a file that was cut off is good up to its last whole record. JSON because that takes no ROS to read. Nothing is chunked
or compressed, so that what was flushed stays, whoever is killed. A frame takes 0.5 kB, an hour at 30 Hz 55 MB.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.latency import METRICS

PREFIX, SUFFIX = 'edge_resnet_', '.mcap'
PIECES = 4  # that the space is for; the oldest goes when there are more
RETRY_S = 5.0  # after a failure, until the next file is tried
BOARD = ('temperature_c', 'clock_mhz', 'throttle_bits')  # bits 0 to 3 as in get_throttled
NUMBER, INTEGER, TEXT, OBJECT = ({'type': kind} for kind in ('number', 'integer', 'string', 'object'))
TAGS = {**dict.fromkeys(BOARD, NUMBER), 'simulated': {'type': 'boolean'}}
SCHEMAS: dict[str, dict[str, Any]] = {
    'run': {'configuration': OBJECT, 'host': OBJECT},  # what ran where: parameters and facts of each node
    'frames': {'stamp_ns': INTEGER, **{name: {**NUMBER, 'description': 'ms'} for name in METRICS}, **TAGS},
    'board': TAGS,
    'events': {'event': TEXT, 'on': {'type': 'boolean'}, **TAGS},  # throttle flags that came and went, clocks that jumped
    'drops': {'ended': OBJECT, 'missed': OBJECT, 'faults': OBJECT},  # so far
}

TYPES: dict[str, Any] = {'number': (int, float), 'integer': int, 'string': str, 'object': dict, 'boolean': bool}
NEEDED = {'frames': ('stamp_ns', 'total'), 'events': ('event',)}  # without which an entry says nothing


def number_of(path: Path) -> int:
    """What a recording's name ends with, 0 when that is no number."""
    digits = path.stem.rpartition('_')[2]
    return int(digits) if digits.isdecimal() else 0


def recordings(folder: Path) -> list[Path]:
    """Those in ``folder``, oldest first: by their numbers, which go up from run to run, as a date may be of a clock that was behind."""
    return sorted((path for path in folder.glob(f'{PREFIX}*{SUFFIX}') if number_of(path)), key=lambda path: (number_of(path), path))


class Recorder:
    """Writes a run into ``folder``, in files of a quarter of ``max_bytes``; with more than that in the folder the oldest recordings go.

    A disk that is full, a folder that is not writable or was removed loses records (``lost``, ``error`` says why) and nothing else: every
    RETRY_S a new file is tried. ParameterError without the mcap package.
    """

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            import mcap.writer
        except ImportError:
            raise ParameterError(f'record_to is {str(folder)!r}, and recording needs the mcap package (pip install mcap)') from None
        self._make_writer = mcap.writer.Writer
        self._folder, self._max_bytes, self._clock = folder, max_bytes, clock
        self._name = f'{PREFIX}{datetime.now(timezone.utc):%Y%m%d_%H%M%S}'
        self._unflushed, self._retry_at = 0, -RETRY_S
        self._closed = False
        self._stream: Any = None
        self._about: dict[str, Any] = {}
        self.path, self.error, self.lost = folder, '', 0

    def describe(self, time_ns: int, about: Mapping[str, Any]) -> None:
        """Write what ran, here and at the beginning of every file to come."""
        self.write('run', time_ns, about)
        self._about = dict(about)

    def write(self, topic: str, time_ns: int, content: Mapping[str, Any]) -> None:
        if self._closed:  # another thread was still at it
            return
        try:
            if self._stream is None:
                if self._clock() < self._retry_at:
                    self.lost += 1
                    return
                self._open(time_ns)
            self._add(topic, time_ns, content)
            if self._stream.tell() > self._max_bytes // PIECES:
                self._finish()
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        """Hand what was written to the system, where no kill of this process reaches it; call it once a second."""
        if self._stream is not None:
            try:
                self._stream.flush()
                if not self.path.exists():  # a file that was removed takes writes without a word
                    raise FileNotFoundError(errno.ENOENT, 'it was removed', str(self.path))
                self._unflushed, self.error = 0, ''
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        self._closed = True
        if self._stream is not None:
            try:
                self._finish()
            except OSError as error:
                self._fail(error)

    def _open(self, time_ns: int) -> None:
        from mcap.writer import CompressionType

        self._folder.mkdir(parents=True, exist_ok=True)
        there = recordings(self._folder)
        sizes = [path.stat().st_size for path in there]
        self.path = self._folder / f'{self._name}_{number_of(there[-1]) + 1 if there else 1:03d}{SUFFIX}'
        while sizes and sum(sizes) > self._max_bytes - self._max_bytes // PIECES:
            there.pop(0).unlink()
            sizes.pop(0)
        self._stream = self.path.open('xb')
        self._writer = self._make_writer(self._stream, use_chunking=False, compression=CompressionType.NONE)
        self._writer.start(library='edge_resnet')
        self._channels = {}
        for topic, properties in SCHEMAS.items():
            schema = {'type': 'object', 'title': topic, 'properties': properties}
            identity = self._writer.register_schema(f'edge_resnet.{topic}', 'jsonschema', json.dumps(schema).encode())
            self._channels[topic] = self._writer.register_channel(f'/edge_resnet/{topic}', 'json', identity)
        if self._about:
            self._add('run', time_ns, self._about)

    def _add(self, topic: str, time_ns: int, content: Mapping[str, Any]) -> None:
        self._unflushed += 1
        self._writer.add_message(self._channels[topic], time_ns, json.dumps(content, separators=(',', ':')).encode(), time_ns)

    def _finish(self) -> None:
        self._writer.finish()
        self._stream.close()
        self._stream, self._unflushed = None, 0

    def _fail(self, error: OSError) -> None:
        self.error, self._retry_at = f"can't record into {self.path}: {error.strerror or error}", self._clock() + RETRY_S
        self.lost += max(1, self._unflushed)
        stream, self._stream, self._unflushed = self._stream, None, 0
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


@dataclass(frozen=True)
class Run:
    """A recording. ``frames``: METRICS, BOARD and stamp_ns -> (frames,) float64, NaN where unknown; ``cut_off``: not all of it could be read.

    Entries of ``board`` and ``events`` have all that SCHEMAS says, None where it is unknown."""

    paths: list[Path]
    about: dict[str, Any]
    frames: dict[str, np.ndarray]
    board: list[dict[str, Any]]
    events: list[dict[str, Any]]
    drops: dict[str, dict[str, int]]
    simulated: bool
    cut_off: bool


def entry_of(topic: str, data: bytes) -> dict[str, Any]:
    """What SCHEMAS says of ``topic``, None where it is missing, of another type or no finite number; ValueError when ``data`` says nothing."""
    content = json.loads(data, parse_constant=lambda _: None, parse_float=lambda text: value if math.isfinite(value := float(text)) else None)
    entry = {name: content.get(name) for name in SCHEMAS[topic]} if isinstance(content, dict) else {}
    for name, value in entry.items():
        kind = SCHEMAS[topic][name]['type']
        if not isinstance(value, TYPES[kind]) or (kind in ('number', 'integer') and (isinstance(value, bool) or not abs(value) < 2 ** 63)):
            entry[name] = {} if kind == 'object' else None
    if not entry or any(entry[name] is None for name in NEEDED.get(topic, ())):
        raise ValueError(f'no entry of {topic}')
    return entry


def read_run(path: Path) -> Run:
    """The recording in the file ``path``, or the newest one in a folder, all its files; ParameterError when there is none."""
    try:
        from mcap.exceptions import McapError
        from mcap.records import Channel, Message
        from mcap.stream_reader import StreamReader
    except ImportError:
        raise ParameterError(f'{path}: reading it needs the mcap package (pip install mcap)') from None
    if not path.exists():
        raise ParameterError(f'{path}: no such run, expected a recording or a folder of them')
    paths = recordings(path) if path.is_dir() else [path]
    paths = [other for other in paths if other.name.rsplit('_', 1)[0] == paths[-1].name.rsplit('_', 1)[0]]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    cut_off = False
    for each in paths:
        topics: dict[int, str] = {}
        with each.open('rb') as stream:
            try:
                for record in StreamReader(stream).records:
                    if isinstance(record, Channel):
                        topics[record.id] = record.topic.rpartition('/')[2]
                    elif isinstance(record, Message) and topics[record.channel_id] in SCHEMAS:
                        try:
                            entry = entry_of(topics[record.channel_id], record.data)
                            found[topics[record.channel_id]].append({**entry, 'time_ns': record.log_time})
                        except (ValueError, RecursionError):
                            cut_off = True
            except (McapError, struct.error, ValueError, KeyError):
                cut_off = True
    if not found:
        raise ParameterError(f'{path}: no recording of edge_resnet in it, expected {PREFIX}*{SUFFIX} as latency_monitor writes it')
    columns = ('stamp_ns', *METRICS, *BOARD)
    table = np.array([[frame.get(name) for name in columns] for frame in found['frames']], np.float64).reshape(-1, len(columns))
    simulated = any(entry.get('simulated') for entry in found['board'])
    last = found['drops'][-1] if found['drops'] else {}
    return Run(paths, found['run'][-1] if found['run'] else {}, dict(zip(columns, table.T, strict=True)), found['board'], found['events'],
               {kind: {who: count for who, count in counts.items() if isinstance(count, int)} for kind, counts in last.items() if kind != 'time_ns'},
               simulated, cut_off)
