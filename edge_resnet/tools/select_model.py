"""The smallest model that is right, fast and small enough, why each other one is not it, and a parameters file to start it with.

    ros2 run edge_resnet select_model --evaluations reports/eval_* --benchmarks reports/pi4 --min-top1 0.97 --max-latency-ms 100 --params my.yaml
    ros2 launch edge_resnet pipeline.launch.py params_file:=my.yaml

--evaluations and --benchmarks are reports of the tools of that name, JSON files or their folders. They are joined by the model's
sha256; evaluations must be of the same photos, benchmarks of the same machine. MB are 1e6 bytes. --out gets selection.json,
selection.md and pareto.png. Exit code 0: found; 3: no model passes, and the closest one is named; 1: error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from edge_resnet.exceptions import EdgeResnetError, ModelError, ParameterError
from edge_resnet.pipeline.bundle import find_shared, load_bundle
from edge_resnet.tools import plots, report

FILES = ('selection.json', 'selection.md', 'pareto.png')
PERCENTILES = ('p50', 'p95', 'p99', 'max')
BOUNDS = {'min_top1': (0, 1), 'max_latency_ms': (1e-3, 1e6), 'max_size_mb': (1e-6, 1e5), 'max_rss_mb': (1, 1e6), 'threads': (1, 64)}
NONE_PASSES = 3
INFINITE = float('inf')
UNKNOWN = dict.fromkeys(('latency_ms', 'peak_rss_mb', 'runtime', 'threads'))
PARAMS_HEADER = '# Written by select_model: the model that was chosen, and how it was measured. Other parameters keep their defaults or values.\n'


class Bar(NamedTuple):
    """``figure`` of a candidate has to be at most ``bound``, or at least it."""

    name: str
    figure: str
    bound: float
    unit: str
    at_least: bool = False

    def shown(self, value: float) -> str:
        return report.percent(value) if self.unit == '%' else f'{value:.4g} {self.unit}'

    def miss(self, candidate: dict[str, Any]) -> float:
        """By how much of the bound it is missed; 0 or less is a pass, infinite is unknown."""
        value = candidate[self.figure]
        return INFINITE if value is None else (value - self.bound) * (-1 if self.at_least else 1) / (self.bound or 1)

    def verdict(self, candidate: dict[str, Any]) -> str:
        value, bound = candidate[self.figure], f'{"at least" if self.at_least else "at most"} {self.shown(self.bound)}'
        return f'{self.name} is {"unknown" if value is None else self.shown(value)}, the bar is {bound}'


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('select_model', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--evaluations', type=Path, nargs='+', required=True, help='reports of evaluate')
    parser.add_argument('--benchmarks', type=Path, nargs='+', default=[], help='reports of benchmark')
    parser.add_argument('--min-top1', type=float, required=True, metavar='SHARE', help='e.g. 0.97')
    parser.add_argument('--max-latency-ms', type=float, metavar='MS')
    parser.add_argument('--percentile', choices=PERCENTILES, default='p99', help='of the latency (default: %(default)s)')
    parser.add_argument('--max-size-mb', type=float, metavar='MB')
    parser.add_argument('--max-rss-mb', type=float, metavar='MB', help='peak memory of a process with the model')
    parser.add_argument('--threads', type=int, help='only benchmarks with so many threads (default: whichever is best)')
    parser.add_argument('--by', choices=('size', 'latency'), default='size', help='what the choice is the smallest in (default: %(default)s)')
    parser.add_argument('--params', type=Path, help='parameters file to write; one that is there keeps its other parameters with --force')
    return report.options(parser, required=False).parse_args(argv)


def join(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A candidate for each model and way it was benchmarked, with None for what was not measured; ways without the default
    delegate are left out, for the nodes always use it. ParameterError for reports that don't belong together."""
    evaluations = {path: report.read(path, 'evaluation') for path in args.evaluations}
    benchmarks = {path: report.read(path, 'benchmark') for path in args.benchmarks}
    photos, hosts = ({path: found[key][name] for path, found in some.items()} for some, key, name in
                     ((evaluations, 'photos', 'sha256'), (benchmarks, 'host', 'processor')))
    for values, what in ((photos, 'evaluated on other photos than'), (hosts, 'measured on another machine than')):
        for path, value in values.items():
            if value != next(iter(values.values())):
                raise ParameterError(f'{path}: {what} {next(iter(values))}')
    models: dict[str, dict[str, Any]] = {}  # by name
    ways: dict[str, list[dict[str, Any]]] = {}  # by sha256
    for path, found in [*evaluations.items(), *benchmarks.items()]:
        figures = {name: found.get(name) for name in ('top1', 'top1_interval_95')}
        for model in (entry for entry in found.get('models', [found.get('model')]) if 'sha256' in entry):
            name, digest = model['name'], model['sha256']
            if models.get(name, model)['sha256'] != digest:
                raise ParameterError(f'{path}: {name} has sha256 {digest}, elsewhere it is {models[name]["sha256"]}: not the same model')
            if digest not in ways or found['kind'] == 'evaluation':  # else known by another name
                models.setdefault(name, {**model, **figures})
            ways.setdefault(digest, []).extend(
                {**{key: row[key] for key in UNKNOWN}, 'latency_ms': row['latency_ms'][args.percentile]} for row in found.get('rows', ())
                if row['model'] == name and 'error' not in row and row['delegate'] and args.threads in (None, row['threads']))
    return [{**model, 'size_mb': model['size_bytes'] / 1e6, **way} for model in models.values() for way in ways[model['sha256']] or [UNKNOWN]]


def select(args: argparse.Namespace) -> dict[str, Any]:
    """The report: each model at its best, the choice among those that pass, or else what was closest."""
    report.check(args, BOUNDS)
    bars = [Bar('top-1', 'top1', args.min_top1, '%', at_least=True), Bar(f'{args.percentile} latency', 'latency_ms', args.max_latency_ms, 'ms'),
            Bar('size', 'size_mb', args.max_size_mb, 'MB'), Bar('peak memory', 'peak_rss_mb', args.max_rss_mb, 'MB')]
    bars = [bar for bar in bars if bar.bound is not None]
    figure, unit = ('latency_ms', 'ms') if args.by == 'latency' else ('size_mb', 'MB')

    def order(candidate: dict[str, Any]) -> list[float]:
        values = (candidate[name] for name in (figure, 'latency_ms', 'size_mb'))
        return [INFINITE if value is None else value for value in values]

    def far(candidate: dict[str, Any]) -> tuple[Any, ...]:
        return not candidate['deployable'], sum(max(0.0, bar.miss(candidate)) for bar in bars), order(candidate)

    try:
        candidates = join(args)
    except (KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f'a report lacks what its tool writes ({error!r}), make it anew') from error
    best: dict[str, dict[str, Any]] = {}
    for candidate in candidates:
        candidate['reasons'] = [bar.verdict(candidate) for bar in bars if bar.miss(candidate) > 0]
        if not candidate['deployable']:
            candidate['reasons'].append('it is no bundle: calibrate makes one')
        if candidate[figure] is None and args.max_latency_ms is None:
            candidate['reasons'].append('its latency is unknown')
        if candidate['name'] not in best or far(candidate) < far(best[candidate['name']]):
            best[candidate['name']] = candidate
    models = sorted(best.values(), key=order)
    chosen = next((model for model in models if not model['reasons']), None)
    closest = min(models, key=far)
    measured = [name for name in ('latency_ms', 'size_mb') if any(model[name] is not None for model in models)]
    points = [[INFINITE if model['top1'] is None else -model['top1'], *(INFINITE if model[name] is None else model[name] for name in measured)]
              for model in models]
    for model, point in zip(models, points, strict=True):
        model['pareto'] = max(point) < INFINITE and not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        if chosen and model is not chosen and not model['reasons']:
            figures = f'{chosen[figure]:.4g} {unit} against {model[figure]:.4g}'
            model['reasons'].append(f'it passes, but by {args.by} {chosen["name"]} comes first: {figures}')
    missed = [] if chosen else [bar for bar in bars if min(map(bar.miss, models)) > 0]
    return {'kind': 'selection', 'bars': [bar._asdict() for bar in bars], 'percentile': args.percentile, 'by': args.by, 'models': models,
            'chosen': chosen and chosen['name'], 'closest': None if chosen else closest['name'],
            'closest_to_bar': {bar.name: min(models, key=bar.miss)['name'] for bar in missed}}


def markdown(result: dict[str, Any], drawn: bool) -> str:
    rows = [(model['name'], None if model['top1'] is None else report.percent(model['top1']), model['latency_ms'],
             report.megabytes(model['size_bytes']), model['peak_rss_mb'], model['threads'], '; '.join(model['reasons']) or
             f'**chosen**; 95 % interval of its top-1: {" to ".join(map(report.percent, model["top1_interval_95"]))}') for model in result['models']]
    bars = ', '.join(f'{bar["name"]} {"at least" if bar["at_least"] else "at most"} {Bar(**bar).shown(bar["bound"])}' for bar in result['bars'])
    head = ('model', 'top-1', f'{result["percentile"]} ms', 'size', 'peak MB', 'threads', 'why')
    return f'# {result["chosen"] or "No model passes"}\n\nBars: {bars}; the smallest by {result["by"]}.\n\n{report.table(head, rows)}' + (
        '\n![Accuracy against latency](pareto.png)\n' if drawn else '')


def deployed(model: dict[str, Any]) -> str:
    """What to set the nodes' ``model`` to: its name if it is installed, else its absolute path; ModelError when it is not there any more."""
    for value, find in ((model['name'], functools.partial(find_shared, 'models', model['name'])), ('', Path(model['model']).resolve)):
        with contextlib.suppress(EdgeResnetError):
            path = str(find())
            if report.described(path, load_bundle(path))['sha256'] == model['sha256']:
                return value or path
    raise ModelError(f'{model["name"]}: neither {model["model"]} nor an installed model is still the one with sha256 {model["sha256"]}')


def params(path: Path, model: dict[str, Any]) -> str:
    """The text of the parameters file: what ``path`` already has, but with ``model`` and how it was benchmarked. What overrode the
    card of the model before is dropped."""
    try:
        found = (yaml.safe_load(path.read_text(encoding='utf-8')) if path.exists() else {}) or {}
        sections = {node: next((key for key in found if key.split('/')[-1] == node), f'/**/{node}') for node in ('preprocess', 'inference')}
        values = {}
        for node, key in sections.items():
            section = found[key] = found.get(key) or {}
            values[node] = section['ros__parameters'] = dict(section.get('ros__parameters') or {})
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ParameterError(f'{path}: not a parameters file ({" ".join(str(error).split())})') from error
    for section in values.values():
        for name in ('resize', 'color_order', 'mean', 'std', 'output', 'labels_file'):
            section.pop(name, None)
        section['model'] = deployed(model)
    if model['threads']:
        values['inference'].update(runtime=model['runtime'], num_threads=model['threads'])
    return PARAMS_HEADER + yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def work() -> int:
        if args.params and os.path.lexists(args.params) and not args.force:
            raise ParameterError(f'params is {args.params}, which is there already; --force sets the model in it')
        if args.out:
            report.check_out(args.out, FILES, args.force)
        result = select(args)
        chosen = next((model for model in result['models'] if model['name'] == result['chosen']), None)
        text = params(args.params, chosen) if args.params and chosen else None
        report.deliver(args, FILES, result, markdown, *([((7, 5), lambda chart: plots.pareto(result, chart))] if args.out else []))
        if text:
            report.write_text(args.params, text)
        if not chosen:
            closest = next(model for model in result['models'] if model['name'] == result['closest'])
            others = ''.join(f'; closest to the bar of {bar}: {name}' for bar, name in result['closest_to_bar'].items() if name != closest['name'])
            reasons = '; '.join(closest['reasons']) + others
            print(f'select_model: none of {len(result["models"])} models passes; closest is {closest["name"]}: {reasons}', file=sys.stderr)
        return 0 if chosen else NONE_PASSES

    return report.run('select_model', work)


if __name__ == '__main__':
    raise SystemExit(main())
