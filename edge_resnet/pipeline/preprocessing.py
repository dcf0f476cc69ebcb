"""From a camera's RGB image to the network's input image: the one function that runtime, calibration and tools share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_resnet.exceptions import ParameterError

RESIZE_MODES = ('stretch', 'center_crop', 'letterbox')
COLOR_ORDERS = ('rgb', 'bgr')
MAX_LINEAR = 1.5  # times smaller: a line of one pixel then keeps 0.4 of its light or more
LETTERBOX_GREY = 114  # the padding value of the YOLO family, near the mean of natural images


@dataclass(frozen=True)
class Preprocessing:
    """What a model was trained on, as its card says it. ``mean`` and ``std`` are per channel, in 0-255 units."""

    width: int = 224
    height: int = 224
    resize: str = 'stretch'
    color_order: str = 'rgb'
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self) -> None:
        for name, value in (('width', self.width), ('height', self.height)):
            if not 1 <= value <= 4096:
                raise ParameterError(f'{name} is {value}, expected 1 to 4096 px')
        if self.resize not in RESIZE_MODES:
            raise ParameterError(f'resize is {self.resize!r}, expected one of {", ".join(RESIZE_MODES)}')
        if self.color_order not in COLOR_ORDERS:
            raise ParameterError(f'color_order is {self.color_order!r}, expected one of {", ".join(COLOR_ORDERS)}')
        for name, values in (('mean', self.mean), ('std', self.std)):
            if len(values) != 3 or not np.isfinite(values).all():
                raise ParameterError(f'{name} is {list(values)}, expected three finite numbers')
        if min(self.std) <= 0:
            raise ParameterError(f'std is {list(self.std)}, expected numbers above 0')


def _scaled(image: np.ndarray, width: int, height: int) -> np.ndarray:
    import cv2  # here, so that nodes which only need the numbers above don't load OpenCV

    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    # Averaging areas keeps thin things from aliasing, and is quick over whole pixels: as many as fit, at most half a pixel of the result cut off
    # at each edge. Two neighbours will do for what is left, unless that is much.
    columns, rows = max(1, w // width), max(1, h // height)
    if max(w // columns / width, h // rows / height) > MAX_LINEAR:
        image = cv2.resize(image, (min(width, w), min(height, h)), interpolation=cv2.INTER_AREA)
    elif columns > 1 or rows > 1:
        across, down, left, top = w // columns, h // rows, w % columns // 2, h % rows // 2
        image = cv2.resize(image[top:top + down * rows, left:left + across * columns], (across, down), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize(image: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """Fit ``image``, (H, W, 3) uint8, into the network's (spec.height, spec.width, 3) uint8, in the same colour order.

    ``stretch`` ignores the aspect ratio, ``center_crop`` cuts the largest centred window of the network's aspect ratio,
    ``letterbox`` keeps everything and pads with grey. May return ``image`` itself when nothing has to change.
    """
    h, w = image.shape[:2]
    if spec.resize == 'stretch':
        return _scaled(image, spec.width, spec.height)
    if spec.resize == 'center_crop':
        crop_w = min(w, max(1, round(h * spec.width / spec.height)))
        crop_h = min(h, max(1, round(w * spec.height / spec.width)))
        top, left = (h - crop_h) // 2, (w - crop_w) // 2
        return _scaled(image[top:top + crop_h, left:left + crop_w], spec.width, spec.height)
    ratio = min(spec.width / w, spec.height / h)
    inner_w, inner_h = max(1, min(spec.width, round(w * ratio))), max(1, min(spec.height, round(h * ratio)))
    top, left = (spec.height - inner_h) // 2, (spec.width - inner_w) // 2
    padded = np.full((spec.height, spec.width, 3), LETTERBOX_GREY, np.uint8)
    padded[top:top + inner_h, left:left + inner_w] = _scaled(image, inner_w, inner_h)
    return padded


def normalize(image: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """The real-valued network input for an RGB ``image``: (H, W, 3) uint8 -> (H, W, 3) float32, (x - mean) / std in the
    model's colour order. The quantised path tables this same arithmetic, see ``quantization.input_table``."""
    ordered = image[..., ::-1] if spec.color_order == 'bgr' else image
    return (ordered.astype(np.float32) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
