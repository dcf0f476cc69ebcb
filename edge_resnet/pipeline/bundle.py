"""Model bundles: a folder with model.tflite, labels.txt and card.yaml, or a bare .tflite with its settings beside it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from edge_resnet.exceptions import ModelError, ParameterError
from edge_resnet.pipeline import tflite_file
from edge_resnet.pipeline.preprocessing import Preprocessing

PACKAGE = 'edge_resnet'
OUTPUTS = ('softmax', 'logits')
MAX_MODEL_BYTES = 1 << 30


@dataclass(frozen=True)
class Bundle:
    """A model and all that is needed to use it. ``sha256`` is None for a bare .tflite; ``card`` is the whole card.yaml.

    Output ``i`` of the model is ``labels[i - label_offset]``: an offset of 1 skips a leading background class.
    """

    name: str
    model_path: Path
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    output: str = 'softmax'
    label_offset: int = 0
    sha256: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ModelError(f'{self.name}: output is {self.output!r}, expected one of {", ".join(OUTPUTS)}')
        if not isinstance(self.label_offset, int) or not 0 <= self.label_offset <= 1000:
            raise ModelError(f'{self.name}: label_offset is {self.label_offset!r}, expected 0 to 1000')
        if not self.labels:
            raise ModelError(f'{self.name}: no labels, expected one a line in labels.txt')
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ModelError(f'{self.name}: label {twice!r} is there {self.labels.count(twice)} times, expected once')

    def read_model(self) -> bytes:
        """The model's bytes, checked against the card's sha256; ModelError when they differ."""
        data = _read(self.model_path)
        digest = hashlib.sha256(data).hexdigest()
        if self.sha256 not in (None, digest):
            raise ModelError(f'{self.model_path}: sha256 is {digest}, the card says {self.sha256}')
        return data


def share_roots() -> Iterator[Path]:
    """Folders that may hold models/, samples/, config/: the source tree, each ament prefix, the Python prefix."""
    source = Path(__file__).resolve().parents[2]
    if (source / 'package.xml').is_file():
        yield source
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    yield from (Path(prefix) / 'share' / PACKAGE for prefix in prefixes if prefix)


def find_shared(kind: str, name: str = '') -> Path:
    """The installed file or folder ``kind``/``name``, e.g. ('models', 'resnet50_traffic_lights')."""
    for root in share_roots():
        if (root / kind / name).exists():
            return root / kind / name
    known = sorted({entry.name for root in share_roots() if (root / kind).is_dir() for entry in (root / kind).iterdir() if entry.is_dir()})
    raise ModelError(f'no {kind} named {name!r}; installed: {", ".join(known) or "none"}')


def load_bundle(model: str, settings: Mapping[str, Any] | None = None) -> Bundle:
    """The bundle named ``model`` (a bundle's name, its folder, or a .tflite file).

    ``settings`` override the card, or stand in for it: the fields of ``Preprocessing``, ``output``, ``label_offset``,
    ``labels_file``; values that are empty or None are left out. ModelError and ParameterError name what is wrong.
    """
    settings = {key: value for key, value in (settings or {}).items() if value not in (None, '', [], ())}
    if not model:
        raise ParameterError("model is empty, expected a bundle's name, its folder, or a .tflite file")
    for name, text in (('model', model), ('labels_file', str(settings.get('labels_file', '')))):
        if '..' in Path(text).parts:
            raise ParameterError(f'{name} is {text!r}: a path must not contain ".."')
    path = Path(model).expanduser()
    if re.fullmatch(r'[\w-]+', model) and not path.is_dir():
        path = find_shared('models', model)
    if path.suffix == '.tflite' and path.is_file():
        return _bare(path, settings)
    if path.is_dir():
        return _carded(path, settings)
    raise ModelError(f'model {model!r}: there is no such bundle folder or .tflite file')


def _carded(folder: Path, settings: Mapping[str, Any]) -> Bundle:
    card_path, model_path = folder / 'card.yaml', folder / 'model.tflite'
    labels_path = folder / 'labels.txt'
    for path in (card_path, model_path, labels_path):
        if not path.is_file():
            raise ModelError(f'{folder}: {path.name} is missing')
        if path.resolve().parent != card_path.resolve().parent:  # an installed tree may be all links, but to one folder
            raise ModelError(f'{path} leads out of its bundle to {path.resolve()}')
    try:
        card = yaml.safe_load(card_path.read_text())
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: not UTF-8, or a date that is none
        raise ModelError(f'{card_path}: {" ".join(str(error).split())}') from error
    if not isinstance(card, dict) or not isinstance(card.get('preprocessing'), dict):
        raise ModelError(f'{card_path}: expected a mapping with "preprocessing"')
    digest = card.get('sha256')
    if not isinstance(digest, str) or not re.fullmatch('[0-9a-f]{64}', digest):
        raise ModelError(f'{card_path}: sha256 is {digest!r}, expected 64 hex digits')
    labels_path = Path(settings.get('labels_file', labels_path))
    return Bundle(
        folder.name, model_path, preprocessing_from({**card['preprocessing'], **settings}, str(card_path)), read_labels(labels_path),
        settings.get('output', card.get('output', 'softmax')), settings.get('label_offset', card.get('label_offset', 0)), digest, card)


def _bare(path: Path, settings: Mapping[str, Any]) -> Bundle:
    described = tflite_file.read(_read(path))
    if len(described.input_shape) != 4:
        raise ModelError(f'{path}: input shape is {list(described.input_shape)}, expected [1, height, width, 3]')
    found: dict[str, Any] = {'height': described.input_shape[1], 'width': described.input_shape[2]}
    found.update({name: values for name, values in (('mean', described.mean), ('std', described.std)) if values})
    found.update(settings)
    for name in ('mean', 'std'):
        if name not in found:
            raise ModelError(f"{path}: {name} is neither in the model's own metadata nor given as a parameter")
    beside = path.with_name('labels.txt')
    if 'labels_file' in settings or (not described.labels and beside.is_file()):
        labels = read_labels(Path(settings.get('labels_file', beside)))
    else:
        labels = described.labels
    if not labels:
        raise ModelError(f"{path}: no labels in the model's own metadata, none in {beside}, and no labels_file given")
    return Bundle(path.stem, path, preprocessing_from(found, str(path)), labels, settings.get('output', 'softmax'), settings.get('label_offset', 0))


def preprocessing_from(values: Mapping[str, Any], where: str) -> Preprocessing:
    """The ``Preprocessing`` in ``values``, other keys ignored; ModelError names ``where`` and the field."""
    chosen: dict[str, Any] = {}
    for entry in fields(Preprocessing):
        if entry.name not in values:
            continue
        value = values[entry.name]
        try:
            if entry.name in ('mean', 'std'):
                value = tuple(float(item) for item in value)
            elif entry.name in ('width', 'height'):
                if value != int(value):
                    raise ValueError
                value = int(value)
        except (TypeError, ValueError, OverflowError) as error:
            expected = 'three numbers' if entry.name in ('mean', 'std') else 'an integer'
            raise ModelError(f'{where}: {entry.name} is {value!r}, expected {expected}') from error
        chosen[entry.name] = value
    try:
        return Preprocessing(**chosen)
    except ParameterError as error:
        raise ModelError(f'{where}: {error}') from error


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; blank lines are refused, since each line is an output of the model."""
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f'{path}: {getattr(error, "strerror", None) or error}') from error
    if '' in labels:
        raise ModelError(f'{path}: line {labels.index("") + 1} is blank, expected a label')
    return labels


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_MODEL_BYTES:
            raise ModelError(f'{path}: {size} bytes, expected 1 to {MAX_MODEL_BYTES}')
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f'{path}: {error.strerror}') from error
