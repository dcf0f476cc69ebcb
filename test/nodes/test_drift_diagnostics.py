"""Calibration drift on /diagnostics of the inference node."""

import cv2
import numpy as np
import pytest
import yaml
from bench import image_bytes, wait_for
from sensor_msgs.msg import Image

from edge_resnet.nodes.inference_node import InferenceNode
from edge_resnet.pipeline import calibration, drift
from edge_resnet.pipeline.preprocessing import Preprocessing, resize
from edge_resnet.tools.dataset import images, read_rgb

DRIFT, COLORS, SHARPNESS = 'Calibration drift (levels)', 'Calibration colour drift (%)', 'Sharpness of calibration (%)'


class Classifier:
    """Stands in for the model, whose bundle is paper."""

    runtime, input_dtype = 'fake', np.dtype(np.int8)

    def __init__(self, bundle, *_):
        self.bundle = bundle

    def warm_up(self):
        pass

    def network_input(self, image):
        return image

    def classify(self, image):
        return np.array([0.0, 1.0, 0.0], np.float32)


@pytest.fixture
def frames(root):
    return [resize(read_rgb(path), Preprocessing()) for path in images(root / 'samples')]


@pytest.fixture
def calibrated_bundle(paper_bundle, frames):
    found = calibration.statistics(frames)
    card = yaml.safe_load((paper_bundle / 'card.yaml').read_text())
    rows = {color: row.tolist() for color, row in zip(('red', 'green', 'blue'), found.histograms, strict=True)}
    card['calibration'] = {'histograms': rows, 'sharpness': found.sharpness}
    (paper_bundle / 'card.yaml').write_text(yaml.safe_dump(card))
    return paper_bundle


@pytest.fixture
def run(bench, monkeypatch):
    """Start the node on a bundle, show it every frame, and wait for what ``done`` finds in its diagnostics."""
    monkeypatch.setattr(drift, 'PERIOD_S', 0.0)
    monkeypatch.setattr(drift, 'SUSTAINED_S', 0.0)

    def run(bundle, frames, done):
        node = bench.start(lambda **options: InferenceNode(Classifier, **options), model=str(bundle))
        newest, publisher = bench.diagnostics('inference'), bench.publisher(Image, 'image_preprocessed')
        for number, frame in enumerate(frames):
            publisher.publish(image_bytes(number, frame))
            wait_for(lambda number=number: node._input.received > number, f'frame {number}')
        wait_for(lambda: done(newest()), 'the diagnostic')
        return newest()

    return run


def test_the_calibration_frames_themselves_are_no_drift(run, calibrated_bundle, frames):
    found = run(calibrated_bundle, frames, lambda values: values.get(DRIFT, 'unknown') != 'unknown')
    assert found[''] == '0 OK'
    assert float(found[DRIFT]) < 20
    assert float(found[COLORS]) < 20
    assert 75 < float(found[SHARPNESS]) < 125


@pytest.mark.parametrize(('change', 'said'), [
    (lambda frame: (frame * 0.4).astype(np.uint8), 'brightness is off by'),
    (lambda frame: np.clip(frame * (1.3, 1, 0.7), 0, 255).astype(np.uint8), 'colours are off by'),
    (lambda frame: cv2.GaussianBlur(frame, (0, 0), 2), 'sharpness is')], ids=['darkened', 'warm', 'blurred'])
def test_a_camera_that_changed_is_a_warning_that_names_the_remedy(run, calibrated_bundle, frames, change, said):
    message = run(calibrated_bundle, [change(frame) for frame in frames], lambda values: values.get('', '').startswith('1'))['']
    assert said in message
    assert f'ros2 run edge_resnet capture_calibration --model {calibrated_bundle} --topic /image_raw --out frames' in message
    assert 'ros2 run edge_resnet calibrate' in message


def test_without_histograms_drift_is_unknown(run, paper_bundle, frames):
    found = run(paper_bundle, frames[:12], lambda values: DRIFT in values)
    assert found[DRIFT] == found[COLORS] == found[SHARPNESS] == 'unknown'
    assert 'calibration drift unknown: the model card has no histograms' in found['']


def test_a_new_start_forgets_the_old_camera(run, bench, calibrated_bundle, frames):
    dark = [(frame * 0.4).astype(np.uint8) for frame in frames]
    assert run(calibrated_bundle, dark, lambda values: values.get('', '').startswith('1'))[DRIFT] != 'unknown'
    node = next(node for node, *_ in bench._running if node.get_name() == 'inference')
    node.trigger_deactivate()
    node.trigger_activate()
    newest = bench.diagnostics('inference')
    wait_for(lambda: newest().get(DRIFT) == 'unknown', 'an unknown drift')


def test_histograms_that_make_no_sense_refuse_the_start(bench, calibrated_bundle):
    card = yaml.safe_load((calibrated_bundle / 'card.yaml').read_text())
    card['calibration']['histograms']['red'] = [1]
    (calibrated_bundle / 'card.yaml').write_text(yaml.safe_dump(card))
    node = bench.make(lambda **options: InferenceNode(Classifier, **options), model=str(calibrated_bundle))
    node.trigger_configure()
    assert 'paper: calibration.histograms are not understood' in node.failure
    bench.spin(node)
