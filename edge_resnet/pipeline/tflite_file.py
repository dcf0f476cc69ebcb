"""What a .tflite file says about itself, read without a runtime: input and output, and the TFLite Metadata if it has any.

A FlatBuffer table is a signed offset back to its vtable of 16-bit field offsets. The field numbers below are those of
TensorFlow's ``schema.fbs`` and of TFLite Support's ``metadata_schema.fbs``. Every read is bounds-checked by ``struct``.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from edge_resnet.exceptions import ModelError

DTYPES = {0: 'float32', 3: 'uint8', 9: 'int8'}  # schema.fbs TensorType, those that an image classifier may have
MAX_LABELS_BYTES = 4_000_000


@dataclass(frozen=True)
class TfliteFile:
    """First input and output of a model; ``mean``, ``std`` and ``labels`` are empty unless its metadata gives them."""

    input_shape: tuple[int, ...]
    input_dtype: str
    output_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


class _Table:
    """A FlatBuffer table at ``at`` in ``data``; each getter returns None for a field that is absent."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from('<I', data)[0])

    def _field(self, number: int) -> int | None:
        vtable = self._at - struct.unpack_from('<i', self._data, self._at)[0]
        if 4 + 2 * number >= struct.unpack_from('<H', self._data, vtable)[0]:
            return None
        offset = struct.unpack_from('<H', self._data, vtable + 4 + 2 * number)[0]
        return self._at + offset if offset else None

    def scalar(self, number: int, code: str) -> int:
        at = self._field(number)
        return 0 if at is None else struct.unpack_from('<' + code, self._data, at)[0]

    def _follow(self, number: int) -> int | None:
        at = self._field(number)
        return None if at is None else at + struct.unpack_from('<I', self._data, at)[0]

    def table(self, number: int) -> _Table | None:
        at = self._follow(number)
        return None if at is None else _Table(self._data, at)

    def vector(self, number: int, code: str) -> tuple:
        at = self._follow(number)
        if at is None:
            return ()
        count = struct.unpack_from('<I', self._data, at)[0]
        if count * struct.calcsize(code) > len(self._data):
            raise struct.error(f'a vector of {count} items')
        return struct.unpack_from(f'<{count}{code}', self._data, at + 4)

    def tables(self, number: int) -> list[_Table]:
        at = self._follow(number)
        places = () if at is None else self.vector(number, 'I')
        return [_Table(self._data, at + 4 + 4 * i + offset) for i, offset in enumerate(places)]  # type: ignore[operator]

    def data(self, number: int) -> bytes:
        at = self._follow(number)
        if at is None:
            return b''
        count = struct.unpack_from('<I', self._data, at)[0]
        return self._data[at + 4:at + 4 + count]

    def text(self, number: int) -> str:
        return self.data(number).decode('utf-8', 'replace')


def read(data: bytes) -> TfliteFile:
    """Describe the TFLite model ``data``; ModelError when it is not one."""
    if data[4:8] != b'TFL3':
        raise ModelError(f"not a TFLite model: bytes 4 to 8 are {data[4:8]!r}, expected b'TFL3'")
    try:
        model = _Table.root(data)
        graph = model.tables(2)[0]
        tensors = graph.tables(0)
        source, result = tensors[graph.vector(1, 'i')[0]], tensors[graph.vector(2, 'i')[0]]
        code = source.scalar(1, 'b')
        if code not in DTYPES:
            raise ModelError(f'model input has tensor type {code} of schema.fbs, expected one of {", ".join(DTYPES.values())}')
        mean, std, label_file = _metadata(model)
        return TfliteFile(source.vector(0, 'i'), DTYPES[code], result.vector(0, 'i'), mean, std, _labels(data, label_file))
    except (struct.error, IndexError, RecursionError) as error:
        raise ModelError(f'damaged TFLite model: {error}') from error


def _metadata(model: _Table) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """(mean, std, name of the label file) of the model's TFLite Metadata, each empty when it isn't there."""
    buffer = next((entry.scalar(1, 'I') for entry in model.tables(6) if entry.text(0) == 'TFLITE_METADATA'), None)
    if buffer is None:
        return (), (), ''
    graph = _Table.root(model.tables(4)[buffer].data(0)).tables(3)[0]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in (unit for tensor in graph.tables(2)[:1] for unit in tensor.tables(4)):
        options = unit.table(1)
        if unit.scalar(0, 'B') == 1 and options is not None:  # NormalizationOptions
            mean, std = (values * 3 if len(values) == 1 else values for values in (options.vector(0, 'f'), options.vector(1, 'f')))
    files = [file for tensor in graph.tables(3)[:1] for file in tensor.tables(6)]
    return mean, std, next((file.text(0) for file in files if file.scalar(2, 'b') == 2), '')  # TENSOR_AXIS_LABELS


def _labels(data: bytes, name: str) -> tuple[str, ...]:
    """The label file packed behind the model as a zip archive."""
    if not name:
        return ()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(name).file_size > MAX_LABELS_BYTES:
                raise ModelError(f"{name} in the model's metadata has over {MAX_LABELS_BYTES} bytes")
            return tuple(archive.read(name).decode('utf-8').splitlines())
    except ModelError:
        raise
    except Exception as error:  # zipfile meets damage with errors of all kinds, of zlib and of its own
        raise ModelError(f"the model's metadata names the label file {name!r}, which can't be read: {error}") from error
