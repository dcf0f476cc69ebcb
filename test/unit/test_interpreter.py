"""Which TFLite runtime is taken, and what is said when it can't."""

from __future__ import annotations

import sys

import pytest
from tiny_model import model_bytes

from edge_resnet.exceptions import ModelError, ParameterError
from edge_resnet.pipeline.interpreter import find_runtime, open_interpreter


@pytest.fixture
def without(monkeypatch):
    def remove(*modules: str) -> None:
        for name in modules:
            monkeypatch.setitem(sys.modules, name, None)
    return remove


def test_auto_prefers_litert_and_falls_back(without):
    pytest.importorskip('tflite_runtime.interpreter')
    assert find_runtime()[0] == 'litert'
    without('ai_edge_litert.interpreter')
    assert find_runtime()[0] == 'tflite_runtime'
    assert open_interpreter(model_bytes())[0] == 'tflite_runtime'


@pytest.mark.parametrize(('runtime', 'package'), [
    ('auto', 'ai-edge-litert or tflite-runtime'), ('litert', 'ai-edge-litert'), ('tflite_runtime', 'tflite-runtime')])
def test_a_missing_runtime_says_what_to_install(without, runtime, package):
    without('ai_edge_litert.interpreter', 'tflite_runtime.interpreter')
    with pytest.raises(ModelError, match=rf'runtime {runtime} is not installed .*: pip install {package}$'):
        open_interpreter(model_bytes(), runtime)


def test_a_runtime_that_is_asked_for_is_not_replaced(without):
    without('ai_edge_litert.interpreter')
    with pytest.raises(ModelError, match='runtime litert is not installed'):
        find_runtime('litert')


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'runtime': 'onnx'}, "runtime is 'onnx', expected one of auto, litert, tflite_runtime"),
    ({'num_threads': 0}, 'num_threads is 0, expected 1 to 64'),
    ({'num_threads': 65}, 'num_threads is 65'),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(ParameterError, match=message):
        open_interpreter(model_bytes(), **arguments)


def test_what_is_no_model():
    with pytest.raises(ModelError, match='litert refuses the model: .+'):
        open_interpreter(b'TFL3' * 100, 'litert')
