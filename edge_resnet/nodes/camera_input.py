"""The camera's images for whoever needs them, raw or compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from edge_resnet.conversions import MAX_IMAGE_BYTES, ImageView, compressed_array, image_array, read_image
from edge_resnet.exceptions import ImageError
from edge_resnet.nodes.base import ManagedNode, compressed_topic
from edge_resnet.nodes.inputs import FrameInput

TRANSPORTS = ('raw', 'compressed')
Decode = Callable[[], tuple[np.ndarray, str]]  # gives (H, W, 3) uint8 and 'rgb' or 'bgr'; ImageError


def camera_input(node: ManagedNode, transport: str, callback: Callable[[Any, Decode], None], **options: Any) -> FrameInput:
    """The camera's images, raw or compressed as ``transport`` says; ``callback`` gets the header, and what decodes the rest. ``options`` are
    those of FrameInput."""

    def on_image(data: bytes | ImageView) -> None:
        image = read_image(data)
        callback(image.header, lambda: image_array(image))

    def on_compressed(data: bytes) -> None:
        if len(data) > MAX_IMAGE_BYTES:
            raise ImageError(f'compressed image has {len(data)} bytes, expected at most {MAX_IMAGE_BYTES}')
        message = deserialize_message(data, CompressedImage)
        callback(message.header, lambda: compressed_array(message.data))

    if transport == 'compressed':
        return FrameInput(node, CompressedImage, compressed_topic(node), on_compressed, request_base='image_raw', **options)
    return FrameInput(node, Image, 'image_raw', on_image, **options)
