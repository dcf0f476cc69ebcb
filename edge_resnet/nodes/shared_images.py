"""Images in memory that the processes of one user on one host share: written once by who publishes them, read where they are.

On its way from process to process through a middleware an image is copied again and again: into the message, by the writer, into what is between
the two, by the reader, for rcl and for Python. Here its publisher writes it into one of a few places, and tells which one.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy

from edge_resnet.conversions import MAX_IMAGE_BYTES, ImageView, write_head
from edge_resnet.exceptions import ImageError

SLOTS = 4  # a frame is overwritten by the fourth after it, and no longer read from the third on
NAME = 'edge_resnet_images'
_PAGE = mmap.PAGESIZE
MAX_BYTES = _PAGE + SLOTS * (MAX_IMAGE_BYTES + 2 * _PAGE)  # of a memory


class _SerializedMessage(ctypes.Structure):
    """rcl_serialized_message_t, of which publishing reads the first two."""

    _fields_ = (('buffer', ctypes.c_void_p), ('buffer_length', ctypes.c_size_t), ('buffer_capacity', ctypes.c_size_t),
                ('allocator', ctypes.c_void_p * 5))


_rcl = ctypes.CDLL(_rclpy.__file__)  # finds what rclpy is linked with, too
_publish = _rcl.rcl_publish_serialized_message
_publish.argtypes = (ctypes.c_void_p, ctypes.POINTER(_SerializedMessage), ctypes.c_void_p)


class _Slot(NamedTuple):
    layout: tuple[Any, ...]  # what its head says, but for the stamp
    at: int
    bytes: memoryview
    data: memoryview
    message: _SerializedMessage


class SharedImages:
    """The images of ``publisher``, as CDR bytes of the messages, in memory that others may map: ``offer`` gets process, file and identity of it,
    each time that it had to be made anew. For one thread at a time."""

    def __init__(self, publisher: Any, offer: Callable[[int, int, int], None]) -> None:
        self._publisher, self._offer = publisher, offer
        self._identity, self._file, self._room = 0, -1, 0
        self._memory: Any = None
        self._latest = memoryview(bytearray(16)).cast('Q')
        self._slots: list[_Slot | None] = [None] * SLOTS
        self._number, self._slot = 0, _Slot((), 0, memoryview(b''), memoryview(b''), _SerializedMessage())

    def write(self, image: ImageView, number: int) -> None:
        """Copy ``image`` to the place of ``number``."""
        header, data = image.header, image.data
        slot, layout = self._slots[number % SLOTS], (header.frame_id, len(data), *image[1:-1])
        self._latest[1] = number  # one store of eight bytes, before the image's
        if slot is None or slot.layout != layout:
            slot = self._lay_out(image, number, layout)
        struct.pack_into('<iI', slot.bytes, 4, header.stamp.sec, header.stamp.nanosec)
        slot.data[:] = data
        self._number, self._slot = number, slot

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Identity of the memory, number, offset and length of the image that was written last."""
        return self._identity, self._number, self._slot.at, len(self._slot.bytes)

    def publish(self) -> None:
        """Publish the image that was written last, as rclpy's ``publish`` does, which takes bytes, made by a copy, and copies them again."""
        with (handle := self._publisher.handle):
            failed = _publish(handle.pointer, self._slot.message, None)
        if failed:
            _rcl.rcutils_reset_error()
            self._publisher.publish(bytes(self._slot.bytes))  # which tells why

    def close(self) -> None:
        """Let nobody else map it. Those who have keep it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lay_out(self, image: ImageView, number: int, layout: tuple[Any, ...]) -> _Slot:
        head, index = write_head(image), number % SLOTS
        length = len(head) + len(image.data)
        if length > self._room:
            self._make_room(length)
            self._latest[1] = number  # of the new memory
        at = _PAGE + index * self._room
        octets = memoryview(self._memory)[at:at + length]
        octets[:len(head)] = head
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + at
        slot = self._slots[index] = _Slot(layout, at, octets, octets[len(head):], _SerializedMessage(address, length, length))
        return slot

    def _make_room(self, length: int) -> None:
        self.close()
        room = length + -length % _PAGE
        size = _PAGE + SLOTS * room
        try:
            self._file = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._file, size)
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)  # whose end vanishes ends who reads there
            self._memory = mmap.mmap(self._file, size)
        except OSError:  # where there is none to share
            self.close()
            self._memory = mmap.mmap(-1, size)
        self._room, self._slots = room, [None] * SLOTS
        self._latest = memoryview(self._memory)[:16].cast('Q')  # whose memory it is, and the number of the latest image that was begun
        self._latest[0] = self._identity = int.from_bytes(os.urandom(8), 'little')
        if self._file >= 0:
            self._offer(os.getpid(), self._file, self._identity)


class MappedImages:
    """SharedImages of another process, to read, as it offers them; ImageError when they are not to be had here: on another host, of another user."""

    def __init__(self, pid: int, file: int, identity: int) -> None:
        path, own = f'/proc/{pid}/fd/{file}', []
        try:
            if len({os.readlink(f'/proc/{of}/ns/net') for of in (pid, 'self')}) == 2:
                raise ImageError(f'{path} is in another network namespace, which stands for another host')
            own.append(os.open(path, os.O_PATH | os.O_CLOEXEC))  # which is not opening it: of a device that may do something
            if not os.readlink(f'/proc/self/fd/{own[0]}').startswith(f'/memfd:{NAME}'):
                raise ImageError(f'{path} is not shared memory of images')
            own.append(os.open(f'/proc/self/fd/{own[0]}', os.O_RDONLY | os.O_CLOEXEC))
            if not fcntl.fcntl(own[1], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:  # reading what has vanished would end this process
                raise ImageError(f'{path} may shrink')
            if (size := os.fstat(own[1]).st_size) > MAX_BYTES:
                raise ImageError(f'{path} has {size} bytes, expected at most {MAX_BYTES}')
            self._bytes = memoryview(mmap.mmap(own[1], 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ))
        except (OSError, ValueError, OverflowError) as error:
            raise ImageError(f"{path} can't be mapped: {error}") from error
        finally:
            for descriptor in own:
                os.close(descriptor)
        self._latest = self._bytes[:len(self._bytes) // 8 * 8].cast('Q')
        if len(self._bytes) < _PAGE or self._latest[0] != identity:
            raise ImageError(f'{path} is the memory of somebody else')

    def image(self, number: int, at: int, length: int) -> InPlace:
        """Image ``number``, which was written there. ImageError for a place outside."""
        if not _PAGE <= at <= at + length <= len(self._bytes):
            raise ImageError(f'image of {length} bytes at {at}, expected within {_PAGE} to {len(self._bytes)}')
        return InPlace(self, number, self._bytes[at:at + length])

    def has(self, number: int) -> bool:
        """One place less than there are, so that it does not matter in which order a processor sees what another has stored in the last few ns."""
        return 0 <= self._latest[1] - number < SLOTS - 1


class InPlace(NamedTuple):
    """An image's CDR bytes where their publisher has them, and may write others: what was made of them counts only if they are ``intact`` then."""

    memory: MappedImages
    number: int
    bytes: memoryview

    def intact(self) -> bool:
        return self.memory.has(self.number)
