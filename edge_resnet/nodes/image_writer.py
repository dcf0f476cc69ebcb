"""Publishes images from a buffer that is kept."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy

from edge_resnet.conversions import ImageView, write_head


class _SerializedMessage(ctypes.Structure):
    """rcl_serialized_message_t, of which publishing reads the first two."""

    _fields_ = (('buffer', ctypes.c_void_p), ('buffer_length', ctypes.c_size_t), ('buffer_capacity', ctypes.c_size_t),
                ('allocator', ctypes.c_void_p * 5))


_rcl = ctypes.CDLL(_rclpy.__file__)  # finds what rclpy is linked with, too
_publish = _rcl.rcl_publish_serialized_message
_publish.argtypes = (ctypes.c_void_p, ctypes.POINTER(_SerializedMessage), ctypes.c_void_p)


class ImageWriter:
    """Publishes an ImageView with one copy of its data, into the message that is kept; rclpy's ``publish`` takes bytes, which are made by a copy,
    and copies them. For one thread at a time."""

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._layout: tuple[Any, ...] = ()
        self._buffer, self._data = bytearray(), memoryview(b'')
        self._message = _SerializedMessage()

    def publish(self, image: ImageView) -> None:
        header, data = image.header, image.data
        layout = (header.frame_id, len(data), *image[1:-1])
        if layout != self._layout:
            head = write_head(image)
            self._buffer = bytearray(len(head) + len(data))
            self._buffer[:len(head)] = head
            self._data = memoryview(self._buffer)[len(head):]
            address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
            self._message = _SerializedMessage(address, len(self._buffer), len(self._buffer))
            self._layout = layout
        struct.pack_into('<iI', self._buffer, 4, header.stamp.sec, header.stamp.nanosec)
        self._data[:] = data
        with (handle := self._publisher.handle):
            failed = _publish(handle.pointer, self._message, None)
        if failed:
            _rcl.rcutils_reset_error()
            self._publisher.publish(bytes(self._buffer))  # which tells why
