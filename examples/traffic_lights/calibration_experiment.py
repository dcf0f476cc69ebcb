"""What calibrating on the wrong images costs: one float model, calibrated on seven sets of frames, judged on the same test photos.

    python examples/traffic_lights/calibration_experiment.py --float build/resnet50_traffic_lights --others build/imagenet_photos/calibration

``--others`` is any folder of unrelated photographs (examples/imagenet/photos.py makes one). Prints a Markdown table: warnings that
``calibrate`` gave, top-1 on the 297 test photos as they are and composed into 640x480 camera frames, and agreement with the float model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import dataset
import numpy as np

from edge_resnet.pipeline.bundle import Bundle, load_bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.preprocessing import resize
from edge_resnet.tools import calibrate
from edge_resnet.tools.dataset import images, read_rgb

FRAMES = 120


def sets(root: Path, others: Path, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Name -> frames, (480, 640, 3) uint8 RGB, or photos as they are."""
    photos = dataset.photos(root, 'train')

    def frames(chosen: list[Path], light: Callable[[np.ndarray], np.ndarray] = lambda frame: frame) -> list[np.ndarray]:
        return [light(dataset.compose(read_rgb(path), 640, 480, rng.uniform(0.6, 1), rng.random(), rng.random())) for path in chosen]

    def some(paths: list[Path]) -> list[Path]:
        return [paths[index] for index in rng.permutation(len(paths))[:FRAMES]]

    everything = [path for path, _ in photos]
    return {
        '(a) the deployment camera': frames(some(everything)),
        '(b) other photographs': [read_rgb(path) for path in some(images(others))],
        '(c) noise': [rng.integers(0, 256, (224, 224, 3)).astype(np.uint8) for _ in range(FRAMES)],
        '(d) one class only (green)': frames(some([path for path, label in photos if label == 0])),
        '(e) under-exposed, a third of the light': frames(some(everything), lambda frame: (frame * 0.33).astype(np.uint8)),
        '(e) under-exposed, a tenth': frames(some(everything), lambda frame: (frame * 0.1).astype(np.uint8)),
        '(e) over-exposed, three times': frames(some(everything), lambda frame: np.clip(frame * 3.0, 0, 255).astype(np.uint8)),
    }


def judge(bundle: Bundle, views: list[np.ndarray]) -> np.ndarray:
    """The class of each of ``views``, images of any size."""
    model = Classifier(bundle)
    return np.array([model.classify(resize(view, bundle.preprocessing)).argmax() for view in views])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--float', type=Path, required=True, help='folder of train.py')
    parser.add_argument('--others', type=Path, required=True, help='folder of unrelated photographs')
    parser.add_argument('--data', type=Path, default=Path('build/traffic_lights'), help='where the traffic-light photos are kept')
    args = parser.parse_args(argv)
    root = dataset.fetch(args.data)
    test = dataset.photos(root, 'test')
    truth, views = np.array([label for _, label in test]), [read_rgb(path) for path, _ in test]
    views += [dataset.compose(view, 640, 480) for view in views]
    expected: np.ndarray | None = None
    print('| calibrated on | warnings | top-1, photos | top-1, camera frames | agreement with float |\n|---|---|---|---|---|', flush=True)
    with tempfile.TemporaryDirectory() as temp:
        for number, (name, frames) in enumerate(sets(root, args.others, np.random.default_rng(7)).items()):
            folder, out = Path(temp) / 'frames', Path(temp) / f'bundle{number}'
            folder.mkdir()
            for index, frame in enumerate(frames):
                cv2.imwrite(str(folder / f'{index:03}.png'), frame[..., ::-1])
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = calibrate.main(['--model', str(args.float), '--frames', str(folder), '--out', str(out), '--force', '--min-agreement', '0'])
            if code:
                raise SystemExit(said.getvalue())
            bundle = load_bundle(str(out))
            if expected is None:
                expected = judge(replace(bundle, model_path=args.float / 'float.tflite', sha256=None), views)
                rows = [('float', '', expected)]
            warnings = [line.split('warning: ')[1].split(':')[0] for line in said.getvalue().splitlines() if 'warning: ' in line]
            for label, warned, classes in [*rows, (name, ', '.join(warnings), judge(bundle, views))]:
                right, agree = classes.reshape(2, -1) == truth, (classes == expected).mean()
                print(f'| {label} | {warned or "none"} | {right[0].mean():.2%} | {right[1].mean():.2%} | {agree:.2%} |', flush=True)
            rows = []
            shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
