"""The calibrate tool from end to end on a tiny model: what it writes, what it refuses, and that it then leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from tiny_model import FLAGS, LABELS, MEAN_STD, SIZE, model_bytes, patch

from edge_resnet.pipeline.bundle import load_bundle
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.interpreter import open_interpreter
from edge_resnet.pipeline.preprocessing import Preprocessing, normalize
from edge_resnet.pipeline.quantization import Quantization, dequantize, input_table
from edge_resnet.tools import calibrate as tool

pytest.importorskip('litert_quantizer', reason='requirements/tools.txt is not installed')


@pytest.fixture(scope='module')
def frames(tmp_path_factory) -> Path:
    """75 different frames, 64x64."""
    return write(tmp_path_factory.mktemp('data') / 'frames', 75)


def write(folder: Path, count: int, seed: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f'{number:03}.png'), patch(LABELS[number % 3], rng, 64)[..., ::-1])
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / 'export'
    folder.mkdir()
    (folder / 'float.tflite').write_bytes(model_bytes())
    (folder / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
    return folder


@pytest.fixture
def run(model, frames, tmp_path, capsys):
    """Runs the tool on ``model`` with ``extra`` arguments, of which the last of a kind wins; (exit code, stdout, stderr)."""
    def call(*extra: object, flags: tuple[str, ...] = (*FLAGS, '--output-kind', 'softmax')) -> tuple[int, str, str]:
        arguments = ['--model', model, '--frames', frames, '--out', tmp_path / 'models' / 'lights', *flags, *extra]
        code = tool.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()
    return call


def nothing_written(tmp_path: Path) -> bool:
    """Nor a temporary folder."""
    return not (tmp_path / 'models').exists() or list((tmp_path / 'models').iterdir()) == []


def test_an_int8_bundle_that_runs_and_a_card_that_is_right(run, frames, model, tmp_path):
    photos = tmp_path / 'photos'
    for label in LABELS:
        rng = np.random.default_rng(len(label))
        (photos / label).mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(photos / label / f'{number}.png'), patch(label, rng)[..., ::-1])
    code, out, err = run('--eval', photos, '--licence', 'CC0', '--source', 'made here')
    assert code == 0, err
    assert f'written to {tmp_path / "models" / "lights"}' in out
    folder = tmp_path / 'models' / 'lights'
    assert sorted(path.name for path in folder.iterdir()) == ['card.yaml', 'labels.txt', 'model.tflite']
    assert [path.name for path in folder.parent.iterdir()] == ['lights']

    bundle = load_bundle(str(folder))
    classifier = Classifier(bundle)
    assert classifier.input_dtype == np.int8
    assert (bundle.preprocessing, bundle.labels) == (Preprocessing(SIZE, SIZE, **MEAN_STD), LABELS)
    rng = np.random.default_rng(99)
    for label in LABELS * 5:
        assert LABELS[classifier.classify(patch(label, rng)).argmax()] == label

    data, card = (folder / 'model.tflite').read_bytes(), yaml.safe_load((folder / 'card.yaml').read_text())
    assert (card['sha256'], card['size_bytes']) == (hashlib.sha256(data).hexdigest(), len(data))
    assert card['float_sha256'] == hashlib.sha256(model_bytes()).hexdigest()
    assert (card['name'], card['method'], card['licence'], card['source']) == ('lights', 'int8', 'CC0', 'made here')
    measured, calibrated = card['measured'], card['calibration']
    assert (measured['agreement'], measured['evaluated'], measured['top1'], measured['top1_float']) == (1.0, 12, 1.0, 1.0)
    assert 0 <= measured['drift_mean'] <= measured['drift_max'] < 0.1
    assert (calibrated['frames'], calibrated['count'], calibrated['held_out'], calibrated['warnings']) == ('frames', 60, 15, [])
    assert [len(calibrated['histograms'][color]) for color in ('red', 'green', 'blue')] == [32] * 3
    assert str(tmp_path) not in (folder / 'card.yaml').read_text()


def test_no_pixel_value_is_clipped_at_the_input(run, tmp_path):
    """The frames don't reach 0 or 255, a camera does."""
    assert run()[0] == 0
    (quantized,) = open_interpreter((tmp_path / 'models/lights/model.tflite').read_bytes())[1].get_input_details()
    quantization, spec = Quantization(*quantized['quantization']), Preprocessing(**MEAN_STD)
    real = normalize(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3), spec)[0]
    error = dequantize(input_table(spec, quantization, np.dtype(np.int8)), quantization) - real
    assert np.abs(error).max() <= quantization.scale * 0.51  # half a step, at both ends too


def test_the_same_frames_and_seed_give_the_same_model(run, tmp_path):
    cards = []
    for name in ('one', 'two'):
        assert run('--out', tmp_path / 'models' / name)[0] == 0
        cards.append(yaml.safe_load((tmp_path / 'models' / name / 'card.yaml').read_text()))
    assert cards[0]['sha256'] == cards[1]['sha256']
    assert cards[0]['calibration'] == cards[1]['calibration']


def test_another_seed_chooses_other_frames(frames, model, tmp_path):
    one, two = (tool.choose(tool.arguments(['--model', str(model), '--frames', str(frames), '--out', 'x', '--seed', seed])) for seed in '78')
    assert one != two
    assert sorted(one[0] + one[1]) == sorted(two[0] + two[1])


def test_held_out_frames_are_not_calibrated_on(frames, model, tmp_path):
    args = tool.arguments(['--model', str(model), '--frames', str(frames), '--out', str(tmp_path / 'x'), '--count', '40'])
    used, held = tool.choose(args)
    assert (len(used), len(held)) == (32, 8)
    assert not set(used) & set(held)


def test_settings_come_from_beside_the_model(run, model, tmp_path):
    said = {'preprocessing': {'resize': 'stretch', 'color_order': 'rgb', 'mean': [127.5] * 3, 'std': [127.5] * 3}, 'output': 'softmax',
            'weights_licence': 'Apache-2.0', 'weights_source': 'somewhere'}
    (model / 'export.json').write_text(json.dumps(said))
    code, out, _ = run('--json', flags=())
    assert code == 0
    card = json.loads(out)
    assert (card['licence'], card['source'], card['preprocessing']['mean']) == ('Apache-2.0', 'somewhere', [127.5] * 3)


def test_methods_are_compared_and_the_first_is_written(run):
    code, out, _ = run('--methods', 'int8', 'dynamic', 'float16', '--layers', '--json')
    assert code == 0
    card = json.loads(out)
    assert card['method'] == 'int8'
    assert set(card['measured']['compared']) == {'dynamic', 'float16'}
    assert card['measured']['compared']['float16']['agreement'] == 1.0
    ratios = [layer['signal_to_noise_db'] for layer in card['measured']['worst_layers']]
    assert ratios == sorted(ratios)
    assert ratios


# Refused, and nothing is left behind

def test_too_few_frames(run, tmp_path):
    code, _, err = run('--frames', write(tmp_path / 'few', 12))
    assert code == 1
    assert 'few: 10 different frames of 10 to calibrate on, expected 20 or more besides the 2 held out (--force goes on)' in err
    assert nothing_written(tmp_path)


def test_many_frames_of_one_scene_are_few(run, tmp_path):
    folder, rng = tmp_path / 'static', np.random.default_rng(0)
    folder.mkdir()
    still = patch('red', rng, 64).astype(float)
    for number in range(60):
        cv2.imwrite(str(folder / f'{number}.png'), np.clip(still + rng.normal(0, 2, still.shape), 0, 255).astype(np.uint8))
    code, _, err = run('--frames', folder)
    assert code == 1
    assert '1 different frames of 48 to calibrate on' in err
    code, _, err = run('--frames', folder, '--force')
    assert code == 0
    assert 'warning: few frames: 1 different ones of 48' in err
    assert 'warning: frames too alike: 98% are' in err
    assert yaml.safe_load((tmp_path / 'models/lights/card.yaml').read_text())['calibration']['warnings'][0].startswith('few frames')


@pytest.mark.parametrize('kind', ['file', 'folder', 'dangling link'])
def test_what_is_there_already_is_not_overwritten(run, tmp_path, kind):
    out = tmp_path / 'models' / 'lights'
    out.parent.mkdir()
    {'file': lambda: out.write_text('mine'), 'folder': out.mkdir, 'dangling link': lambda: out.symlink_to('nowhere')}[kind]()
    code, _, err = run()
    assert code == 1
    assert 'which is there already; expected the name of a new bundle' in err
    assert [path.name for path in out.parent.iterdir()] == ['lights']


def test_agreement_under_the_bar(run, tmp_path):
    """Frames of no colour at all, which INT8 and float see differently, as a model would that does not stand quantisation."""
    folder, rng = tmp_path / 'grey', np.random.default_rng(5)
    folder.mkdir()
    for number in range(100):
        blocks = rng.integers(100, 140, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
        cv2.imwrite(str(folder / f'{number}.png'), blocks.astype(np.uint8))
    code, _, err = run('--frames', folder, '--min-agreement', 1, '--held-out', 0.6, '--force')
    assert code == 1
    assert 'top-1 agreement with the float model is ' in err
    assert '% on 60 held-out frames, expected 100.0% or more' in err
    assert 'nothing was written' in err
    assert nothing_written(tmp_path)


def test_a_label_that_the_model_does_not_have(run, tmp_path):
    write(tmp_path / 'photos' / 'blue', 1)
    code, _, err = run('--eval', tmp_path / 'photos')
    assert code == 1
    assert "label 'blue' is not one of the model, expected green, red, yellow" in err
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(('extra', 'message'), [
    (['--out', 'a b'], 'expected a name of letters'), (['--out', 'models/x.y'], 'expected a name of letters'),
    (['--held-out', 0], 'held_out is 0.0, expected 0.01 to 0.9'), (['--min-agreement', 1.5], 'min_agreement is 1.5, expected 0 to 1'),
    (['--min-agreement', 'nan'], 'min_agreement is nan'), (['--count', 1], 'count is 1, expected 2 to 100000'), (['--seed', -1], 'seed is -1'),
    (['--std', 1, 0, 1], 'expected numbers above 0'), (['--frames', '/nowhere'], '/nowhere: there is no such folder'),
    (['--model', '/nowhere'], '/nowhere: there is no such model'), (['--labels', '/nowhere.txt'], '/nowhere.txt: No such file'),
    (['--label-offset', 1], '3 outputs, but 3 labels and label_offset 1'),
])
def test_bad_arguments_are_one_line(run, tmp_path, monkeypatch, extra, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*extra)
    assert (code, out) == (1, '')
    assert err.splitlines()[-1].startswith('calibrate: ')
    assert message in err.splitlines()[-1]
    assert nothing_written(tmp_path)


def test_it_does_not_guess_how_the_model_was_trained(run, tmp_path):
    code, _, err = run(flags=('--resize', 'stretch'))
    assert code == 1
    assert 'nothing beside it says how it was trained; expected --color-order --mean --std --output-kind' in err
    assert nothing_written(tmp_path)


def test_a_model_that_is_quantised_already(run, model):
    (model / 'float.tflite').write_bytes(model_bytes('int8'))
    code, _, err = run()
    assert code == 1
    assert 'input is int8 [1, 32, 32, 3], expected float32 [1, height, width, 3]' in err


def test_an_unreadable_frame_is_named(run, tmp_path):
    folder = write(tmp_path / 'broken', 30)
    (folder / '007.png').write_bytes(b'\x89PNG no')
    code, _, err = run('--frames', folder)
    assert code == 1
    assert '007.png: not a readable image' in err


@pytest.mark.parametrize(('failure', 'code', 'message'), [
    (KeyboardInterrupt(), 130, 'calibrate: interrupted, nothing was written'), (OSError(28, 'No space left on device'), 1, 'No space left on device'),
    (RuntimeError('tensor\n  gone'), 1, 'tensor gone')])
def test_whatever_fails_on_the_way_leaves_nothing(run, tmp_path, monkeypatch, failure, code, message):
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(tool.Quantization, 'quantize', fail)
    found, _, err = run()
    assert (found, nothing_written(tmp_path)) == (code, True)
    assert message in err.splitlines()[-1]


def test_without_the_quantizer_it_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'LIBRARIES', ('no_such_quantizer',))
    code, _, err = run()
    assert code == 1
    assert 'litert-quantizer is not installed: pip install -r requirements/tools.txt' in err
    assert nothing_written(tmp_path)


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(['--help'])
    assert end.value.code == 0
    assert 'ros2 run edge_resnet calibrate --model' in capsys.readouterr().out
