"""What is said about calibration frames: their range, near duplicates, and why they may be poor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.pipeline.calibration import ALIKE_LEVELS, concerns, distinct, statistics, thumbnail


def flat(grey: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), grey, np.uint8)


def scenes(count: int, low: int = 0, high: int = 256, seed: int = 0) -> list[np.ndarray]:
    """Different scenes: 8x8 blocks of random colours from ``low`` to ``high``."""
    blocks = np.random.default_rng(seed).integers(low, high, (count, 8, 8, 3))
    return list(blocks.repeat(4, 1).repeat(4, 2).astype(np.uint8))


def test_figures_by_hand():
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:2] = (255, 100, 5)  # brightness 120
    found = statistics([frame, frame])
    assert (found.count, found.distinct) == (2, 1)
    assert (found.brightness_mean, found.brightness_std) == (60, 60)
    assert (found.brightness_p1, found.brightness_p99) == (0, 120)
    assert found.clipped_share == pytest.approx((8 * 1 + 8 * 3) / 48)  # the upper half's reds, all of the lower half
    red, green, blue = found.histograms
    assert (red[0], red[31]) == (0.5, 0.5)
    assert (green[0], green[100 // 8]) == (0.5, 0.5)
    assert blue[0] == 1.0


@settings(max_examples=50, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40), count=st.integers(1, 4), seed=st.integers(0, 9))
def test_any_frames_have_sound_figures(h, w, count, seed):
    frames = list(np.random.default_rng(seed).integers(0, 256, (count, h, w, 3)).astype(np.uint8))
    found = statistics(frames)
    np.testing.assert_allclose(found.histograms.sum(axis=1), 1)
    assert found.brightness_p1 <= found.brightness_mean <= found.brightness_p99 or h * w < 200
    assert found.brightness_mean == pytest.approx(np.mean(frames), abs=0.5)
    assert 1 <= found.distinct <= count


def test_a_thumbnail_is_the_mean_of_its_cells():
    frame = np.arange(16 * 16 * 3, dtype=np.int64).reshape(16, 16, 3) % 256
    expected = frame.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(frame.astype(np.uint8)), expected)


@pytest.mark.parametrize('shape', [(1, 1, 3), (3, 5, 3), (8, 8, 3), (9, 100, 3)])
def test_a_thumbnail_of_any_size(shape):
    np.testing.assert_allclose(thumbnail(np.full(shape, 77, np.uint8)), np.full((8, 8, 3), 77))


def test_sensor_noise_is_no_difference_and_another_scene_is():
    rng = np.random.default_rng(1)
    base = scenes(2)
    noisy = [np.clip(base[0] + rng.normal(0, 6, base[0].shape), 0, 255).astype(np.uint8) for _ in range(5)]
    assert distinct(thumbnail(frame) for frame in [base[0], *noisy, base[1], *noisy]) == [0, 6]


@pytest.mark.parametrize(('step', 'kept'), [(ALIKE_LEVELS - 1, [0, 2, 4]), (ALIKE_LEVELS, [0, 1, 2, 3, 4])])
def test_a_slow_change_is_compared_with_what_was_kept(step, kept):
    assert distinct(thumbnail(flat(round(100 + number * step))) for number in range(5)) == kept


def test_good_frames_raise_no_concern():
    assert concerns(statistics(scenes(100))) == []


@pytest.mark.parametrize(('frames', 'expected'), [
    (scenes(10), 'few frames: 10 different ones of 10, 60 or more are better'),
    (scenes(70) * 3, 'frames too alike: 67% are within 3 of 255 levels of another, at most 50% is better'),
    (scenes(80, 0, 30), 'frames too dark: 99 % of the pixels are below'),
    (scenes(80, 200, 256), 'frames too bright: 99 % of the pixels are above'),
    ([np.where(frame > 127, 255, frame) for frame in scenes(80)], 'range clipped: 51% of the values are 0 or 255, at most 25% is better'),
], ids=['few', 'alike', 'dark', 'bright', 'clipped'])
def test_poor_frames_are_told_with_numbers(frames, expected):
    (found,) = concerns(statistics(frames))
    assert found.startswith(expected)


def test_dark_frames_that_cost_accuracy_are_noticed():
    """At a tenth of their brightness, frames cost 25 points of accuracy; nothing else about them is odd."""
    assert any('too dark' in concern for concern in concerns(statistics([(frame // 10).astype(np.uint8) for frame in scenes(100)])))
