"""Images for the tools: a folder of frames, a labelled folder (one subfolder a class), or a CSV with columns file,label."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from edge_resnet.exceptions import ImageError, ParameterError
from edge_resnet.hardware.cameras import IMAGE_SUFFIXES, LABELS_FILE, read_labels

T = TypeVar('T')


def images(folder: Path) -> list[Path]:
    """The images of ``folder``, or where it has none those of its subfolders, in order of name; ParameterError without any."""
    if not folder.is_dir():
        raise ParameterError(f'{folder}: there is no such folder')
    for pattern in ('*', '*/*'):
        found = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if found:
            return found
    raise ParameterError(f'{folder}: no images ({", ".join(IMAGE_SUFFIXES)}) in this folder')


def labelled(source: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """(path, index in ``labels``) of every image of ``source``: a folder with one subfolder a class or with a labels.csv, or
    a CSV file, whose paths are relative to it. ParameterError names a label that is not one of ``labels``."""
    if source.is_file() or (source / LABELS_FILE).is_file():
        table = source if source.is_file() else source / LABELS_FILE
        pairs = [(table.parent / name, label) for name, label in read_labels(table).items()]
    else:
        pairs = [(path, path.parent.name) for path in images(source) if path.parent != source]
    if not pairs:
        raise ParameterError(f'{source}: no labelled images, expected one subfolder a class, a {LABELS_FILE}, or a CSV file with columns file,label')
    index = {label: number for number, label in enumerate(labels)}
    for path, label in pairs:
        if label not in index:
            few = ', '.join(labels[:5]) + (f' and {len(labels) - 5} more' if len(labels) > 5 else '')
            raise ParameterError(f'{path}: label {label!r} is not one of the model, expected {few}')
    return [(path, index[label]) for path, label in pairs]


def read_rgb(path: Path) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB; ImageError names a file that can't be read."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(f'{path}: {"not a readable image" if path.is_file() else "there is no such file"}')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield ``items`` and say on stderr how far it got: in one line on a terminal, else a line each quarter."""
    terminal, count = sys.stderr.isatty(), len(items)
    for number, item in enumerate(items, 1):
        yield item
        if terminal:
            print(f'\r{what}: {number} of {count}', end='\n' if number == count else '', file=sys.stderr, flush=True)
        elif number * 4 // count > (number - 1) * 4 // count:
            print(f'{what}: {number} of {count}', file=sys.stderr, flush=True)
