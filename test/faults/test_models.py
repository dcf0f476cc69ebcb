"""Models that are damaged, crash the runtime, or lie outside of their folder."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import rclpy
from processes import wait_until
from rcl_interfaces.srv import SetParameters
from tiny_model import crashing_model, model_bytes, write_bundle

from edge_resnet.exceptions import EdgeResnetError, ModelError
from edge_resnet.pipeline.bundle import load_bundle

PARENT = """
import sys
from pathlib import Path
import numpy as np
from edge_resnet.exceptions import EdgeResnetError
from edge_resnet.pipeline.bundle import Bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.preprocessing import Preprocessing
refused = 0
for path in sorted(Path(sys.argv[1]).glob('*.tflite')):
    try:
        Classifier(Bundle(path.stem, path, Preprocessing(32, 32), ('green', 'red', 'yellow'))).classify(np.zeros((32, 32, 3), np.uint8))
    except EdgeResnetError as error:
        assert '\\n' not in str(error)
        refused += 1
print(refused)
"""


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut off, or with one to eight bits flipped."""
    if chance.random() < 0.4:
        return data[:chance.randrange(1, len(data))]
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.row(23)
def test_damaged_models_with_a_card(row, tmp_path):
    folder, chance = write_bundle(tmp_path / 'tiny'), random.Random(23)
    good = (folder / 'model.tflite').read_bytes()
    for _ in range(row.times(500, 50)):
        (folder / 'model.tflite').write_bytes(damaged(good, chance))
        with pytest.raises(ModelError, match='sha256 is'):
            load_bundle(str(folder)).read_model()
        row.trial()


@pytest.mark.row(23)
def test_damaged_models_without_a_card(row, tmp_path):
    """No sha256 to tell: a child process tries each; what it takes must not crash the parent either."""
    count, chance = row.times(120, 4), random.Random(7)
    for n in range(count):
        (tmp_path / f'{n:03}.tflite').write_bytes(damaged(model_bytes('int8'), chance))
    done = subprocess.run([sys.executable, '-c', PARENT, str(tmp_path)], capture_output=True, text=True, timeout=580)
    row.trial(done.returncode == 0, count=count)
    assert done.returncode == 0, done.stderr[-2000:]
    row.note = f'{done.stdout.strip()} of {count} without a sha256 refused, the rest ran'


@pytest.mark.row(24)
def test_a_model_that_crashes_the_runtime(row, processes, tmp_path):
    for runtime in ('litert', 'tflite_runtime'):
        pytest.importorskip('ai_edge_litert' if runtime == 'litert' else 'tflite_runtime')
        folder = write_bundle(tmp_path / f'evil_{runtime}', sha256=None)
        (folder / 'model.tflite').write_bytes(crashing_model(runtime))
        (folder / 'card.yaml').unlink()
        processes.start('inference_node', model=folder / 'model.tflite', runtime=runtime, mean='[127.5, 127.5, 127.5]', std='[127.5, 127.5, 127.5]',
                        labels_file=folder / 'labels.txt')
        code, text = processes.wait('inference_node'), processes.output('inference_node')
        row.trial(code == 1 and str(folder / 'model.tflite') in text and 'crashed the runtime' in text)


@pytest.mark.row(29)
def test_parameters_that_are_fixed(row, processes, bench, tmp_path):
    """Over the service, as another participant would try."""
    processes.start('actuator_node', state_file=tmp_path / 'actuator.state')
    client = bench.probe.create_client(SetParameters, '/actuator/set_parameters')
    wait_until(client.service_is_ready, 'the service')
    for name, value in (('gpio_pin', 4), ('max_on_s', 3600.0), ('max_result_age_s', 60.0), ('on_threshold', 0.01), ('state_file', '/tmp/other'),
                        ('backend', 'gpio'), ('debounce_frames', 1), ('require_arm', False), ('refractory_s', 0.0), ('gpio_active_high', False)):
        answer = client.call_async(SetParameters.Request(parameters=[rclpy.Parameter(name, value=value).to_parameter_msg()]))
        wait_until(answer.done, 'the answer')
        row.trial(not answer.result().results[0].successful)


@pytest.mark.row(29)
def test_paths_out_of_the_model_folder(row, tmp_path):
    folder, outside = write_bundle(tmp_path / 'models' / 'tiny'), tmp_path / 'outside.txt'
    outside.write_text('green\nred\nyellow\n')
    for model, settings in ((f'{folder}/../tiny', {}), ('../tiny', {}), (str(folder), {'labels_file': f'{folder}/../../outside.txt'})):
        with pytest.raises(EdgeResnetError, match=r'must not contain "\.\."'):
            load_bundle(model, settings)
        row.trial()
    for name in ('model.tflite', 'labels.txt', 'card.yaml'):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(ModelError, match='leads out of its bundle'):
            load_bundle(str(folder))
        row.trial()
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
