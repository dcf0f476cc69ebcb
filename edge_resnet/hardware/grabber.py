"""Takes frames from a camera source on a thread of its own and keeps the newest one only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_resnet.exceptions import FrameError, SourceError
from edge_resnet.hardware.cameras import SKIPPED, CameraSource, Frame

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 2.0
# A read that takes longer hangs; opening a device or a stream, and its first frame, may take seconds.
HANG_S, FIRST_HANG_S, OPEN_HANG_S = 1.0, 3.0, 10.0


@dataclass(frozen=True)
class StampedFrame:
    """A frame and when it was captured, in nanoseconds of the clock that the grabber was given."""

    frame: Frame
    stamp_ns: int


class FrameGrabber:
    """Opens the source, reads it at its pace, reopens it with growing delay when it fails.

    The mailbox holds one frame: ``take`` empties it, and a newer frame replaces one that nobody took. ``on_frame`` is called from the
    capture thread after each frame, and told how many went unused: one that it replaced, itself if it was skipped. A read that
    hangs is left behind by ``check``, which starts over on a new thread.
    """

    def __init__(self, open_source: Callable[[], CameraSource], framerate: float, clock_ns: Callable[[], int],
                 on_frame: Callable[[int], None] = lambda unused: None, hang_s: float = HANG_S) -> None:
        self._open_source, self._period_s, self._clock_ns, self._on_frame = open_source, 1 / framerate, clock_ns, on_frame
        self._hang_s = max(hang_s, 3 * self._period_s)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._mailbox: StampedFrame | None = None
        self._alive_at = self._patience_s = 0.0
        self.captured = self.failures = self.hangs = 0
        self.error = ''  # why there are no frames now
        self.finished = False  # a source that does not loop came to its end

    def start(self) -> None:
        self._stop = threading.Event()
        self._alive_at, self._patience_s, self.error, self.finished = time.monotonic(), OPEN_HANG_S, '', False
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name='capture', daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Stop capturing and release the source; a thread that hangs in a read is left to end by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None
        with self._lock:
            self._mailbox = None

    def take(self) -> StampedFrame | None:
        with self._lock:
            frame, self._mailbox = self._mailbox, None
        return frame

    def check(self) -> bool:
        """False when the source hangs in a read (or in opening); it is then opened anew."""
        if self._thread is None or self.finished or time.monotonic() - self._alive_at < self._patience_s:
            return True
        self.hangs += 1
        self._stop.set()
        hung_for = time.monotonic() - self._alive_at
        self.start()
        self.error = f'the source hung for {hung_for:.1f} s, opened anew'
        return False

    def _run(self, stop: threading.Event) -> None:
        retry_s = FIRST_RETRY_S
        while not stop.is_set():
            source, captured = None, self.captured
            try:
                self._patience_s = OPEN_HANG_S
                source = self._open_source()
                if stop.is_set():
                    return
                self._patience_s, self._alive_at = max(FIRST_HANG_S, self._hang_s), time.monotonic()
                self._read_all(source, stop)
                if self.finished:
                    return
            except (OSError, ValueError) as error:
                self._failed(stop, str(error))
            except Exception as error:  # a driver may raise anything (cv2.error); a capture thread that dies is a silent fault
                self._failed(stop, f'{type(error).__name__}: {error}')
            finally:
                if source is not None:
                    source.close()
            retry_s = FIRST_RETRY_S if self.captured > captured else retry_s  # it was there in between
            self._wait(stop, retry_s)
            retry_s = min(LAST_RETRY_S, 2 * retry_s)

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        if not stop.is_set():
            self._patience_s, self._alive_at = self._hang_s, time.monotonic() + seconds
        stop.wait(seconds)

    def _failed(self, stop: threading.Event, error: str) -> None:
        if not stop.is_set():
            self.failures += 1
            self.error = error

    def _read_all(self, source: CameraSource, stop: threading.Event) -> None:
        due = time.monotonic()
        while not stop.is_set():
            try:
                frame = source.read()
            except FrameError as error:
                self._failed(stop, str(error))
                self._wait(stop, self._period_s)
                due += self._period_s
                continue
            if frame is not None and not source.live:  # read ahead, so that loading a picture doesn't make it late
                self._wait(stop, max(0.0, due - time.monotonic()))
                due = max(due + self._period_s, time.monotonic())  # at most two at once after a pause
            stamp_ns = self._clock_ns()
            if stop.is_set():
                break  # stopped, or given up while it hung
            if frame is None:
                self.finished = True
                break
            if frame.image.ndim != 3 or frame.image.shape[2] != 3:
                raise SourceError(f'camera: frame of shape {frame.image.shape}, expected (height, width, 3)')
            with self._lock:
                unused = (self._mailbox is not None) + (frame is SKIPPED)
                self._mailbox = StampedFrame(frame, stamp_ns - round(frame.age_s * 1e9)) if frame is not SKIPPED else None
                self.captured += 1
            self.error, self._patience_s, self._alive_at = '', self._hang_s, time.monotonic()
            self._on_frame(unused)


class FakeCamera:
    """A source for tests: gives ``frame`` at the grabber's pace until told to fail, hang or end."""

    live = False

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.failing = self.ended = False
        self.hanging = threading.Event()
        self.release = threading.Event()
        self.opened = self.closed = 0

    def open(self) -> FakeCamera:
        if self.failing:
            raise SourceError('camera fake: unplugged')
        self.opened += 1
        return self

    def read(self) -> Frame | None:
        if self.hanging.is_set():
            self.release.wait()
        if self.failing:
            raise SourceError('camera fake: unplugged')
        return None if self.ended else self.frame

    def close(self) -> None:
        self.closed += 1
