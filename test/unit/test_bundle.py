"""Model bundles: what is found, what is believed, and what is refused by name."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import LABELS, SIZE, model_bytes, packed, unpacked, with_metadata, write_bundle

from edge_resnet.exceptions import EdgeResnetError, ModelError, ParameterError
from edge_resnet.pipeline import bundle as module
from edge_resnet.pipeline.bundle import load_bundle, read_labels
from edge_resnet.pipeline.preprocessing import Preprocessing

SETTINGS = {'mean': [127.5] * 3, 'std': [127.5] * 3}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / 'lights')


def card(folder: Path, **changes: object) -> None:
    path = folder / 'card.yaml'
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


# Found

def test_a_folder(folder):
    bundle = load_bundle(str(folder))
    assert (bundle.name, bundle.labels, bundle.output, bundle.label_offset) == ('lights', LABELS, 'softmax', 0)
    assert bundle.preprocessing == Preprocessing(SIZE, SIZE)
    assert bundle.read_model() == model_bytes()


def test_everything_the_card_says(folder):
    size = {'width': SIZE, 'height': SIZE}
    card(folder, preprocessing={**size, 'resize': 'letterbox', 'color_order': 'bgr', 'mean': [104, 117, 124], 'std': [1, 2, 3], 'remark': 'x'},
         output='logits', label_offset=1)
    bundle = load_bundle(str(folder))
    assert bundle.preprocessing == Preprocessing(SIZE, SIZE, 'letterbox', 'bgr', (104.0, 117.0, 124.0), (1.0, 2.0, 3.0))
    assert (bundle.output, bundle.label_offset) == ('logits', 1)


@pytest.fixture
def installed(folder, monkeypatch):
    """``folder`` as an installed package's models/lights."""
    share = folder.parent / 'prefix' / 'share' / 'edge_resnet'
    (share / 'models').mkdir(parents=True)
    shutil.move(folder, share / 'models' / 'lights')
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{folder.parent / "prefix"}')
    return share / 'models' / 'lights'


def test_a_name_is_looked_for_where_packages_are_installed(installed):
    assert load_bundle('lights').model_path == installed / 'model.tflite'


def test_an_unknown_name_tells_the_known_ones(installed):
    with pytest.raises(ModelError, match=r"no models named 'signs'; installed: .*lights"):
        load_bundle('signs')


def test_a_link_installed_bundle_works(folder, tmp_path):
    """colcon build --symlink-install links every file to the source tree."""
    linked = tmp_path / 'install' / 'lights'
    linked.mkdir(parents=True)
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert load_bundle(str(linked)).labels == LABELS


def test_settings_win_over_the_card(folder, tmp_path):
    (tmp_path / 'other.txt').write_text('x\ny\nz\n')
    labels_file = str(tmp_path / 'other.txt')
    bundle = load_bundle(str(folder), {'resize': 'center_crop', 'mean': [1.0, 2.0, 3.0], 'output': 'logits', 'labels_file': labels_file})
    assert (bundle.preprocessing.resize, bundle.preprocessing.mean, bundle.output, bundle.labels) == (
        'center_crop', (1.0, 2.0, 3.0), 'logits', ('x', 'y', 'z'))


def test_empty_settings_leave_the_card_alone(folder):
    """Parameters that nobody set arrive as empty strings and lists."""
    card(folder, preprocessing={'width': SIZE, 'height': SIZE, 'resize': 'letterbox', 'mean': [1, 2, 3]})
    bundle = load_bundle(str(folder), {'resize': '', 'mean': [], 'std': (), 'output': None, 'labels_file': ''})
    assert (bundle.preprocessing.resize, bundle.preprocessing.mean) == ('letterbox', (1.0, 2.0, 3.0))


# Bare .tflite

@pytest.fixture
def bare(tmp_path) -> Path:
    path = tmp_path / 'bare.tflite'
    path.write_bytes(model_bytes('int8'))
    (tmp_path / 'labels.txt').write_text('g\nr\ny\n')
    return path


def test_a_bare_model_with_settings(bare):
    bundle = load_bundle(str(bare), SETTINGS)
    assert (bundle.name, bundle.labels, bundle.sha256) == ('bare', ('g', 'r', 'y'), None)
    assert (bundle.preprocessing.width, bundle.preprocessing.height) == (SIZE, SIZE)
    assert bundle.read_model() == model_bytes('int8')


def test_a_bare_model_with_metadata_needs_nothing_else(bare):
    bare.write_bytes(with_metadata(model_bytes(), (104.0, 117.0, 124.0), (1.0,), 'a\nb\nc'))
    bundle = load_bundle(str(bare))
    assert bundle.labels == ('a', 'b', 'c')  # not the labels.txt beside it
    assert (bundle.preprocessing.mean, bundle.preprocessing.std) == ((104.0, 117.0, 124.0), (1.0,) * 3)


@pytest.mark.parametrize('missing', ['mean', 'std'])
def test_a_bare_model_does_not_guess_how_it_was_trained(bare, missing):
    with pytest.raises(ModelError, match=f"bare.tflite: {missing} is neither in the model's own metadata nor given as a parameter"):
        load_bundle(str(bare), {name: value for name, value in SETTINGS.items() if name != missing})


def test_a_bare_model_without_labels(bare):
    (bare.parent / 'labels.txt').unlink()
    with pytest.raises(ModelError, match='no labels in the model.* and no labels_file given'):
        load_bundle(str(bare), SETTINGS)


def test_a_bare_model_of_another_shape(bare):
    model = unpacked(model_bytes())
    model.subgraphs[0].tensors[0].shape = np.int32([1, 3072])
    bare.write_bytes(packed(model))
    with pytest.raises(ModelError, match=r'input shape is \[1, 3072\], expected \[1, height, width, 3\]'):
        load_bundle(str(bare), SETTINGS)


# Damaged or hostile

def test_another_model_than_the_card_describes(folder):
    data = bytearray(model_bytes())
    data[-1] ^= 1
    (folder / 'model.tflite').write_bytes(data)
    with pytest.raises(ModelError, match=r'model.tflite: sha256 is [0-9a-f]{64}, the card says [0-9a-f]{64}'):
        load_bundle(str(folder)).read_model()


@pytest.mark.parametrize('name', ['model.tflite', 'labels.txt', 'card.yaml'])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f'lights: {name} is missing'):
        load_bundle(str(folder))


@pytest.mark.parametrize('name', ['model.tflite', 'labels.txt', 'card.yaml'])
def test_a_link_out_of_the_bundle_is_refused(folder, tmp_path, name):
    outside = tmp_path / 'outside'
    outside.mkdir()
    shutil.move(folder / name, outside / name)
    (folder / name).symlink_to(outside / name)
    with pytest.raises(ModelError, match='leads out of its bundle to'):
        load_bundle(str(folder))


@pytest.mark.parametrize('model', ['../lights', '..', 'models/../../lights', '/tmp/../etc'])
def test_no_way_up(model):
    with pytest.raises(ParameterError, match=r'a path must not contain "\.\."'):
        load_bundle(model)


def test_an_empty_model_file(folder):
    (folder / 'model.tflite').write_bytes(b'')
    with pytest.raises(ModelError, match='model.tflite: 0 bytes, expected 1 to'):
        load_bundle(str(folder)).read_model()


def test_a_huge_model_file_is_not_read(folder):
    with (folder / 'model.tflite').open('wb') as file:
        file.truncate(module.MAX_MODEL_BYTES + 1)  # sparse
    with pytest.raises(ModelError, match='bytes, expected 1 to'):
        load_bundle(str(folder)).read_model()


@pytest.mark.parametrize(('model', 'message'), [('', 'model is empty'), ('/no/such/folder', 'there is no such bundle folder or .tflite file')])
def test_no_model(model, message):
    with pytest.raises(EdgeResnetError, match=message):
        load_bundle(model)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sha256': 'abc'}, "sha256 is 'abc', expected 64 hex digits"),
    ({'sha256': None}, 'sha256 is None'),
    ({'output': 'sigmoid'}, "output is 'sigmoid', expected one of softmax, logits"),
    ({'label_offset': -1}, 'label_offset is -1, expected 0 to 1000'),
    ({'label_offset': 'one'}, "label_offset is 'one'"),
    ({'preprocessing': [1]}, 'expected a mapping with "preprocessing"'),
    ({'preprocessing': {'mean': 127.5}}, 'card.yaml: mean is 127.5, expected three numbers'),
    ({'preprocessing': {'std': [1, 'two', 3]}}, 'std is .*expected three numbers'),
    ({'preprocessing': {'width': 31.5}}, 'width is 31.5, expected an integer'),
    ({'preprocessing': {'width': float('inf')}}, 'width is inf, expected an integer'),
    ({'preprocessing': {'height': '32'}}, "height is '32', expected an integer"),
    ({'preprocessing': {'resize': 'fit'}}, "card.yaml: resize is 'fit', expected one of"),
    ({'preprocessing': {'std': [1, 0, 1]}}, 'expected numbers above 0'),
])
def test_a_card_that_is_wrong_names_the_field(folder, changes, message):
    card(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_bundle(str(folder))


@pytest.mark.parametrize('text', [b'{', b'- a\n', b'', b'\xff\xfe', b'made: 2024-99-99\n', b'!!python/object/apply:os.system ["true"]\n', b'a: b: c'],
                         ids=['open', 'list', 'empty', 'not UTF-8', 'no such day', 'code', 'colons'])
def test_a_card_that_is_no_card(folder, text):
    (folder / 'card.yaml').write_bytes(text)
    with pytest.raises(ModelError, match='card.yaml: '):
        load_bundle(str(folder))


values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                      lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([*Preprocessing.__dataclass_fields__, 'output', 'label_offset', 'sha256', 'preprocessing']), value=values)
def test_any_value_in_a_card_is_taken_or_refused(tmp_path_factory, name, value):
    folder = write_bundle(tmp_path_factory.mktemp('card') / 'lights')
    if name in Preprocessing.__dataclass_fields__:
        card(folder, preprocessing={name: value})
    else:
        card(folder, **{name: value})
    with contextlib.suppress(EdgeResnetError):
        assert load_bundle(str(folder)).labels == LABELS


# Labels

def test_labels_are_stripped_and_in_order(tmp_path):
    (tmp_path / 'labels.txt').write_bytes('green light \r\nrot\r\n żółty\r\n'.encode())
    assert read_labels(tmp_path / 'labels.txt') == ('green light', 'rot', 'żółty')


def test_a_byte_order_mark_is_not_part_of_the_first_label(tmp_path):
    """Editors on Windows write one, and target_class would never match."""
    (tmp_path / 'labels.txt').write_bytes(b'\xef\xbb\xbfgreen\nred\n')
    assert read_labels(tmp_path / 'labels.txt') == ('green', 'red')


@pytest.mark.parametrize(('data', 'message'), [
    (b'green\n\nred\n', 'labels.txt: line 2 is blank, expected a label'), (b'green\n  \n', 'line 2 is blank'),
    (b'green\nr\xe9d\n', 'labels.txt: .*utf-8'),
])
def test_labels_that_are_none(folder, data, message):
    (folder / 'labels.txt').write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_bundle(str(folder))


@pytest.mark.parametrize(('text', 'message'), [('red\ngreen\nred\n', "label 'red' is there 2 times, expected once"), ('', 'no labels')])
def test_labels_must_tell_classes_apart(folder, text, message):
    (folder / 'labels.txt').write_text(text)
    with pytest.raises(ModelError, match=message):
        load_bundle(str(folder))


def test_a_labels_file_that_is_not_there(folder):
    with pytest.raises(ModelError, match='other.txt: No such file or directory'):
        load_bundle(str(folder), {'labels_file': str(folder / 'other.txt')})
