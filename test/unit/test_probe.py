"""A model is tried in a child process, and how that ended is told."""

from __future__ import annotations

import sys

import pytest
from tiny_model import crashing_model, model_bytes

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline.bundle import Bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.preprocessing import Preprocessing
from edge_resnet.pipeline.probe import probe


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Replaces the child process by a shell script."""
    def replace(script: str) -> None:
        path = tmp_path / 'python'
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setattr(sys, 'executable', str(path))
    return replace


@pytest.mark.parametrize('dtype', ['float32', 'int8', 'uint8'])
def test_a_sound_model_passes(dtype):
    probe(model_bytes(dtype), 'tiny')


@pytest.mark.parametrize(('runtime', 'module'), [('litert', 'ai_edge_litert'), ('tflite_runtime', 'tflite_runtime')])
def test_a_model_that_kills_the_runtime_kills_only_the_child(runtime, module, tmp_path):
    """These take the process along (SIGSEGV) in LiteRT 2.3 and tflite-runtime 2.14; another version may refuse them."""
    pytest.importorskip(module)
    path = tmp_path / 'evil.tflite'
    path.write_bytes(crashing_model(runtime))
    bundle = Bundle('evil', path, Preprocessing(32, 32), ('a', 'b', 'c'))
    with pytest.raises(ModelError, match=r'evil.tflite: (a trial inference crashed the runtime \(SIG|.* refuses the model)'):
        Classifier(bundle, runtime)


def test_half_a_model_is_refused_with_the_runtimes_words():
    data = model_bytes()
    with pytest.raises(ModelError, match='half: litert refuses the model: .+'):
        probe(data[:len(data) // 2], 'half', 'litert')


@pytest.mark.parametrize(('signal', 'name'), [('SEGV', 'SIGSEGV'), ('ABRT', 'SIGABRT'), ('KILL', 'SIGKILL')])
def test_a_crash_is_told_by_its_signal(child, signal, name):
    child(f'kill -{signal} $$')
    with pytest.raises(ModelError, match=rf'my model: a trial inference crashed the runtime \({name}\)'):
        probe(b'model', 'my model')


def test_an_endless_inference_is_ended(child):
    child('exec tail -f /dev/null')
    with pytest.raises(ModelError, match=r'my model: a trial inference did not end within 0\.05 s'):
        probe(b'model', 'my model', timeout_s=0.05)


@pytest.mark.parametrize(('script', 'message'), [
    ('echo much; echo "the reason" >&2; exit 1', 'm: the reason'), ('exit 3', 'm: a trial inference failed')])
def test_the_last_line_of_a_failure_is_told(child, script, message):
    child(script)
    with pytest.raises(ModelError, match=message):
        probe(b'model', 'm')


def test_nothing_is_left_in_the_temporary_folder(child, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temp'))
    (tmp_path / 'temp').mkdir()
    child('test -s "$3" || exit 1; kill -SEGV $$')  # $3: the model's file
    with pytest.raises(ModelError, match='SIGSEGV'):
        probe(b'model', 'm')
    assert list((tmp_path / 'temp').iterdir()) == []
