"""The capture thread: the newest frame only, nothing lost in silence, and a source that comes back is used again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from edge_resnet.exceptions import FrameError, SourceError
from edge_resnet.hardware import grabber as module
from edge_resnet.hardware.cameras import SKIPPED, Frame
from edge_resnet.hardware.grabber import FakeCamera, FrameGrabber

PATIENCE_S = 20.0  # for what takes milliseconds on an idle machine


def frame(number: int, age_s: float = 0.0) -> Frame:
    return Frame(np.full((2, 2, 3), number, np.uint8), age_s)


class Script:
    """A source that gives what it was told: frames, None for the end, or an error to raise. ``live``: the grabber does not pace it."""

    live = True

    def __init__(self, *items: Frame | Exception | None) -> None:
        self._items: Iterator[Frame | Exception | None] = iter(items)
        self.closed = threading.Event()

    def read(self) -> Frame | None:
        item = next(self._items)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed.set()


class Patient(FrameGrabber):
    """Notes the pauses instead of waiting for them."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.pauses: list[float] = []

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        self.pauses.append(round(seconds, 3))


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The grabber's steady clock; it stands still unless ``now_s`` is set."""
    clock = SimpleNamespace(now_s=100.0, monotonic=lambda: clock.now_s)
    monkeypatch.setattr(module, 'time', clock)
    return clock


def until(condition: Callable[[], bool]) -> None:
    event, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        event.wait(0.002)


def grab(*sources: Script | Exception, clock_ns: Callable[[], int] = lambda: 0, **options: object) -> Patient:
    """A grabber that has opened ``sources`` one after the other; the last one must come to its end."""
    waiting = iter(sources)

    def open_next() -> Script:
        source = next(waiting)
        if isinstance(source, Exception):
            raise source
        return source

    grabber = Patient(open_next, 30.0, clock_ns, **options)
    grabber.start()
    assert sources[-1].closed.wait(PATIENCE_S)
    return grabber


def test_the_mailbox_holds_the_newest_frame_and_tells_what_it_replaced():
    replaced = []
    grabber = grab(Script(frame(1), frame(2), frame(3), None), on_frame=replaced.append)
    assert grabber.take().frame.image[0, 0, 0] == 3
    assert (grabber.captured, replaced) == (3, [False, True, True])
    assert grabber.take() is None


def test_a_frame_that_was_skipped_leaves_no_older_one_behind():
    unused = []
    grabber = grab(Script(frame(1), SKIPPED, SKIPPED, frame(2), SKIPPED, None), on_frame=unused.append)
    assert grabber.take() is None
    assert (grabber.captured, unused) == (5, [0, 2, 1, 0, 2])


def test_a_frame_that_was_taken_is_not_told_as_replaced():
    taken = []
    grabber: FrameGrabber

    def take(replaced: bool) -> None:
        taken.append((int(grabber.take().frame.image[0, 0, 0]), replaced))

    source = Script(frame(1), frame(2), frame(3), None)
    grabber = Patient(lambda: source, 30.0, lambda: 0, on_frame=take)
    grabber.start()
    assert source.closed.wait(PATIENCE_S)
    assert taken == [(1, False), (2, False), (3, False)]


def test_the_stamp_is_the_clocks_time_minus_the_frames_age():
    """A frame that waited in the driver for 20 ms was captured 20 ms ago."""
    grabber = grab(Script(frame(1, age_s=0.02), None), clock_ns=lambda: 1_700_000_000_000_000_000)
    assert grabber.take().stamp_ns == 1_700_000_000_000_000_000 - 20_000_000


def test_the_end_of_a_source():
    source = Script(frame(1), None)
    grabber = grab(source)
    assert grabber.finished
    assert grabber.check()
    assert (grabber.error, grabber.failures) == ('', 0)


def test_reopened_with_growing_delay_until_it_is_back():
    gone = [SourceError('camera 0: unplugged')] * 7
    grabber = grab(*gone, Script(frame(5), None))
    assert grabber.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert grabber.failures == 7
    assert grabber.error == ''
    assert grabber.take().frame.image[0, 0, 0] == 5


def test_after_a_good_time_the_delay_starts_small_again():
    """A camera that was away for long last week is not punished for it today."""
    grabber = grab(*[SourceError('away')] * 4, Script(frame(1), SourceError('unplugged')), Script(frame(2), None))
    assert grabber.pauses == [0.1, 0.2, 0.4, 0.8, 0.1]


def test_a_source_that_opens_but_gives_nothing_is_not_hammered():
    grabber = grab(*[Script(SourceError('no frame')) for _ in range(5)], Script(None))
    assert grabber.pauses == [0.1, 0.2, 0.4, 0.8, 1.6]


@pytest.mark.parametrize('error', [SourceError('camera 0: no frame'), ValueError('camera 0: no frame'), RuntimeError('camera 0: no frame')])
def test_any_error_closes_and_reopens(error):
    """cv2.error is no OSError; a capture thread that dies of it would be a silent fault."""
    broken, good = Script(error), Script(frame(1), None)
    grabber = grab(broken, good)
    assert broken.closed.is_set()
    assert grabber.captured == 1
    assert grabber.failures == 1


def test_one_frame_that_can_not_be_read_is_told_and_the_source_goes_on():
    source = Script(frame(1), FrameError('camera b.png: not a readable image'), None)
    grabber = grab(source)
    assert (grabber.captured, grabber.failures, grabber.error) == (1, 1, 'camera b.png: not a readable image')
    assert grabber.finished


def test_the_reason_is_kept_while_there_are_no_frames():
    stop = threading.Event()
    grabber = Patient(lambda: (_ for _ in ()).throw(SourceError('camera /dev/video7: there is no such device')), 30.0, lambda: 0)
    grabber._wait = lambda *_: stop.set() or grabber._stop.set()  # one try
    grabber.start()
    assert stop.wait(PATIENCE_S)
    assert grabber.error == 'camera /dev/video7: there is no such device'


@pytest.mark.parametrize('image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_a_frame_that_is_not_colour_is_refused(image):
    grabber = grab(Script(Frame(image)), Script(None))
    assert grabber.captured == 0
    assert grabber.failures == 1


def test_files_are_played_at_the_frame_rate(clock):
    source = Script(frame(1), frame(2), frame(3), None)
    source.live = False
    grabber = grab(source)
    assert grabber.pauses == [0.0, 0.033, 0.067]  # the clock stands still, so the due times add up


class Paced(FrameGrabber):
    """Lets the clock go on instead of waiting."""

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        module.time.now_s += seconds


def played_ms(source: Script, clock: SimpleNamespace) -> list[int]:
    """When the frames of a file were captured, from its start on."""
    stamps: list[int] = []
    begun_s, source.live = clock.now_s, False
    grabber = Paced(lambda: source, 30.0, lambda: stamps.append(round((clock.now_s - begun_s) * 1000)) or 0)
    grabber.start()
    until(lambda: grabber.finished)
    return stamps


@pytest.mark.parametrize(('loads_s', 'stamps_ms'), [(0.02, [0, 33, 67, 100]), (0.05, [0, 50, 67, 100]), (0.15, [0, 150, 150, 183])])
def test_a_file_that_takes_long_to_load_makes_none_late_but_itself_and_only_beyond_a_period(clock, loads_s, stamps_ms):
    class Slow(Script):
        loaded = 0

        def read(self):
            clock.now_s += loads_s if self.loaded == 1 else 0.0
            self.loaded += 1
            return super().read()

    assert played_ms(Slow(frame(1), frame(2), frame(3), frame(4), None), clock)[:4] == stamps_ms


def test_a_picture_that_cannot_be_read_takes_its_time_and_no_other_one(clock):
    bad = FrameError('camera bad.png: not a readable image')
    assert played_ms(Script(frame(1), bad, bad, frame(2), frame(3), None), clock)[:3] == [0, 100, 133]


# With the shipped fake and real threads

@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    camera = FakeCamera(frame(9))
    yield camera
    camera.release.set()


def started(camera: FakeCamera, **options: object) -> tuple[FrameGrabber, threading.Semaphore]:
    """A running grabber, and a semaphore that counts its frames."""
    frames = threading.Semaphore(0)
    grabber = FrameGrabber(camera.open, 500.0, lambda: 0, on_frame=lambda replaced: frames.release(), **options)
    grabber.start()
    return grabber, frames


def test_unplugged_and_back(fake, monkeypatch):
    monkeypatch.setattr(module, 'FIRST_RETRY_S', 0.001)
    grabber, frames = started(fake)
    for _ in range(10):
        assert frames.acquire(timeout=PATIENCE_S)
        failures, fake.failing = grabber.failures, True
        until(lambda: grabber.failures > failures)  # noqa: B023
        assert grabber.error == 'camera fake: unplugged'
        fake.failing = False
        while frames.acquire(blocking=False):
            pass
        assert frames.acquire(timeout=PATIENCE_S)
    grabber.stop()
    assert fake.opened == fake.closed >= 11


class HangingCamera(FakeCamera):
    """Says when it hangs; what a read gives that hung shows 66."""

    def __init__(self, image: Frame) -> None:
        super().__init__(image)
        self.hung = threading.Event()

    def read(self) -> Frame | None:
        if self.hanging.is_set():
            self.hung.set()
            self.release.wait()
            return frame(66)
        return super().read()


def test_a_hanging_read_is_left_behind(clock):
    camera, frames, seen = HangingCamera(frame(9)), threading.Semaphore(0), []
    grabber = FrameGrabber(camera.open, 500.0, lambda: 0, on_frame=lambda replaced: seen.append(grabber.take()) or frames.release(), hang_s=1.5)
    grabber.start()
    assert frames.acquire(timeout=PATIENCE_S)
    assert grabber.check()
    camera.hanging.set()
    assert camera.hung.wait(PATIENCE_S)
    camera.hanging.clear()  # a thread that hangs stays so; the next one finds the camera well
    left_behind = grabber._thread
    clock.now_s += 1.4
    assert grabber.check()
    clock.now_s += 0.2
    while frames.acquire(blocking=False):
        pass
    assert not grabber.check()
    assert grabber.hangs == 1
    assert frames.acquire(timeout=PATIENCE_S)
    assert (camera.opened, camera.closed) == (2, 0)
    camera.release.set()
    left_behind.join(PATIENCE_S)
    assert not left_behind.is_alive()
    grabber.stop(PATIENCE_S)
    assert camera.closed == 2
    assert {int(taken.frame.image[0, 0, 0]) for taken in seen if taken} == {9}  # its late frame, of whatever age, is not used


def test_a_hang_is_told(clock):
    camera = HangingCamera(frame(9))
    camera.hanging.set()
    grabber, _ = started(camera, hang_s=1.5)
    assert camera.hung.wait(PATIENCE_S)
    clock.now_s += module.FIRST_HANG_S - 0.1
    assert grabber.check(), 'the first frame may take longer'
    clock.now_s += 0.2
    assert not grabber.check()  # the new thread hangs as well
    assert grabber.error == 'the source hung for 3.1 s, opened anew'
    assert grabber.check()
    camera.release.set()
    grabber.stop(PATIENCE_S)


def test_opening_may_take_longer_than_reading(clock):
    """A stream may need seconds to open; that is no hang."""
    opening, go = threading.Event(), threading.Event()

    def slow_open() -> Script:
        opening.set()
        go.wait()
        return Script(None)

    grabber = FrameGrabber(slow_open, 30.0, lambda: 0)
    grabber.start()
    assert opening.wait(PATIENCE_S)
    clock.now_s += module.OPEN_HANG_S - 0.1
    assert grabber.check()
    clock.now_s += 0.2
    assert not grabber.check()
    go.set()
    grabber.stop(PATIENCE_S)


def test_stop_releases_the_source_and_forgets_the_frame(fake):
    grabber, frames = started(fake)
    assert frames.acquire(timeout=PATIENCE_S)
    grabber.stop(PATIENCE_S)
    assert fake.closed == 1
    assert grabber.take() is None
    captured = grabber.captured
    grabber.stop()
    grabber.start()
    until(lambda: grabber.captured > captured)
    grabber.stop(PATIENCE_S)
    assert fake.opened == fake.closed == 2
