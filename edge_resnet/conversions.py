"""ROS messages <-> arrays and dataclasses. Nothing in a message is believed before it was checked.

What a frame passes through on its way is read and written as CDR bytes (raw subscriptions, raw publishing): at 640x480 the Python conversion
of a message's data array costs more than everything else that happens between camera and model, and a classification's 0.1 ms at each end.
"""

from __future__ import annotations

import functools
import os
import struct
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edge_resnet.exceptions import ImageError, ResultError
from edge_resnet.pipeline.postprocessing import Score

MAX_IMAGE_BYTES = 50_000_000
MAX_SIDE = 16_384
MAX_RESULTS = 10_000
MAX_DURATION_S = 2e9
KNOWN_BYTES = 200  # of a text, or of an image before its data, that is remembered
os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')  # what can't be read is told once, not by every try
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(MAX_IMAGE_BYTES // 3))  # a compressed image may not unpack to more

# sensor_msgs/image_encodings: (bytes per pixel, channels, bytes per channel); nv12 and nv21 have 1.5 rows of bytes a row of pixels.
ENCODINGS = {
    'rgb8': (3, 3, 1), 'bgr8': (3, 3, 1), 'rgba8': (4, 4, 1), 'bgra8': (4, 4, 1), 'mono8': (1, 1, 1), 'mono16': (2, 1, 2),
    'yuv422': (2, 2, 1), 'uyvy': (2, 2, 1), 'yuv422_yuy2': (2, 2, 1), 'yuyv': (2, 2, 1), 'nv12': (1, 1, 1), 'nv21': (1, 1, 1),
    'bayer_rggb8': (1, 1, 1), 'bayer_bggr8': (1, 1, 1), 'bayer_gbrg8': (1, 1, 1), 'bayer_grbg8': (1, 1, 1),
    'bayer_rggb16': (2, 1, 2), 'bayer_bggr16': (2, 1, 2), 'bayer_gbrg16': (2, 1, 2), 'bayer_grbg16': (2, 1, 2),
    'rgb16': (6, 3, 2), 'bgr16': (6, 3, 2), 'rgba16': (8, 4, 2), 'bgra16': (8, 4, 2),
}


class Stamp(NamedTuple):
    """builtin_interfaces/Time."""

    sec: int = 0
    nanosec: int = 0

    @classmethod
    def from_ns(cls, ns: int) -> Stamp:
        return cls(*divmod(ns, 1_000_000_000))


class Header(NamedTuple):
    """std_msgs/Header."""

    stamp: Stamp = Stamp()
    frame_id: str = ''


class Results(NamedTuple):
    """A vision_msgs/Classification: what was seen, best score first; ``class_id`` is the label text."""

    header: Header
    scores: Sequence[Score]


class ImageView(NamedTuple):
    """A sensor_msgs/Image whose ``data`` is still where it was received, not copied."""

    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview


ImageLike = Any  # a sensor_msgs/Image, or the ImageView of its bytes


def stamp_ns(header: Any) -> int:
    """A header's stamp in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


# Plain CDR is the serialization of every ROS 2 middleware: four bytes that tell of it, then each number aligned to its size.
_ORDERS = {b'\0\1': '<', b'\0\0': '>'}


def _read_text(data: bytes, at: int, length: int) -> str:
    octets = bytes(data[at:at + length])
    if len(octets) < length:
        raise struct.error(f'text of {length} bytes, {len(octets)} left')
    return _known_text(octets) if length <= KNOWN_BYTES else _decoded(octets)


def _decoded(octets: bytes) -> str:
    return octets.partition(b'\0')[0].decode('utf-8', 'replace')


_known_text = functools.lru_cache(1024)(_decoded)  # labels and frames, again and again


def _read_header(order: str, data: bytes) -> tuple[Header, int]:
    """The std_msgs/Header that ``data`` begin with, and where the next number is."""
    sec, nanosec, length = struct.unpack_from(order + 'iII', data, 4)
    return Header(Stamp(sec, nanosec), _read_text(data, 16, length)), 16 + length + -length % 4


def _write_header(header: Any) -> bytes:
    return _aligned(b'\0\1\0\0' + struct.pack('<iI', header.stamp.sec, header.stamp.nanosec) + _text(header.frame_id))


def read_image(data: bytes | ImageView) -> ImageView:
    """The sensor_msgs/Image in the CDR bytes of a raw subscription; ImageError when they don't hold one. A view was handed over as it is."""
    if isinstance(data, ImageView):
        return data
    start = bytes(data[:KNOWN_BYTES])  # once: in memory that is shared it may become another's
    head, known, length = _latest_head[0]
    if len(data) == length and start[12:len(head)] == head[12:] and start[:4] == head[:4]:  # all but the stamp
        return ImageView(Header(Stamp(*_STAMP.unpack_from(start, 4)), known.header.frame_id), *known[1:-1], memoryview(data)[len(head):])
    if (order := _ORDERS.get(start[:2])) is None:
        raise ImageError(f'message starts with {start[:4].hex()}, expected a plain CDR header')
    try:
        try:
            image, at, length = _read_head(order, start)
        except (struct.error, IndexError):  # a long frame_id, or cut off
            image, at, length = _read_head(order, start := bytes(data))
    except (struct.error, IndexError) as error:
        raise ImageError(f'message is cut off: {len(data)} bytes') from error
    pixels = memoryview(data)[at:at + length]
    if len(pixels) < length:
        raise ImageError(f'message is cut off: {length} bytes announced, {len(pixels)} left')
    if order == '<' and at <= KNOWN_BYTES and len(data) == at + length:
        _latest_head[0] = start[:at], image, len(data)
    return image._replace(data=pixels)


def _read_head(order: str, data: bytes) -> tuple[ImageView, int, int]:
    """The image in ``data`` but for its pixels, and where these begin and how many bytes they are."""
    header, at = _read_header(order, data)
    height, width, length = struct.unpack_from(order + 'III', data, at)
    encoding, at = _read_text(data, at + 12, length), at + 12 + length
    is_bigendian = data[at]
    step, length = struct.unpack_from(order + 'II', data, at := at + 1 + -(at + 1) % 4)
    return ImageView(header, height, width, encoding, is_bigendian, step, memoryview(b'')), at + 8, length


_STAMP = struct.Struct('<iI')
_latest_head: list[tuple[bytes, ImageView, int]] = [(b'', ImageView(Header(), 0, 0, '', 0, 0, memoryview(b'')), -1)]  # a camera's images are alike


def view_of(header: Any, image: np.ndarray, encoding: str) -> ImageView:
    """A sensor_msgs/Image of ``image``, (H, W, C) or (H, W) uint8, without a copy if it is contiguous."""
    height, width = image.shape[:2]
    return ImageView(header, height, width, encoding, 0, image.size // height, np.ascontiguousarray(image).reshape(-1).data)


def write_head(image: ImageView) -> bytes:
    """CDR bytes of a sensor_msgs/Image as far as its ``data``, which end it; its stamp is in bytes 4 to 12."""
    head = _write_header(image.header) + struct.pack('<II', image.height, image.width)
    return _aligned(head + _text(image.encoding) + bytes([image.is_bigendian])) + struct.pack('<II', image.step, len(image.data))


def write_image(header: Any, image: np.ndarray, encoding: str) -> bytes:
    """CDR bytes of a sensor_msgs/Image for ``image`` as ``view_of`` takes it, to hand to ``Publisher.publish``."""
    view = view_of(header, image, encoding)
    return b''.join((write_head(view), view.data))


def write_stage(source: str, header: Any, time_ns: int) -> bytes:
    """CDR bytes of the sensor_msgs/TimeReference that tells when stage ``source`` was through with the frame of ``header``."""
    return _write_header(header) + struct.pack('<iI', *divmod(time_ns, 1_000_000_000)) + _text(source)


def read_stage(data: bytes) -> tuple[str, int, int]:
    """(source, stamp of the frame in ns, time in ns) of a TimeReference's CDR bytes; ResultError when they don't hold one."""
    try:
        header, at = _read_header(order := _ORDERS[bytes(data[:2])], data)
        time_s, time_ns, length = struct.unpack_from(order + 'iII', data, at)
        source = _read_text(data, at + 12, length)
    except (struct.error, KeyError) as error:
        raise ResultError(f'stage record of {len(data)} bytes: {error}') from error
    return source, stamp_ns(header), time_s * 1_000_000_000 + time_ns


def write_duration(seconds: float) -> bytes:
    """CDR bytes of a builtin_interfaces/Duration, which holds 63 years."""
    seconds = min(max(seconds, -MAX_DURATION_S), MAX_DURATION_S)
    return b'\0\1\0\0' + struct.pack('<iI', *divmod(round(seconds * 1e9), 1_000_000_000))


def read_duration(data: bytes) -> float:
    """Seconds of the builtin_interfaces/Duration in CDR bytes; ResultError when they don't hold one."""
    try:
        sec, nanosec = struct.unpack_from(_ORDERS[bytes(data[:2])] + 'iI', data, 4)
    except (struct.error, KeyError) as error:
        raise ResultError(f'duration of {len(data)} bytes: {error}') from error
    return sec + nanosec / 1e9


def write_numbers(*numbers: int) -> bytes:
    """CDR bytes of a std_msgs/UInt64MultiArray without a layout."""
    return struct.pack(f'<4sIIIxxxx{len(numbers)}Q', b'\0\1\0\0', 0, 0, len(numbers), *numbers)


def read_numbers(data: bytes, count: int) -> tuple[int, ...]:
    """The ``count`` numbers of the std_msgs/UInt64MultiArray in CDR bytes; ResultError when they don't hold one of so many without a layout."""
    try:
        dimensions, _, found, *numbers = struct.unpack_from(f'{_ORDERS[bytes(data[:2])]}IIIxxxx{count}Q', data, 4)
    except (struct.error, KeyError) as error:
        raise ResultError(f'numbers of {len(data)} bytes: {error}') from error
    if dimensions or found != count:
        raise ResultError(f'{found} numbers in {dimensions} dimensions, expected {count} in none')
    return tuple(numbers)


def _text(text: str) -> bytes:
    octets = text.encode() + b'\0'
    return struct.pack('<I', len(octets)) + octets


def _aligned(data: bytes) -> bytes:
    return data + b'\0' * (-len(data) % 4)


def check_image(image: ImageLike) -> None:
    """ImageError names the first field of ``image`` that can't be right."""
    _checked_layout(image.encoding, image.width, image.height, image.is_bigendian, image.step, len(image.data))


def _check_layout(encoding: str, width: int, height: int, is_bigendian: int, step: int, length: int) -> None:
    if encoding not in ENCODINGS:
        raise ImageError(f'image encoding is {encoding[:40]!r}, expected one of {", ".join(ENCODINGS)}')
    for name, value in (('width', width), ('height', height)):
        if not 1 <= value <= MAX_SIDE:
            raise ImageError(f'image {name} is {value}, expected 1 to {MAX_SIDE}')
    if is_bigendian not in (0, 1):
        raise ImageError(f'image is_bigendian is {is_bigendian}, expected 0 or 1')
    if encoding.startswith('nv') and (width % 2 or height % 2):
        raise ImageError(f'{encoding} image is {width}x{height}, expected even numbers')
    if ENCODINGS[encoding][1] == 2 and width % 2:
        raise ImageError(f'{encoding} image width is {width}, expected an even number')
    least = width * ENCODINGS[encoding][0]
    if step < least:
        raise ImageError(f'image step is {step}, expected at least {least} for {width} px of {encoding}')
    size = step * _rows(encoding, height)
    if size > MAX_IMAGE_BYTES:
        raise ImageError(f'image has {size} bytes, expected at most {MAX_IMAGE_BYTES}')
    if length != size:
        raise ImageError(f'image data has {length} bytes, expected {size} ({step} a row, {_rows(encoding, height)} rows)')


_checked_layout = functools.lru_cache(16)(_check_layout)  # a camera's images are alike; errors are not remembered


def _rows(encoding: str, height: int) -> int:
    return height * 3 // 2 if encoding.startswith('nv') else height


def image_array(image: ImageLike) -> tuple[np.ndarray, str]:
    """(array, 'rgb' or 'bgr'): the image as (H, W, 3) uint8, a view where the encoding allows.

    Colour order is left as it comes, since it is cheaper to change once the image is small. ImageError as ``check_image``.
    """
    check_image(image)
    pixel_bytes, channels, depth = ENCODINGS[image.encoding]
    rows = np.frombuffer(image.data, np.uint8).reshape(_rows(image.encoding, image.height), image.step)[:, :image.width * pixel_bytes]
    if image.encoding in ('rgb8', 'bgr8'):
        return rows.reshape(image.height, image.width, 3) if rows.flags.c_contiguous else _split(rows, 3), image.encoding[:3]
    import cv2

    if image.encoding.startswith('nv'):
        code = cv2.COLOR_YUV2RGB_NV12 if image.encoding == 'nv12' else cv2.COLOR_YUV2RGB_NV21
        return cv2.cvtColor(np.ascontiguousarray(rows), code), 'rgb'
    if channels == 2:
        code = cv2.COLOR_YUV2RGB_UYVY if image.encoding in ('yuv422', 'uyvy') else cv2.COLOR_YUV2RGB_YUY2
        return cv2.cvtColor(_split(rows, 2), code), 'rgb'
    if depth == 2:  # the high byte of each sample is the 8-bit value
        rows = np.ascontiguousarray(rows[:, 0 if image.is_bigendian else 1::2])
    if image.encoding.startswith('bayer'):  # PyPI's cv_bridge lacks grbg; OpenCV names a pattern by its second row and column
        first = {'rggb': 'BG', 'bggr': 'RG', 'gbrg': 'GR', 'grbg': 'GB'}[image.encoding[6:10]]
        return cv2.cvtColor(rows, getattr(cv2, f'COLOR_Bayer{first}2RGB')), 'rgb'
    return _through_cv_bridge(rows, image, image.encoding.replace('16', '8')), 'rgb'


def _split(rows: np.ndarray, channels: int) -> np.ndarray:
    """(H, W * channels) -> (H, W, channels) for padded rows too, without a copy."""
    return np.lib.stride_tricks.as_strided(rows, (rows.shape[0], rows.shape[1] // channels, channels), (rows.strides[0], channels, 1))


def _through_cv_bridge(rows: np.ndarray, image: ImageLike, encoding: str) -> np.ndarray:
    import sensor_msgs.msg
    from cv_bridge import CvBridge, CvBridgeError

    message = sensor_msgs.msg.Image(height=image.height, width=image.width, encoding=encoding, step=rows.shape[1])
    message.data = array('B', rows.tobytes())
    try:
        return CvBridge().imgmsg_to_cv2(message, 'rgb8')
    except (CvBridgeError, TypeError, ValueError) as error:
        raise ImageError(f"cv_bridge can't convert {encoding}: {error}") from error


def compressed_array(data: Any) -> tuple[np.ndarray, str]:
    """(array, 'bgr') of a sensor_msgs/CompressedImage's ``data`` (JPEG, PNG, ...); ImageError when it can't be decoded."""
    import cv2

    if not 0 < len(data) <= MAX_IMAGE_BYTES:
        raise ImageError(f'compressed image has {len(data)} bytes, expected 1 to {MAX_IMAGE_BYTES}')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f'compressed image of {len(data)} bytes: {str(error).strip().splitlines()[-1]}') from error
    if image is None:
        raise ImageError(f"compressed image of {len(data)} bytes can't be decoded, it starts with {bytes(data[:4]).hex()}")
    return image, 'bgr'


def write_results(results: Results) -> bytes:
    """CDR bytes of a vision_msgs/Classification."""
    data = bytearray(_write_header(results.header) + struct.pack('<I', len(results.scores)))
    for entry in results.scores:
        data += b'\0' * (-len(data) % 4) + _text(entry.label)
        data += b'\0' * (-(len(data) - 4) % 8) + struct.pack('<d', entry.score)
    return bytes(data)


def read_results(data: bytes | Results) -> Results:
    """The vision_msgs/Classification in the CDR bytes of a raw subscription; ResultError when they don't hold one. Scores are not judged here,
    the decision gate does that."""
    if isinstance(data, Results):
        return data
    try:
        header, at = _read_header(order := _ORDERS[bytes(data[:2])], data)
        count, = struct.unpack_from(order + 'I', data, at)
        if count > MAX_RESULTS:
            raise ResultError(f'classification has {count} results, expected at most {MAX_RESULTS}')
        scores, at = [], at + 4
        for _ in range(count):
            length, = struct.unpack_from(order + 'I', data, at)
            score, = struct.unpack_from(order + 'd', data, ends := at + 4 + length + -(at + length) % 8)
            scores.append(Score(_read_text(data, at + 4, length), score))
            at = ends + 8
    except (struct.error, KeyError) as error:
        raise ResultError(f'classification of {len(data)} bytes: {error}') from error
    return Results(header, scores)
