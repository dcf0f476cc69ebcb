"""Frames that look like the calibration set pass; darkened, colour-shifted and blurred ones don't."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline import calibration
from edge_resnet.pipeline.drift import MIN_FRAMES, PERIOD_S, SUSTAINED_S, DriftMonitor
from edge_resnet.pipeline.preprocessing import Preprocessing, resize
from edge_resnet.tools.dataset import images, read_rgb

SPEC = Preprocessing()


def scaled(*gains):
    return lambda frame: np.clip(frame * np.array(gains), 0, 255).astype(np.uint8)


def blurred(frame):
    return cv2.GaussianBlur(frame, (0, 0), 4)


@pytest.fixture(scope='module')
def scenes():
    """The camera frames of the samples, every other one for calibration and the rest live."""
    frames = [read_rgb(path) for path in images(Path(__file__).resolve().parents[2] / 'samples')]
    return frames[::2], frames[1::2]


@pytest.fixture(scope='module')
def card(scenes):
    found = calibration.statistics([resize(frame, SPEC) for frame in scenes[0]])
    rows = {color: row.round(5).tolist() for color, row in zip(('red', 'green', 'blue'), found.histograms, strict=True)}
    return {'calibration': {'histograms': rows, 'sharpness': round(found.sharpness, 4)}}


def watch(card, frames, seconds=20.0, start_s=0.0, monitor=None):
    monitor = monitor or DriftMonitor.of_card(card, 'card')
    for number in range(round(seconds / PERIOD_S)):
        monitor.see(frames[number % len(frames)], start_s + number * PERIOD_S)
    return monitor


def live(scenes, change=lambda frame: frame):
    return [resize(change(frame), SPEC) for frame in scenes[1]]


def test_frames_like_those_of_the_calibration_are_fine(scenes, card):
    monitor = watch(card, live(scenes))
    assert monitor.drift.exceeded() == []
    assert not monitor.sustained
    assert monitor.drift.levels < 30
    assert monitor.drift.sharpness_percent == pytest.approx(100, abs=25)


@pytest.mark.parametrize(('change', 'said'), [
    (scaled(0.4, 0.4, 0.4), 'brightness'), (scaled(1.3, 1, 0.7), 'colours'), (scaled(0.7, 1, 1.3), 'colours'), (blurred, 'sharpness'),
    (lambda frame: cv2.blur(frame, (21, 1)), 'sharpness')], ids=['darkened', 'warm', 'cold', 'defocused', 'moving'])
def test_a_disturbance_is_told_from_clean_frames_and_named(scenes, card, change, said):
    monitor = watch(card, live(scenes, change))
    assert monitor.sustained
    assert [text.split()[0] for text in monitor.drift.exceeded()] == [said]


def test_a_message_has_value_and_bound(scenes, card):
    drift = watch(card, live(scenes, scaled(0.4, 0.4, 0.4))).drift
    assert drift.exceeded() == [f'brightness is off by {drift.levels:.0f} levels, expected at most 40']


def test_levels_are_how_far_the_values_moved():
    histograms = np.zeros((3, 32))
    histograms[:, 10] = 1
    monitor = DriftMonitor(histograms, 1.0)
    for number in range(MIN_FRAMES):
        monitor.see(np.full((64, 64, 3), (80, 80 + 3 * 8, 80 - 6 * 8), np.uint8), number)
    assert monitor.drift.levels == pytest.approx((0 + 24 + 48) / 3)
    assert monitor.drift.cast_percent == pytest.approx(100 * (107.5 / 35.5 - 1))


def test_nothing_is_said_before_enough_frames_and_a_short_disturbance_is_none(scenes, card):
    dark = live(scenes, scaled(0.4, 0.4, 0.4))
    monitor = watch(card, dark, (MIN_FRAMES - 1) * PERIOD_S)
    assert monitor.drift is None
    monitor.see(dark[0], 100.0)
    assert monitor.drift.exceeded()
    assert not monitor.sustained
    monitor.see(dark[1], 100.0 + SUSTAINED_S)
    assert monitor.sustained


def test_it_recovers_when_the_camera_does_and_forgets_on_reset(scenes, card):
    monitor = watch(card, live(scenes, blurred))
    assert monitor.sustained
    watch(card, live(scenes), 40.0, 20.0, monitor)
    assert not monitor.sustained
    monitor.reset()
    assert monitor.drift is None


def test_a_frame_is_due_twice_a_second():
    monitor = DriftMonitor(np.ones((3, 32)))
    seen = 0
    for now_s in np.arange(0, 10, 1 / 30):
        if monitor.due(now_s):
            monitor.see(np.zeros((32, 32, 3), np.uint8), now_s)
            seen += 1
    assert 18 <= seen <= 20


@pytest.mark.parametrize('size', [(1, 1), (2, 300), (32, 32), (1080, 1920)])
def test_any_size_of_input_and_a_black_card_will_do(size):
    histograms = np.zeros((3, 32))
    histograms[:, 0] = 1
    monitor = DriftMonitor(histograms, 0.5)
    for number in range(20):
        monitor.see(np.full((*size, 3), 255, np.uint8), number)
    assert monitor.drift.levels == pytest.approx(248)
    assert monitor.sustained


@pytest.mark.parametrize('card', [{}, {'calibration': None}, {'calibration': 'none'}, {'calibration': {'count': 3}}])
def test_a_card_without_histograms_has_no_monitor(card):
    assert DriftMonitor.of_card(card, 'card') is None


def test_a_card_without_sharpness_leaves_it_unknown(scenes, card):
    monitor = watch({'calibration': {'histograms': card['calibration']['histograms']}}, live(scenes, blurred))
    assert monitor.drift.sharpness_percent is None
    assert monitor.drift.exceeded() == []


@pytest.mark.parametrize('histograms', [[], {'red': [1] * 32}, {color: [1] * 31 for color in ('red', 'green', 'blue')},
                                        {color: [0] * 32 for color in ('red', 'green', 'blue')}, {'red': 'x', 'green': 'y', 'blue': 'z'},
                                        {color: [float('nan')] * 32 for color in ('red', 'green', 'blue')}])
def test_histograms_that_make_no_sense_are_refused_by_name(histograms):
    with pytest.raises(ModelError, match='tiny: calibration.histograms are not understood, expected 32 shares'):
        DriftMonitor.of_card({'calibration': {'histograms': histograms}}, 'tiny')


@pytest.mark.parametrize('sharpness', ['sharp', -1, 0, float('inf')])
def test_a_sharpness_that_makes_no_sense_is_refused_by_name(card, sharpness):
    with pytest.raises(ModelError, match=r'tiny: calibration.sharpness is .*expected a number above 0'):
        DriftMonitor.of_card({'calibration': {**card['calibration'], 'sharpness': sharpness}}, 'tiny')


def test_sharpness_does_not_depend_on_contrast_or_brightness(scenes):
    for frame in live(scenes):
        changed = np.clip(frame * 0.6 + 30, 0, 255).astype(np.uint8)
        assert calibration.sharpness(changed) == pytest.approx(calibration.sharpness(frame), rel=0.25)
        assert calibration.sharpness(blurred(frame)) < 0.3 * calibration.sharpness(frame)
