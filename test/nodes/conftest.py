import hashlib

import pytest


@pytest.fixture
def bench():
    pytest.importorskip('rclpy')
    from bench import Bench

    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def paper_bundle(tmp_path):
    """A bundle that can be read but not run: its model is a stand-in, for nodes that are given a classifier of the test's."""
    folder = tmp_path / 'paper'
    folder.mkdir()
    model = b'\x1c\0\0\0TFL3not a model'
    (folder / 'model.tflite').write_bytes(model)
    (folder / 'labels.txt').write_text('green\nred\nyellow\n')
    (folder / 'card.yaml').write_text(f'sha256: {hashlib.sha256(model).hexdigest()}\npreprocessing: {{width: 32, height: 32, resize: stretch}}\n')
    return folder
