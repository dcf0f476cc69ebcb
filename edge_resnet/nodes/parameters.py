"""ROS parameters as frozen dataclasses: type, default, description, range and mutability of each in one place."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_resnet.exceptions import ParameterError

T = TypeVar('T')


def param(default: Any, description: str, *, low: float | None = None, high: float | None = None, choices: Sequence[str] = (),
          read_only: bool = False, live: bool = False) -> Any:
    """A dataclass field that is a ROS parameter.

    ``read_only``: fixed once the node has started (model, pin, safety limits). ``live``: a change takes effect at once.
    Neither: it is read at configure, so it can be changed while the node is unconfigured.
    """
    metadata = {'description': description, 'low': low, 'high': high, 'choices': tuple(choices), 'read_only': read_only, 'live': live}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default_of(entry: dataclasses.Field) -> Any:
    return entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()  # type: ignore[misc]


def descriptor(entry: dataclasses.Field) -> ParameterDescriptor:
    """What ``ros2 param describe`` shows of ``entry``."""
    meta = entry.metadata
    result = ParameterDescriptor(description=meta['description'], read_only=meta['read_only'])
    if meta['choices']:
        result.additional_constraints = f'one of {", ".join(meta["choices"])}'
    if meta['low'] is not None:
        if isinstance(default_of(entry), float):
            result.floating_point_range = [FloatingPointRange(from_value=float(meta['low']), to_value=float(meta['high']), step=0.0)]
        else:
            result.integer_range = [IntegerRange(from_value=int(meta['low']), to_value=int(meta['high']), step=1)]
    return result


def check(entry: dataclasses.Field, value: Any) -> None:
    """ParameterError names the parameter, its value and the bound."""
    meta = entry.metadata
    if meta['choices'] and value not in meta['choices']:
        raise ParameterError(f'{entry.name} is {value!r}, expected one of {", ".join(meta["choices"])}')
    if meta['low'] is not None and not meta['low'] <= value <= meta['high']:
        raise ParameterError(f'{entry.name} is {value}, expected {meta["low"]} to {meta["high"]}')


class NodeParameters(typing.Generic[T]):
    """Declares the fields of dataclass ``kind`` on ``node`` and keeps ``values``, an instance of it, true to them.

    ParameterError when an override is refused. ``node.is_configured()`` decides what may change.
    """

    def __init__(self, node: Node, kind: type[T]) -> None:
        self._node, self._fields = node, {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
        self.given = set(node._parameter_overrides)
        found: dict[str, Any] = {}
        for name, entry in self._fields.items():
            default = default_of(entry)
            try:
                found[name] = self._declare(entry, default)
            except InvalidParameterTypeException:
                given = node._parameter_overrides[name].value
                if type(given) is int and isinstance(default, float | str):  # framerate: 30 and source: 0 are fine in YAML
                    node._parameter_overrides[name] = Parameter(name, value=type(default)(given))
                    found[name] = self._declare_checked(entry, default)
                    continue
                if isinstance(default, list) and not _scalar(given) and all(type(value) is int for value in given):  # as is mean: [127, 127, 127]
                    node._parameter_overrides[name] = Parameter(name, value=[float(value) for value in given])
                    found[name] = self._declare(entry, default)
                    continue
                raise ParameterError(f'{name} is {given!r}, expected {_type_name(default)}') from None
            except InvalidParameterValueException:
                check(entry, node._parameter_overrides[name].value)
                raise
            check(entry, found[name])
        unknown = sorted(self.given - set(self._fields) - {'use_sim_time', 'start_type_description_service'})
        self.unknown = [name for name in unknown if not name.startswith('qos_overrides.')]
        self.values: T = kind(**found)
        node.add_on_set_parameters_callback(self._on_set)

    def _declare(self, entry: dataclasses.Field, default: Any) -> Any:
        if not isinstance(default, list):
            return self._node.declare_parameter(entry.name, default, descriptor(entry)).value
        # rclpy takes an empty list for one of bytes, wherever it comes from: the type is declared alone, and an empty default set with its type.
        overrides, kind, described = self._node._parameter_overrides, Parameter.Type.DOUBLE_ARRAY, descriptor(entry)
        if entry.name in overrides and not _scalar(overrides[entry.name].value) and not overrides[entry.name].value:  # mean: [] in YAML
            del overrides[entry.name]
        if self._node.declare_parameter(entry.name, kind, ParameterDescriptor()).value is None:
            self._node.set_parameters([Parameter(entry.name, kind, default)])
        described.type = kind.value
        self._node.set_descriptor(entry.name, described)
        return list(self._node.get_parameter(entry.name).value)

    def _declare_checked(self, entry: dataclasses.Field, default: Any) -> Any:
        check(entry, self._node._parameter_overrides[entry.name].value)
        return self._node.declare_parameter(entry.name, default, descriptor(entry)).value

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        changes = {parameter.name: parameter.value for parameter in parameters if parameter.name in self._fields}
        try:
            for name, value in changes.items():
                entry = self._fields[name]
                if entry.metadata['read_only']:
                    raise ParameterError(f'{name} is read-only')
                if not entry.metadata['live'] and self._node.is_configured():
                    raise ParameterError(f'{name} is read at configure: clean up the node first')
                check(entry, value)
            self.values = dataclasses.replace(self.values, **changes)  # type: ignore[type-var]
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)


def _scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _type_name(value: Any) -> str:
    if isinstance(value, list):
        return 'a list of numbers'
    return {bool: 'true or false', int: 'an integer', float: 'a number', str: 'a text', types.NoneType: 'nothing'}[type(value)]
