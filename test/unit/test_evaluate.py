"""evaluate: figures that can be checked by hand, one clear line for bad input, all or nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_model import COLORS, FLAGS, LABELS, SIZE, patch, tiny_float_model, write_bundle

from edge_resnet.tools import evaluate

ROOT = Path(__file__).resolve().parents[2]


def run(capsys, *argv) -> tuple[int, str, str]:
    code = evaluate.main([str(arg) for arg in argv])
    return code, *capsys.readouterr()


@pytest.fixture
def photos(tmp_path) -> Path:
    """10 photos a class; but 2 of those in the folder red are green, 1 is yellow: 27 of 30 are what their folder says."""
    rng = np.random.default_rng(3)
    for label in LABELS:
        (tmp_path / 'photos' / label).mkdir(parents=True)
        for number in range(10):
            shown = {0: 'green', 1: 'green', 2: 'yellow'}.get(number, 'red') if label == 'red' else label
            cv2.imwrite(str(tmp_path / f'photos/{label}/{number}.png'), patch(shown, rng, 64)[..., ::-1])
    return tmp_path / 'photos'


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_bundle(tmp_path / 'tiny', 'int8')


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main(['--help'])
    assert end.value.code == 0
    assert 'ros2 run edge_resnet evaluate --model' in capsys.readouterr().out


def test_figures(capsys, tmp_path, photos, tiny):
    code, out, _ = run(capsys, '--model', tiny, '--photos', photos, '--out', tmp_path / 'out', '--json')
    result = json.loads(out)
    assert code == 0
    assert (result['correct'], result['photos']['count'], result['top1'], result['top5']) == (27, 30, 0.9, None)
    assert result['top1_interval_95'] == [0.7438, 0.9654]  # Wilson's, by R's prop.test(27, 30, correct = FALSE)
    assert result['confusion'] == {'green': {'green': 10}, 'red': {'green': 2, 'red': 7, 'yellow': 1}, 'yellow': {'yellow': 10}}
    assert {entry['label']: (entry['precision'], entry['recall'], entry['support']) for entry in result['per_class']} == {
        'green': (0.8333, 1.0, 10), 'red': (1.0, 0.7, 10), 'yellow': (0.9091, 1.0, 10)}
    assert sum(entry['count'] for entry in result['calibration']['bins']) == 30
    assert result['model']['name'] == 'tiny'
    assert result['model']['size_bytes'] == (tiny / 'model.tflite').stat().st_size
    assert json.loads((tmp_path / 'out/evaluation.json').read_text()) == result
    assert {path.name for path in (tmp_path / 'out').iterdir()} == set(evaluate.FILES)
    assert all(cv2.imread(str(tmp_path / 'out' / name)).std() > 10 for name in ('confusion.png', 'reliability.png'))
    text = (tmp_path / 'out/evaluation.md').read_text()
    assert '| top-1 | 90.00 % (95 %: 74.38 % to 96.54 %) |' in text
    assert '| red | green | 2 |' in text


def test_a_csv_is_the_same_as_folders(capsys, tmp_path, photos, tiny):
    table = tmp_path / 'some.csv'
    table.write_text('file,label\n' + ''.join(f'photos/{path.parent.name}/{path.name},{path.parent.name}\n' for path in sorted(photos.glob('*/*'))))
    by_folder, by_table = (json.loads(run(capsys, '--model', tiny, '--photos', source, '--out', tmp_path / name, '--json')[1])
                           for name, source in (('a', photos), ('b', table)))
    assert by_table['confusion'] == by_folder['confusion']
    assert by_table['photos']['sha256'] == by_folder['photos']['sha256']


@pytest.mark.parametrize(('resize', 'seen'), [('center_crop', 'red'), ('stretch', 'green')])
def test_photos_are_fitted_as_the_card_says(capsys, tmp_path, resize, seen):
    photo = np.empty((SIZE, 6 * SIZE, 3), np.uint8)
    photo[:] = COLORS['green']
    photo[:, 2 * SIZE + SIZE // 2:-2 * SIZE - SIZE // 2] = COLORS['red']
    (tmp_path / 'photos/red').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'photos/red/a.png'), photo[..., ::-1])
    bundle = write_bundle(tmp_path / 'model', preprocessing={'width': SIZE, 'height': SIZE, 'resize': resize})
    _, out, _ = run(capsys, '--model', bundle, '--photos', tmp_path / 'photos', '--out', tmp_path / 'out', '--json')
    assert json.loads(out)['confusion'] == {'red': {seen: 1}}


@pytest.mark.parametrize(('right', 'count', 'expected'), [(0, 10, [0.0, 0.2775]), (8, 10, [0.4902, 0.9433]), (10, 10, [0.7225, 1.0])])
def test_wilson_as_in_the_literature(right, count, expected):
    assert evaluate.wilson(right, count) == expected


@pytest.mark.parametrize(('first', 'second', 'expected'), [(0, 0, 1.0), (5, 5, 1.0), (1, 8, 20 / 512), (8, 1, 20 / 512), (0, 6, 2 / 64)])
def test_mcnemar_is_the_two_sided_sign_test(first, second, expected):
    assert evaluate.mcnemar(first, second) == pytest.approx(expected)


def test_reliability():
    score = np.array([0.95] * 10 + [0.55] * 10 + [1.0])
    right = np.array([True] * 7 + [False] * 3 + [True] * 5 + [False] * 5 + [True])
    result = evaluate.reliability(right, score)
    assert [entry['count'] for entry in result['bins']] == [0, 0, 0, 0, 0, 10, 0, 0, 0, 11]
    assert (result['bins'][5]['score'], result['bins'][5]['accuracy'], result['bins'][0]['score']) == (0.55, 0.5, None)
    assert result['ece'] == pytest.approx((abs(5.5 - 5) + abs(10.5 - 8)) / 21, abs=1e-4)


def test_top5_counts_only_with_more_than_five_classes():
    labels, truth, best = [f'class {n}' for n in range(6)], np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0])
    result = evaluate.metrics(truth, best, np.full(4, 0.4), np.array([True, True, True, False]), labels)
    assert (result['top1'], result['top5']) == (0.25, 0.75)
    assert [entry['label'] for entry in result['per_class']] == labels[:4]
    assert result['per_class'][1]['precision'] is None  # never predicted
    assert evaluate.metrics(truth, best, np.full(4, 0.4), np.ones(4, bool), labels[:5])['top5'] is None


def test_against_a_model_that_mixes_up_red_and_green(capsys, tmp_path, photos, tiny):
    other = write_bundle(tmp_path / 'other')
    (other / 'labels.txt').write_text('red\ngreen\nyellow\n')
    code, out, _ = run(capsys, '--model', tiny, '--against', other, '--photos', photos, '--out', tmp_path / 'out', '--json')
    against = json.loads(out)['against']
    assert code == 0
    assert against['top1'] == 0.4  # 10 yellow ones, and 2 of the 10 called red
    assert against['agreement'] == pytest.approx(11 / 30, abs=1e-4)  # what looks yellow
    assert (against['mcnemar']['only_model_right'], against['mcnemar']['only_against_right']) == (17, 2)
    assert against['mcnemar']['p_value'] == 0.0007
    assert 'top-1 of other | 40.00 %' in (tmp_path / 'out/evaluation.md').read_text()


def test_against_the_float_model_of_an_export(capsys, tmp_path, photos, tiny):
    folder = tmp_path / 'export'
    folder.mkdir()
    tiny_float_model(folder / 'float.tflite')
    (folder / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
    named = dict(zip(('mean', 'std'), ([127.5] * 3, [127.5] * 3), strict=True))
    (folder / 'export.json').write_text(json.dumps({'preprocessing': {'resize': FLAGS[9], 'color_order': FLAGS[11], **named}, 'output': 'softmax'}))
    code, out, err = run(capsys, '--model', tiny, '--against', folder, '--photos', photos, '--out', tmp_path / 'out', '--json')
    assert code == 0, err
    against = json.loads(out)['against']
    assert (against['agreement'], against['model']['name'], against['model']['deployable']) == (1.0, 'export/float.tflite', False)


def test_without_matplotlib_there_are_no_plots_and_it_says_so(capsys, tmp_path, photos, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    code, out, err = run(capsys, '--model', tiny, '--photos', photos, '--out', tmp_path / 'out')
    assert code == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'evaluation.json', 'evaluation.md'}
    assert 'matplotlib is not installed: plots are left out' in err
    assert 'Plots were left out' in out
    assert '.png' not in out


def spoil(path: Path, text: str = 'no image') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(('prepare', 'argv', 'expected'), [
    (lambda here: spoil(here / 'photos/red/x.png'), [], 'x.png: not a readable image'),
    (lambda here: spoil(here / 'photos/blue/x.png'), [], "x.png: label 'blue' is not one of the model, expected green, red, yellow"),
    (lambda here: (here / 'empty').mkdir(), ['--photos', 'empty'], 'empty: no images'),
    (lambda here: None, ['--photos', 'nowhere'], 'nowhere: there is no such folder'),
    (lambda here: spoil(here / 'x.csv', 'file,label\nnone.png,red\n'), ['--photos', 'x.csv'], 'none.png: there is no such file'),
    (lambda here: spoil(here / 'tiny/labels.txt', 'green\nred\nyellow\nblue\n'), [], 'tiny: 3 outputs, but 4 labels'),
    (lambda here: spoil(here / 'tiny/model.tflite'), [], 'model.tflite: sha256 is'),
    (lambda here: spoil(write_bundle(here / 'b') / 'labels.txt', 'green\nred\nblue\n'), ['--against', 'b'], 'b and tiny have different labels'),
    (lambda here: None, ['--model', 'nowhere/model'], "model 'nowhere/model': there is no such bundle folder"),
    (lambda here: None, ['--threads', '0'], 'threads is 0, expected 1 to 64'),
    (lambda here: spoil(here / 'out/mine.txt'), [], 'out is out, which is there already'),
    (lambda here: spoil(here / 'out/mine.txt'), ['--force'], "'mine.txt' is no part of a report"),
])
def test_bad_input_is_one_line_and_nothing_is_written(capsys, tmp_path, photos, tiny, monkeypatch, prepare, argv, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))  # for the trial of the model in a child process
    prepare(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    code, out, err = run(capsys, '--model', 'tiny', '--photos', 'photos', '--out', 'out', *argv)
    lines = [line for line in err.splitlines() if not line.startswith(('evaluating, photo', 'INFO:'))]
    assert (code, out, len(lines)) == (1, '', 1)
    assert lines[0].startswith('evaluate: ')
    assert expected in lines[0]
    assert sorted(tmp_path.rglob('*')) == before


def test_force_replaces_an_earlier_report(capsys, tmp_path, photos, tiny):
    spoil(tmp_path / 'out/evaluation.json', '{}')
    code, *_ = run(capsys, '--model', tiny, '--photos', photos, '--out', tmp_path / 'out', '--force')
    assert code == 0
    assert json.loads((tmp_path / 'out/evaluation.json').read_text())['correct'] == 27
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'photos', 'tiny']


def test_ctrl_c_writes_nothing(capsys, tmp_path, photos, tiny, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, 'read_rgb', interrupt)
    code, _, err = run(capsys, '--model', tiny, '--photos', photos, '--out', tmp_path / 'out')
    assert (code, err.splitlines()[-1]) == (130, 'evaluate: interrupted, nothing was written')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['photos', 'tiny']
