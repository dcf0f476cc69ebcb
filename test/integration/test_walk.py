"""The walk of docs/models.md at small size: capture from the running camera, calibrate, evaluate, benchmark, select, launch with the result."""

import json
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from processes import wait_until
from tiny_model import COLORS, LABELS, patch, tiny_float_model
from vision_msgs.msg import Classification

from edge_resnet.nodes.frames import FRAME_QOS

pytest.importorskip('litert_quantizer')
FRAMES = 30


@pytest.fixture
def world(tmp_path):
    """A float model, its labels, and photos of the place it will see: some for the camera, others to be judged on."""
    rng = np.random.default_rng(3)
    for place, count in (('seen', 60), ('judged', 30)):
        for number in range(count):
            label = LABELS[number % 3]
            path = tmp_path / place / label / f'{number:02}.png' if place == 'judged' else tmp_path / place / f'{number:02}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), patch(label, rng, 64)[..., ::-1])
    (tmp_path / 'float').mkdir()
    tiny_float_model(tmp_path / 'float' / 'float.tflite')
    (tmp_path / 'float' / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
    spec = {'resize': 'stretch', 'color_order': 'rgb', 'mean': [127.5] * 3, 'std': [127.5] * 3}
    (tmp_path / 'float' / 'training.json').write_text(json.dumps({'preprocessing': spec, 'output': 'softmax', 'label_offset': 0}))
    return tmp_path


def tool(world, name, *arguments):
    command = [sys.executable, '-m', f'edge_resnet.tools.{name}', *map(str, arguments)]
    done = subprocess.run(command, cwd=world, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_from_a_float_model_and_a_camera_to_the_running_pipeline(world, processes, bench):
    processes.start('camera_node', source=world / 'seen', image_hold_s=0.1, framerate=20.0)
    tool(world, 'capture_calibration', '--model', 'float', '--topic', '/image_raw', '--out', 'frames', '--count', FRAMES, '--interval-s', 0.05)
    manifest = json.loads((world / 'frames' / 'manifest.json').read_text())
    assert len(list((world / 'frames').glob('*.png'))) == FRAMES == len(manifest['frames'])

    tool(world, 'calibrate', '--model', 'float', '--frames', 'frames', '--out', 'bundles/mine', '--eval', 'judged')
    tool(world, 'evaluate', '--model', 'bundles/mine', '--photos', 'judged', '--against', 'float', '--out', 'reports/accuracy')
    tool(world, 'benchmark', '--models', 'bundles/mine', 'float', '--runs', 20, '--rounds', 1, '--frames', 'frames', '--out', 'reports/speed')
    tool(world, 'select_model', '--evaluations', 'reports/accuracy', '--benchmarks', 'reports/speed', '--min-top1', 0.9, '--params', 'mine.yaml',
         '--out', 'reports/choice')
    assert json.loads((world / 'reports' / 'choice' / 'selection.json').read_text())['chosen'] == 'mine'

    results = bench.listen(Classification, 'classification', FRAME_QOS)
    for name in ('preprocess_node', 'inference_node'):
        processes.start(name, '--ros-args', '--params-file', str(world / 'mine.yaml'))
    wait_until(lambda: len(results) >= 40, '40 results')
    seen = Counter(message.results[0].class_id for message in results)
    assert set(seen) == set(COLORS), seen
