"""Make samples/: test photos, evenly spaced through each class's list, composed into 640x480 camera frames.

    python examples/traffic_lights/make_samples.py --out samples

They come from the test split, so neither training nor calibration has seen them, and are not picked by result.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import cv2
import dataset

COUNTS = {'green': 7, 'red': 8, 'yellow': 5}
ORDER = ('red', 'green', 'red', 'yellow', 'green')  # cycles through the classes until each has run out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--data', type=Path, default=Path('build/traffic_lights'), help='where the photos are kept')
    args = parser.parse_args(argv)
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
