"""select_model: which model it takes and why not the others, what it refuses to join, and that the parameters it writes start the pipeline."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from tiny_model import LABELS, patch, write_bundle

from edge_resnet.pipeline.bundle import load_bundle
from edge_resnet.tools import benchmark, evaluate, select_model

ROOT = Path(__file__).resolve().parents[2]


def evaluation(name: str, top1: float, size_mb: float, **changes) -> dict:
    model = {'name': name, 'model': name, 'sha256': name * 3, 'size_bytes': int(size_mb * 1e6), 'deployable': True}
    return {'kind': 'evaluation', 'model': {**model, **changes}, 'photos': {'sha256': 'p'}, 'top1': top1, 'top1_interval_95': [top1 - 0.01, top1]}


def measured(*rows: tuple[str, int, float, float], processor: str = 'pi', **changes) -> dict:
    """A benchmark with ``rows`` of (model, threads, p99 in ms, peak memory in MB)."""
    return {'kind': 'benchmark', 'host': {'processor': processor},
            'models': [{'name': name, 'model': name, 'sha256': name * 3, 'size_bytes': 10 ** 7, 'deployable': True, **changes}
                       for name in dict.fromkeys(row[0] for row in rows)],
            'rows': [{'model': name, 'threads': threads, 'runtime': 'litert', 'delegate': True, 'peak_rss_mb': memory,
                      'latency_ms': {'p50': p99 / 2, 'p95': p99 * 0.9, 'p99': p99, 'max': 2 * p99}} for name, threads, p99, memory in rows]}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Three models: large and right, middle, small and wrong; the Pi takes 200, 60 and 20 ms for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    save(large=evaluation('large', 0.99, 24), middle=evaluation('middle', 0.97, 5), small=evaluation('small', 0.90, 2),
         pi=measured(('large', 1, 200, 120), ('large', 4, 80, 130), ('middle', 1, 60, 90), ('small', 1, 20, 80)))
    return tmp_path


def save(**reports: dict) -> None:
    for name, content in reports.items():
        Path(f'{name}.json').write_text(json.dumps(content))


def run(capsys, *argv) -> tuple[int, str, str]:
    code = select_model.main([str(arg) for arg in argv])
    return code, *capsys.readouterr()


ALL = ['--evaluations', 'large.json', 'middle.json', 'small.json', '--benchmarks', 'pi.json']


def reasons(out: str) -> dict[str, list[str]]:
    return {model['name']: model['reasons'] for model in json.loads(out)['models']}


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        select_model.main(['--help'])
    assert end.value.code == 0
    assert 'ros2 run edge_resnet select_model --evaluations' in capsys.readouterr().out


def test_the_smallest_that_meets_the_bar(capsys, here):
    code, out, _ = run(capsys, *ALL, '--min-top1', 0.97, '--json')  # exactly at the bar passes
    assert code == 0
    assert json.loads(out)['chosen'] == 'middle'
    assert reasons(out) == {'middle': [], 'small': ['top-1 is 90.00 %, the bar is at least 97.00 %'],
                            'large': ['it passes, but by size middle comes first: 5 MB against 24']}


@pytest.mark.parametrize(('argv', 'chosen'), [
    (['--min-top1', 0.9], 'small'),
    (['--min-top1', 0.98], 'large'),
    (['--min-top1', 0.9, '--by', 'latency'], 'small'),
    (['--min-top1', 0.95, '--max-latency-ms', 60], 'middle'),
    (['--min-top1', 0.95, '--max-latency-ms', 59], None),
    (['--min-top1', 0.95, '--max-latency-ms', 59, '--percentile', 'p50'], 'middle'),
    (['--min-top1', 0.98, '--max-latency-ms', 100], 'large'),  # with 4 threads
    (['--min-top1', 0.98, '--max-latency-ms', 100, '--threads', 1], None),
    (['--min-top1', 0.98, '--max-rss-mb', 125], 'large'),  # with 1 thread
    (['--min-top1', 0.98, '--max-rss-mb', 125, '--max-latency-ms', 100], None),
    (['--min-top1', 0.98, '--max-size-mb', 20], None),
    (['--min-top1', 0.9, '--max-size-mb', 2], 'small'),
])
def test_bars(capsys, here, argv, chosen):
    code, out, _ = run(capsys, *ALL, *argv, '--json')
    assert (code, json.loads(out)['chosen']) == (0 if chosen else 3, chosen)


def test_none_passes_and_the_closest_is_told(capsys, here):
    code, out, err = run(capsys, *ALL, '--min-top1', 0.98, '--max-latency-ms', 50, '--params', 'params.yaml', '--out', 'out')
    assert code == 3
    assert err == ('select_model: none of 3 models passes; closest is small: top-1 is 90.00 %, the bar is at least 98.00 %\n')
    assert out.startswith('written to out\n\n# No model passes\n')
    assert 'p99 latency is 80 ms, the bar is at most 50 ms' in out
    assert not Path('params.yaml').exists()
    code, _, err = run(capsys, *ALL, '--min-top1', 1, '--max-size-mb', 1)
    assert code == 3
    assert err.endswith('; closest to the bar of top-1: large\n')


def test_a_model_without_a_figure_does_not_pass_on_it(capsys, here):
    save(pi=measured(('large', 1, 50, 100), ('other', 1, 5, 5)))
    code, out, _ = run(capsys, *ALL, '--min-top1', 0.9, '--max-latency-ms', 100, '--json')
    assert (code, json.loads(out)['chosen']) == (0, 'large')
    assert reasons(out)['middle'] == ['p99 latency is unknown, the bar is at most 100 ms']
    assert reasons(out)['other'] == ['top-1 is unknown, the bar is at least 90.00 %']
    assert [model['name'] for model in json.loads(out)['models'] if model['pareto']] == ['large']


def test_a_float_model_or_a_way_that_the_nodes_do_not_run_is_not_chosen(capsys, here):
    table = measured(('large', 1, 200, 100), ('large', 1, 10, 100))
    table['rows'][1]['delegate'] = False
    save(middle=evaluation('middle', 0.99, 1, deployable=False), pi=table)
    code, out, _ = run(capsys, *ALL[:3], *ALL[4:], '--min-top1', 0.97, '--json')
    assert json.loads(out)['chosen'] == 'large'
    assert json.loads(out)['models'][-1]['latency_ms'] == 200
    assert reasons(out)['middle'] == ['it is no bundle: calibrate makes one']


def test_pareto_front_and_plot(capsys, here):
    save(bad=evaluation('bad', 0.95, 30))
    save(pi=measured(('large', 1, 200, 120), ('middle', 1, 60, 90), ('small', 1, 20, 80), ('bad', 1, 210, 1)))
    code, out, _ = run(capsys, *ALL[:4], 'bad.json', *ALL[4:], '--min-top1', 0.9, '--out', 'out', '--json')
    assert code == 0
    assert {model['name'] for model in json.loads(out)['models'] if model['pareto']} == {'large', 'middle', 'small'}
    assert {path.name for path in Path('out').iterdir()} == set(select_model.FILES)
    assert cv2.imread('out/pareto.png').std() > 10
    assert '**chosen**; 95 % interval of its top-1: 89.00 % to 90.00 %' in Path('out/selection.md').read_text()


def test_without_matplotlib_it_still_selects(capsys, here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    code, _, err = run(capsys, *ALL, '--min-top1', 0.97, '--out', 'out')
    assert code == 0
    assert {path.name for path in Path('out').iterdir()} == {'selection.json', 'selection.md'}
    assert 'plots are left out' in err


@pytest.mark.parametrize(('prepare', 'expected'), [
    (lambda: save(pi=measured(('large', 1, 200, 120), sha256='other')), 'pi.json: large has sha256 other, elsewhere it is largelargelarge'),
    (lambda: save(middle=evaluation('large', 0.97, 5, sha256='new')), 'middle.json: large has sha256 new, elsewhere it is largelargelarge'),
    (lambda: save(middle={**evaluation('middle', 0.97, 5), 'photos': {'sha256': 'q'}}), 'middle.json: evaluated on other photos than large.json'),
    (lambda: save(pi=evaluation('large', 0.97, 5)), "pi.json: not a report of kind 'benchmark'"),
    (lambda: save(middle={'kind': 'evaluation'}), "a report lacks what its tool writes (KeyError('photos')), make it anew"),
    (lambda: Path('large.json').write_text('{'), 'large.json: Expecting property name'),
    (lambda: Path('large.json').unlink(), 'large.json'),
    (lambda: Path('params.yaml').write_text('mine'), 'params is params.yaml, which is there already; --force sets the model in it'),
    (lambda: None, 'large: neither large nor an installed model is still the one with sha256 largelargelarge'),
])
def test_refused_in_one_line_and_nothing_is_written(capsys, here, prepare, expected):
    prepare()
    before = sorted(Path('.').iterdir())
    code, out, err = run(capsys, *ALL, '--min-top1', 0.98, '--params', 'params.yaml', '--out', 'out')
    assert (code, out, len(err.splitlines())) == (1, '', 1)
    assert err.startswith('select_model: ')
    assert expected in err
    assert sorted(Path('.').iterdir()) == before


def test_benchmarks_of_two_machines_are_not_joined(capsys, here):
    save(laptop=measured(('large', 1, 10, 100), processor='laptop'))
    code, _, err = run(capsys, *ALL, 'laptop.json', '--min-top1', 0.9)
    assert (code, err) == (1, 'select_model: laptop.json: measured on another machine than pi.json\n')


def test_a_bar_out_of_range(capsys, here):
    assert run(capsys, *ALL, '--min-top1', 97)[2] == 'select_model: min_top1 is 97.0, expected 0 to 1\n'


@pytest.fixture
def walked(here, capsys) -> Path:
    """Real reports of two real models in eval_tiny, eval_exact and bench."""
    rng = np.random.default_rng(4)
    for label in LABELS:
        (here / 'photos' / label).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(f'photos/{label}/{number}.png', patch(label, rng)[..., ::-1])
    for name, dtype in (('tiny', 'int8'), ('exact', 'float32')):
        write_bundle(here / name, dtype)
        assert evaluate.main(['--model', name, '--photos', 'photos', '--out', f'eval_{name}']) == 0
    few = ['--frames', 'photos', '--runs', '5', '--rounds', '1']
    assert benchmark.main(['--models', 'tiny', 'exact', '--threads', '2', *few, '--out', 'bench']) == 0
    capsys.readouterr()
    return here


def test_from_real_reports_to_parameters(capsys, walked):
    smaller = min('tiny', 'exact', key=lambda name: Path(name, 'model.tflite').stat().st_size)
    code, _, err = run(capsys, '--evaluations', 'eval_tiny', 'eval_exact', '--benchmarks', 'bench', '--min-top1', 0.9, '--max-rss-mb', 1000,
                       '--params', 'new/params.yaml')
    assert code == 0, err
    assert err == ''
    sections = yaml.safe_load(Path('new/params.yaml').read_text())
    assert sections == {'/**/preprocess': {'ros__parameters': {'model': str(walked / smaller)}},
                        '/**/inference': {'ros__parameters': {'model': str(walked / smaller), 'runtime': 'litert', 'num_threads': 2}}}
    assert load_bundle(sections['/**/inference']['ros__parameters']['model']).labels == LABELS


def test_force_keeps_other_parameters(capsys, walked):
    Path('params.yaml').write_text((ROOT / 'config/pipeline.yaml').read_text().replace("resize: ''", 'resize: letterbox'))
    before = yaml.safe_load(Path('params.yaml').read_text())
    code, _, err = run(capsys, '--evaluations', 'eval_tiny', '--benchmarks', 'bench', '--min-top1', 0.9, '--params', 'params.yaml', '--force')
    assert code == 0, err
    after = yaml.safe_load(Path('params.yaml').read_text())
    assert {node: section for node, section in after.items() if node not in ('/**/preprocess', '/**/inference')} == {
        node: section for node, section in before.items() if node not in ('/**/preprocess', '/**/inference')}
    inference = after['/**/inference']['ros__parameters']
    assert inference['model'] == after['/**/preprocess']['ros__parameters']['model']
    assert (inference['num_threads'], inference['max_results'], 'resize' in inference) == (2, 5, False)  # the card's resize was evaluated


@pytest.mark.parametrize(('text', 'refused'), [
    ('/**/inference:\n', False), ('/**/inference:\n  ros__parameters:\n', False), ('/**/inference: {ros__parameters: [model]}\n', True),
    ('/**/inference: [model]\n', True), ('- model\n', True)])
def test_sections_with_nothing_in_them_are_filled_and_others_refused(capsys, walked, text, refused):
    Path('params.yaml').write_text(text)
    code, _, err = run(capsys, '--evaluations', 'eval_tiny', '--min-top1', 0.9, '--params', 'params.yaml', '--force')
    assert (code, 'params.yaml: not a parameters file' in err) == (int(refused), refused), err
    assert ('model' in yaml.safe_load(Path('params.yaml').read_text())['/**/inference']['ros__parameters']) if not refused else (
        Path('params.yaml').read_text() == text)


def test_a_model_that_changed_since_is_refused(capsys, walked):
    Path('eval_tiny/evaluation.json').write_text(Path('eval_tiny/evaluation.json').read_text().replace('"model": "tiny"', '"model": "exact"'))
    code, _, err = run(capsys, '--evaluations', 'eval_tiny', '--min-top1', 0.9, '--params', 'params.yaml')
    assert (code, err.count('\n')) == (1, 1)
    assert 'tiny: neither exact nor an installed model is still the one with sha256' in err
    assert not Path('params.yaml').exists()
