"""Which frames are passed over, and when frames are looked for."""

import cv2
import numpy as np
import pytest

from edge_resnet.pipeline.selection import Schedule, Selection


def scene(number, size=64):
    rng = np.random.default_rng(number)
    blocks = rng.integers(40, 220, (8, 8, 3)).repeat(size // 8, 0).repeat(size // 8, 1)
    return np.clip(blocks + rng.normal(0, 5, (size, size, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def selection():
    """A selection that has kept ten scenes."""
    selection = Selection()
    for number in range(10):
        assert selection.judge(scene(number)) == ''
        selection.keep(scene(number))
    return selection


def test_a_new_scene_is_kept(selection):
    assert selection.judge(scene(99)) == ''


def test_a_camera_that_repeats_a_frame_bit_by_bit_is_frozen(selection):
    assert selection.judge(scene(99)) == ''
    assert selection.judge(scene(99)) == 'frozen'


def test_frozen_is_told_though_the_caller_uses_one_buffer_for_all_frames(selection):
    buffer = scene(99)
    selection.judge(buffer)
    buffer[:] = scene(98)
    assert selection.judge(buffer) == ''


def test_the_same_scene_with_other_noise_is_alike(selection):
    again = np.clip(scene(3) + np.random.default_rng(0).normal(0, 5, (64, 64, 3)), 0, 255).astype(np.uint8)
    assert selection.judge(again) == 'alike'


def test_a_frame_at_a_tenth_of_its_brightness_is_dark_and_one_at_four_tenths_is_not(selection):
    assert selection.judge((scene(99) * 0.1).astype(np.uint8)) == 'dark'
    assert selection.judge((scene(99) * 0.4).astype(np.uint8)) == ''


def test_a_light_in_the_night_is_not_dark():
    night = np.random.default_rng(0).integers(0, 6, (64, 64, 3)).astype(np.uint8)
    night[20:28, 30:38] = (230, 40, 30)
    assert Selection().judge(night) == ''


def test_defocus_and_motion_in_either_direction_are_blurred(selection):
    assert selection.judge(cv2.GaussianBlur(scene(99), (0, 0), 2)) == 'blurred'
    assert selection.judge(cv2.blur(scene(98), (9, 1))) == 'blurred'
    assert selection.judge(cv2.blur(scene(97), (1, 9))) == 'blurred'


def test_a_soft_lens_is_measured_by_its_own_frames():
    selection = Selection()
    for number in range(20):
        soft = cv2.GaussianBlur(scene(number), (0, 0), 2)
        assert selection.judge(soft) == ''
        selection.keep(soft)


def test_a_frame_without_detail_is_blurred_from_the_start():
    assert Selection().judge(np.full((64, 64, 3), 128, np.uint8)) == 'blurred'


def looked_at(schedule, count, times, refuse=lambda number: False):
    """The times at which a frame was kept, those of ``refuse`` being passed over."""
    kept = []
    for number, now_s in enumerate(times):
        if len(kept) < count and schedule.due(now_s) and not refuse(number):
            kept.append(now_s)
            schedule.kept()
    return kept


def test_one_frame_is_kept_in_each_slot_of_the_time():
    kept = looked_at(Schedule(10, 100.0, 200.0, 0.0, 7), 10, np.arange(100, 200, 0.1))
    assert [int(now_s - 100) // 10 for now_s in kept] == list(range(10))


def test_moments_are_irregular_but_the_same_for_the_same_seed():
    times = np.arange(0, 1000, 0.1)
    kept = looked_at(Schedule(100, 0, 1000, 0.0, 7), 100, times)
    assert kept == looked_at(Schedule(100, 0, 1000, 0.0, 7), 100, times)
    assert kept != looked_at(Schedule(100, 0, 1000, 0.0, 8), 100, times)
    assert np.ptp(np.mod(kept, 10)) > 4, 'not in step with a scene of a period of 10 s'


def test_frames_that_were_passed_over_are_made_up_for():
    kept = looked_at(Schedule(10, 0, 100, 0.0, 7), 10, np.arange(0, 100, 0.5), refuse=lambda number: number < 100)
    assert len(kept) == 10
    assert kept[0] == 50


def test_as_many_images_as_frames_are_all_looked_at():
    assert len(looked_at(Schedule(20, 0, 20, 0.0, 7), 20, np.arange(20) + 0.5)) == 20


def test_there_is_an_interval_between_two_looks_kept_or_not():
    schedule = Schedule(1000, 0, None, 2.0, 7)
    looks = [now_s for now_s in np.arange(0, 20, 0.25) if schedule.due(now_s)]
    assert looks == list(np.arange(0, 20, 2.0))
