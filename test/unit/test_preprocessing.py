"""What the network gets to see: golden values by hand, for each way to fit an image."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.preprocessing import COLOR_ORDERS, RESIZE_MODES, Preprocessing, normalize, resize


def columns(*values: int, height: int) -> np.ndarray:
    """(height, len(values), 3) uint8, each column of one grey."""
    return np.repeat(np.repeat(np.array(values, np.uint8)[None, :, None], height, 0), 3, 2)


def fitted(image: np.ndarray, mode: str, width: int, height: int) -> list[list[int]]:
    """The first channel after ``resize``; the others must be alike."""
    result = resize(image, Preprocessing(width, height, mode))
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8
    assert (result == result[..., :1]).all()
    return result[..., 0].tolist()


def test_stretch_averages_areas():
    assert fitted(columns(0, 100, 200, 40, height=2), 'stretch', 2, 2) == [[50, 120]] * 2


def test_stretch_uses_the_whole_image():
    assert fitted(columns(0, 0, 0, 0, 255, 255, 255, 255, height=2), 'stretch', 2, 2) == [[0, 255]] * 2


def test_enlarging_is_linear():
    assert fitted(columns(0, 100, height=2), 'stretch', 4, 2) == [[0, 25, 75, 100]] * 2


def test_center_crop_of_a_wide_image_drops_left_and_right_alike():
    assert fitted(columns(1, 2, 3, 4, 5, 6, height=2), 'center_crop', 2, 2) == [[3, 4]] * 2


def test_center_crop_of_a_tall_image_drops_top_and_bottom_alike():
    tall = columns(1, 2, 3, 4, 5, 6, height=2).transpose(1, 0, 2)
    assert fitted(tall, 'center_crop', 2, 2) == [[3, 3], [4, 4]]


def test_center_crop_keeps_the_aspect_ratio_of_the_network():
    image = columns(0, 10, 10, 20, 20, 30, 30, 40, 40, 50, height=4)
    assert fitted(image, 'center_crop', 4, 2) == [[10, 20, 30, 40]] * 2


def test_letterbox_of_a_wide_image_pads_above_and_below():
    assert fitted(columns(10, 10, 200, 200, height=2), 'letterbox', 4, 4) == [[114] * 4, [10, 10, 200, 200], [10, 10, 200, 200], [114] * 4]


def test_letterbox_of_a_tall_image_pads_left_and_right():
    tall = columns(10, 200, height=1).transpose(1, 0, 2)
    assert fitted(tall, 'letterbox', 4, 2) == [[114, 10, 114, 114], [114, 200, 114, 114]]


def areas(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """What exact averages over the areas of the pixels would be."""
    def shares(of: int, to: int) -> np.ndarray:
        begins, step = np.arange(of)[None], of / to
        low, high = np.arange(to)[:, None] * step, (np.arange(to)[:, None] + 1) * step
        return np.clip(np.minimum(high, begins + 1) - np.maximum(low, begins), 0, 1) / step
    return np.einsum('yh,hwc,xw->yxc', shares(image.shape[0], height), image.astype(np.float64), shares(image.shape[1], width), optimize=True)


@pytest.mark.parametrize(('w', 'h'), [(320, 240), (640, 480), (800, 600), (1280, 720), (1366, 768), (1920, 1080), (448, 672), (100, 480)])
def test_any_camera_size_is_within_a_level_of_the_average_over_areas(root, w, h):
    photo = cv2.resize(cv2.imread(str(root / 'samples' / '06.jpg')), (w, h), interpolation=cv2.INTER_LINEAR)
    result, exact = resize(photo, Preprocessing()), areas(photo, 224, 224)
    assert np.abs(result - exact).mean() < 1.0
    assert abs(result.mean() - exact.mean()) < 0.3


@pytest.mark.parametrize('side', [224, 256])
@pytest.mark.parametrize(('w', 'h'), [(320, 240), (335, 251), (424, 240), (447, 335), (640, 400), (640, 480), (800, 600), (1280, 720), (1640, 1232)])
def test_a_line_of_one_pixel_is_seen_wherever_it_is(w, h, side):
    for turned in (False, True):
        length, light = (h if turned else w), []
        if length < side:
            continue
        for at in range(length // 3, length // 3 + 40):
            image = np.zeros((h, w, 3), np.uint8)
            image.swapaxes(0, 1)[at if not turned else slice(None), at if turned else slice(None)] = 255
            result = resize(image, Preprocessing(side, side))[..., 0]
            light.append(float((result[:, side // 2] if turned else result[side // 2]).sum()) / (255 * side / length))
        assert min(light) > 0.4
        assert max(light) < 1.6
        assert np.mean(light) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize('mode', RESIZE_MODES)
def test_an_image_of_the_right_size_is_left_as_it_is(mode):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(resize(image, Preprocessing(7, 5, mode)), image)


@pytest.mark.parametrize('mode', RESIZE_MODES)
@settings(max_examples=100, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), height=st.integers(1, 40), width=st.integers(1, 40), grey=st.integers(0, 255))
def test_any_size_fits_and_a_flat_image_stays_flat(mode, h, w, height, width, grey):
    result = resize(np.full((h, w, 3), grey, np.uint8), Preprocessing(width, height, mode))
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8
    allowed = {grey} if mode != 'letterbox' else {grey, 114}
    assert set(np.unique(result)) <= allowed
    assert grey in result


@pytest.mark.parametrize('mode', RESIZE_MODES)
def test_a_view_that_is_not_contiguous_gives_the_same(mode):
    """Cropped and padded camera images are views."""
    whole = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    view, spec = whole[3:35, 5:50], Preprocessing(16, 16, mode)
    np.testing.assert_array_equal(resize(view, spec), resize(view.copy(), spec))


@pytest.mark.parametrize('mode', RESIZE_MODES)
def test_channels_do_not_mix(mode):
    image = np.zeros((30, 50, 3), np.uint8)
    image[..., 2] = 77
    result = resize(image, Preprocessing(20, 20, mode))
    middle = result[10, 10].tolist()
    assert middle == [0, 0, 77]


def test_normalize_by_hand():
    spec = Preprocessing(1, 1, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    assert normalize(np.uint8([[[12, 16, 255]]]), spec).tolist() == [[[1.0, -1.0, 45.0]]]


def test_mean_and_std_belong_to_the_channels_of_the_model():
    """A Caffe-style model: blue first, ImageNet's means in that order."""
    spec = Preprocessing(1, 1, color_order='bgr', mean=(103.939, 116.779, 123.68), std=(1.0,) * 3)
    result = normalize(np.uint8([[[200, 100, 50]]]), spec)  # red 200, green 100, blue 50
    np.testing.assert_allclose(result, [[[50 - 103.939, 100 - 116.779, 200 - 123.68]]], rtol=1e-6)
    assert result.dtype == np.float32


@pytest.mark.parametrize('order', COLOR_ORDERS)
def test_the_usual_range_is_minus_one_to_one(order):
    ends = normalize(np.uint8([[[0, 0, 0], [255, 255, 255]]]), Preprocessing(color_order=order))
    assert ends.tolist() == [[[-1.0] * 3, [1.0] * 3]]


@pytest.mark.parametrize(('wrong', 'message'), [
    ({'width': 0}, 'width is 0, expected 1 to 4096 px'),
    ({'height': 4097}, 'height is 4097, expected 1 to 4096 px'),
    ({'resize': 'fit'}, "resize is 'fit', expected one of stretch, center_crop, letterbox"),
    ({'color_order': 'RGB'}, "color_order is 'RGB', expected one of rgb, bgr"),
    ({'mean': (0.0, 0.0)}, r'mean is \[0.0, 0.0\], expected three finite numbers'),
    ({'mean': (0.0, 0.0, math.nan)}, 'mean is .*nan'),
    ({'std': (1.0, math.inf, 1.0)}, 'std is .*inf'),
    ({'std': (1.0, 0.0, 1.0)}, r'std is \[1.0, 0.0, 1.0\], expected numbers above 0'),
])
def test_bad_settings_are_refused_by_name(wrong, message):
    with pytest.raises(ParameterError, match=message):
        Preprocessing(**wrong)
