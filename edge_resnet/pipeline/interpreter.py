"""The one place that knows which TFLite runtimes there are."""

from __future__ import annotations

import importlib
from typing import Any

from edge_resnet.exceptions import ModelError, ParameterError

RUNTIMES = {'litert': 'ai_edge_litert.interpreter', 'tflite_runtime': 'tflite_runtime.interpreter'}  # in order of preference
CHOICES = ('auto', *RUNTIMES)


def find_runtime(runtime: str = 'auto') -> tuple[str, Any]:
    """(name, module) of ``runtime``, or of the first one installed for 'auto'."""
    if runtime not in CHOICES:
        raise ParameterError(f'runtime is {runtime!r}, expected one of {", ".join(CHOICES)}')
    for name in RUNTIMES if runtime == 'auto' else (runtime,):
        try:
            return name, importlib.import_module(RUNTIMES[name])
        except ImportError as error:
            missing = error
    packages = 'ai-edge-litert or tflite-runtime' if runtime == 'auto' else {'litert': 'ai-edge-litert'}.get(runtime, 'tflite-runtime')
    raise ModelError(f'runtime {runtime} is not installed ({missing}): pip install {packages}')


def open_interpreter(model: bytes, runtime: str = 'auto', num_threads: int = 1, default_delegate: bool = True) -> tuple[str, Any]:
    """(runtime name, interpreter with allocated tensors) for the TFLite flatbuffer ``model``.

    ``default_delegate`` False leaves XNNPACK out. ModelError when the runtime refuses the model.
    """
    if not 1 <= num_threads <= 64:
        raise ParameterError(f'num_threads is {num_threads}, expected 1 to 64')
    name, module = find_runtime(runtime)
    options: dict[str, Any] = {}
    if not default_delegate:
        options['experimental_op_resolver_type'] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = module.Interpreter(model_content=model, num_threads=num_threads, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f'{name} refuses the model: {str(error).strip().splitlines()[0]}') from error
    return name, interpreter
