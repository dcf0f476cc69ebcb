"""The Raspberry Pi's processor, emulated: the short form of make test-aarch64, and that its comparison finds what is wrong."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_model import write_bundle

CANNOT = 77  # scripts/test-aarch64.sh: it can't be tried on this machine


@pytest.fixture(scope='module')
def compare() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / 'aarch64' / 'compare.py'
    spec = importlib.util.spec_from_file_location('aarch64_compare', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def records(bundle: Path, folder: Path, outputs: list[float], label: str, score: float, *, step: float = 1 / 256, logit_step: float = 0.1,
            runtime: str = 'litert', level: int = 100) -> list[dict[str, Any]]:
    cv2.imwrite(str(folder / f'{level}.png'), np.full((32, 32, 3), level, np.uint8))
    return [{'model': str(bundle), 'runtime': runtime, 'image': '07.jpg', 'label': label, 'score': score, 'step': step, 'logit_step': logit_step,
             'output': outputs, 'fitted': str(folder / f'{level}.png')}]


def test_short_form(root):
    done = subprocess.run([str(root / 'scripts' / 'test-aarch64.sh'), '--short'], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    if done.returncode == CANNOT:
        pytest.skip(said[-1])
    assert done.returncode == 0, '\n'.join([done.stdout, *said[-20:]])
    compared = [line.split()[:4] for line in done.stdout.splitlines() if ' litert ' in line or ' tflite_runtime ' in line]
    assert ['calibrated_on_aarch64', 'litert', '12', '12'] in compared
    assert len({model for model, *_ in compared}) >= 3, 'no bundle of models/ among the compared'


def test_other_label_is_named_with_sample_model_runtime_and_both_scores(compare, tmp_path):
    bundle = write_bundle(tmp_path / 'lights', 'int8')
    ours = records(bundle, tmp_path, [-128, 20, 19], 'red', 0.578)
    theirs = records(bundle, tmp_path, [-128, 19, 20], 'yellow', 0.578)
    row, faults, _ = compare.compare(['red'], ours, theirs, ours)
    assert row[:4] == ['lights', 'litert', '1', '0']
    assert len(faults) == 1
    for part in ('07.jpg', 'lights', 'litert', 'red 0.5780', 'aarch64 yellow 0.5780'):
        assert part in faults[0]


@pytest.mark.parametrize(('runtime', 'steps', 'faults', 'notes'), [
    ('litert', 2, 0, 0), ('litert', 3, 1, 0), ('tflite_runtime', 2, 0, 0), ('tflite_runtime', 6, 0, 1), ('tflite_runtime', 20, 1, 0)])
def test_score_of_softmax_may_differ_by_two_steps(compare, tmp_path, runtime, steps, faults, notes):
    bundle = write_bundle(tmp_path / 'lights', 'int8')
    ours = records(bundle, tmp_path, [-128, 100, -100], 'red', 228 / 256, runtime=runtime)
    theirs = records(bundle, tmp_path, [-128, 100 + steps, -100 - steps], 'red', (228 + steps) / 256, runtime=runtime)
    row, *lines = compare.compare(['red'], ours, theirs, ours)
    assert [len(kind) for kind in lines] == [faults, notes]
    assert row[6] == f'{steps} steps'


@pytest.mark.parametrize(('level', 'label', 'faults'), [(101, 'red', 0), (102, 'red', 1), (101, 'yellow', 1)])
def test_images_may_differ_by_one_level_and_scores_then_count_on_the_same_image_but_labels_on_each_ones_own(compare, tmp_path, level, label, faults):
    bundle = write_bundle(tmp_path / 'lights', 'int8')
    ours = records(bundle, tmp_path, [-128, 90, -90], label, 218 / 256)
    theirs = records(bundle, tmp_path, [-128, 100, -100], 'red', 228 / 256, level=level)
    row, *lines = compare.compare(['red'], ours, theirs, theirs)
    assert [len(kind) for kind in lines] == [faults, 0]
    assert row[4:7] == [str(level - 100), f'{10 / 256:.4f}', '0 steps']


@pytest.mark.parametrize(('steps', 'faults'), [(2, 0), (3, 1)])
def test_score_of_logits_may_differ_by_what_two_steps_of_each_output_do(compare, tmp_path, steps, faults):
    bundle, step = write_bundle(tmp_path / 'lights', 'int8', output='logits'), 0.1

    def score(outputs: list[float]) -> float:
        powers = np.exp(np.multiply(outputs, step))
        return float(powers.max() / powers.sum())

    here, there = [0.0, 30.0, 10.0], [0.0 - steps, 30.0 + steps, 10.0 - steps]
    ours, theirs = (records(bundle, tmp_path, outputs, 'red', score(outputs), step=step) for outputs in (here, there))
    assert [len(kind) for kind in compare.compare(['red'], ours, theirs, ours)[1:]] == [faults, 0]


@pytest.mark.parametrize(('runtime', 'truth', 'gap', 'faults'), [
    ('tflite_runtime', 'cat', 4, 0), ('tflite_runtime', 'cat', 5, 1), ('tflite_runtime', 'red', 1, 1), ('litert', 'cat', 1, 1)])
def test_labels_change_places_only_by_rounding_and_where_none_is_right(compare, tmp_path, runtime, truth, gap, faults):
    bundle = write_bundle(tmp_path / 'lights', 'int8', output='logits')
    ours = records(bundle, tmp_path, [0, 30, 30 - gap], 'red', 0.5, runtime=runtime)
    theirs = records(bundle, tmp_path, [0, 29, 30], 'yellow', 0.5, runtime=runtime)
    assert [len(kind) for kind in compare.compare([truth], ours, theirs, ours)[1:]] == [faults, 1 - faults]


@pytest.mark.skipif(shutil.which('apt-get') is None, reason='without apt-get the script says so and needs no network')
def test_without_network_it_says_what_could_not_be_fetched(root, tmp_path):
    unreachable = {**os.environ, 'AARCH64_CACHE': str(tmp_path), 'DEBIAN_MIRROR': 'http://127.0.0.1:9/debian'}
    done = subprocess.run([str(root / 'scripts' / 'test-aarch64.sh'), '--short'], env=unreachable, capture_output=True, text=True)
    assert done.returncode == CANNOT
    assert 'skipped: ' in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.glob('*/*')] == []
