"""Try a model in a child process first: a damaged one can crash the runtime, past every check, and must not take a node along."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile

import numpy as np

from edge_resnet.exceptions import EdgeResnetError, ModelError
from edge_resnet.pipeline.interpreter import open_interpreter

TIMEOUT_S = 60.0


def probe(model: bytes, name: str, runtime: str = 'auto', timeout_s: float = TIMEOUT_S) -> None:
    """Load ``model`` and invoke it once in a child process; ModelError says how that ended when it did not end well."""
    with tempfile.NamedTemporaryFile(suffix='.tflite') as file:
        file.write(model)
        file.flush()
        try:
            child = subprocess.run([sys.executable, '-m', __name__, file.name, runtime], capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ModelError(f'{name}: a trial inference did not end within {timeout_s:g} s') from None
    if child.returncode < 0:
        raise ModelError(f'{name}: a trial inference crashed the runtime ({signal.Signals(-child.returncode).name})')
    if child.returncode > 0:
        lines = (child.stderr or '').strip().splitlines()
        raise ModelError(f'{name}: {lines[-1] if lines else "a trial inference failed"}')


def main(argv: list[str]) -> int:
    with open(argv[0], 'rb') as file:
        model = file.read()
    try:
        _, interpreter = open_interpreter(model, argv[1])
        for tensor in interpreter.get_input_details():
            interpreter.set_tensor(tensor['index'], np.zeros(tensor['shape'], tensor['dtype']))
        interpreter.invoke()
    except (EdgeResnetError, ValueError, RuntimeError, MemoryError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
