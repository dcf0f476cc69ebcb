"""Make samples/: test photos, evenly spaced through each class's list, composed into 640x480 camera frames.

    python examples/traffic_lights/make_samples.py --out samples
    python examples/traffic_lights/make_samples.py --calibration 240 --out build/calibration_frames

Samples come from the test split, so neither training nor calibration has seen them, and are not picked by result. Frames to calibrate
on come from the training split, drawn equally often from each class: half of them camera frames, half the photos as they are.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import dataset
import numpy as np

COUNTS = {'green': 7, 'red': 8, 'yellow': 5}
ORDER = ('red', 'green', 'red', 'yellow', 'green')  # cycles through the classes until each has run out


def calibration_frames(out: Path, photos: list[tuple[Path, int]], count: int) -> int:
    rng = np.random.default_rng(7)
    out.mkdir(parents=True)
    for number in range(count):
        of_class = [path for path, label in photos if label == number % len(dataset.LABELS)]
        frame = dataset.read_rgb(of_class[rng.integers(len(of_class))])
        if number // len(dataset.LABELS) % 2:
            frame = dataset.compose(frame, 640, 480, rng.uniform(0.6, 1.0), rng.random(), rng.random())
        cv2.imwrite(str(out / f'{number:03}.png'), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    print(f'{count} frames in {out}')
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--data', type=Path, default=Path('build/traffic_lights'), help='where the photos are kept')
    parser.add_argument('--calibration', type=int, metavar='COUNT', help='make frames to calibrate on instead')
    args = parser.parse_args(argv)
    if args.calibration:
        return calibration_frames(args.out, dataset.photos(dataset.fetch(args.data), 'train'), args.calibration)
    photos = dataset.photos(dataset.fetch(args.data), 'test')
    queues = {}
    for index, label in enumerate(dataset.LABELS):
        paths = [path for path, truth in photos if truth == index]
        queues[label] = [paths[len(paths) * i // COUNTS[label]] for i in range(COUNTS[label])]
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, str]] = []
    while any(queues.values()):
        for label in ORDER:
            if not queues[label]:
                continue
            path = queues[label].pop(0)
            frame = dataset.compose(dataset.read_rgb(path), 640, 480)
            name = f'{len(rows):02d}.jpg'
            cv2.imwrite(str(args.out / name), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 92))
            rows.append((name, label, f'dataset_test/{label}/{path.name}'))
    with (args.out / 'labels.csv').open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([('file', 'label', 'photo'), *rows])
    print(f'{len(rows)} frames in {args.out}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
