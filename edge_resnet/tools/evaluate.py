"""How right a model is on labelled photos, how far its scores can be trusted, and whether a second model is really different.

    ros2 run edge_resnet evaluate --model resnet50_traffic_lights --photos photos/test --out reports/resnet50
    ros2 run edge_resnet evaluate --model models/my --against build/my --photos test.csv --out reports/my

--photos is a folder with one subfolder a class or with a labels.csv, or a CSV file with columns file,label. --model and
--against are bundles, or folders with float.tflite of export_model. Photos of any size are fitted as the pipeline does it.
Writes evaluation.json, evaluation.md, confusion.png and reliability.png into --out, all or nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.interpreter import CHOICES
from edge_resnet.pipeline.postprocessing import top_k
from edge_resnet.pipeline.preprocessing import resize
from edge_resnet.tools import plots, report
from edge_resnet.tools.dataset import labelled, progress, read_rgb

FILES = ('evaluation.json', 'evaluation.md', 'confusion.png', 'reliability.png')
BINS, TOP = 10, 5
Z_95 = 1.959964  # the standard normal's 97.5 % quantile
CONFUSIONS = 20  # as many pairs go into the Markdown


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('evaluate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True, help="a bundle's name or folder, or a folder with float.tflite")
    parser.add_argument('--photos', type=Path, required=True, help='labelled folder or CSV')
    parser.add_argument('--against', metavar='MODEL', help='a second model with the same labels')
    parser.add_argument('--runtime', choices=CHOICES, default='auto', help='(default: the first one installed)')
    parser.add_argument('--threads', type=int, default=1, help='of one inference (default: %(default)s)')
    return report.options(parser).parse_args(argv)


def wilson(right: int, count: int) -> list[float]:
    """The 95 % interval of a share of ``right`` in ``count``: Wilson 1927, sound for shares near 1 and for few photos."""
    share, spread = right / count, Z_95 ** 2 / count
    center, half = share + spread / 2, Z_95 * math.sqrt((share * (1 - share) + spread / 4) / count)
    return [round(min(1.0, max(0.0, (center + side * half) / (1 + spread))), 4) for side in (-1, 1)]


def mcnemar(first: int, second: int) -> float:
    """Two-sided exact p-value that models with ``first`` and ``second`` photos right that the other has wrong are equally good."""
    tail = sum(math.comb(first + second, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2 ** (first + second))


def reliability(right: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """ECE, the expected calibration error (Naeini 2015), and its bins, of (N,) bool ``right`` and (N,) ``score`` of the first class."""
    which, bins, gap = np.minimum((score * BINS).astype(int), BINS - 1), [], 0.0
    for index in range(BINS):
        inside = which == index
        count, hits, total = int(inside.sum()), int(right[inside].sum()), float(score[inside].sum())
        gap += abs(total - hits)
        bins.append({'low': index / BINS, 'high': (index + 1) / BINS, 'count': count,
                     'score': round(total / count, 4) if count else None, 'accuracy': round(hits / count, 4) if count else None})
    return {'ece': round(gap / len(right), 4), 'bins': bins}


def metrics(truth: np.ndarray, best: np.ndarray, score: np.ndarray, within: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """All figures of one model on N photos. ``truth`` and ``best``: (N,) indices in ``labels``; ``score``: (N,) of the best class, 0 to 1;
    ``within``: (N,) bool, truth among the best five. Classes neither there nor predicted are left out of ``per_class``."""
    right = truth == best
    confusion, per_class = {}, []
    for index, label in enumerate(labels):
        support, predicted, hits = (int(mask.sum()) for mask in (truth == index, best == index, right & (truth == index)))
        if support:
            found, counts = np.unique(best[truth == index], return_counts=True)
            confusion[label] = {labels[other]: int(count) for other, count in zip(found, counts, strict=True)}
        if support or predicted:
            per_class.append({'label': label, 'precision': round(hits / predicted, 4) if predicted else None,
                              'recall': round(hits / support, 4) if support else None, 'support': support, 'predicted': predicted})
    return {'top1': round(float(right.mean()), 4), 'top1_interval_95': wilson(int(right.sum()), len(right)), 'correct': int(right.sum()),
            'top5': round(float(within.mean()), 4) if len(labels) > TOP else None, 'calibration': reliability(right, score),
            'per_class': per_class, 'confusion': confusion}


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    report.check(args, {'threads': (1, 64)})
    models = [model for model in (args.model, args.against) if model]
    bundles = [report.open_model(model) for model in models]
    labels = bundles[0].labels
    for bundle in bundles[1:]:
        if set(bundle.labels) != set(labels):
            strange = sorted(set(bundle.labels) ^ set(labels))[0]
            raise ParameterError(f'{bundle.name} and {bundles[0].name} have different labels: only one of them knows {strange!r}')
    photos = labelled(args.photos, labels)
    digests = sorted(f'{labels[number]} {hashlib.sha256(path.read_bytes()).hexdigest()}' for path, number in photos if path.is_file())
    classifiers = [Classifier(bundle, args.runtime, args.threads) for bundle in bundles]
    index = {label: number for number, label in enumerate(labels)}
    found = np.zeros((len(bundles), len(photos), 3))  # best class, its score, whether the truth is among the best five
    for number, (path, target) in enumerate(progress(photos, 'evaluating, photo')):
        photo = read_rgb(path)
        for which, model in enumerate(classifiers):
            top = top_k(model.classify(resize(photo, model.bundle.preprocessing)), model.bundle.labels, TOP)
            found[which, number] = index[top[0].label], top[0].score, labels[target] in [entry.label for entry in top]
    truth, best = np.array([number for _, number in photos]), found[..., 0].astype(int)
    results = [metrics(truth, best[which], found[which, :, 1], found[which, :, 2] > 0, labels) for which in range(len(bundles))]
    result = {
        **report.header('evaluation'), 'model': report.described(args.model, bundles[0]), 'runtime': classifiers[0].runtime, 'threads': args.threads,
        'photos': {'source': args.photos.resolve().name, 'count': len(photos), 'sha256': hashlib.sha256('\n'.join(digests).encode()).hexdigest()},
        **results[0], 'against': None}
    if args.against:
        other = results[1]
        only = [int(((best[which] == truth) & (best[1 - which] != truth)).sum()) for which in (0, 1)]
        result['against'] = {
            'model': report.described(args.against, bundles[1]), 'top1': other['top1'], 'top1_interval_95': other['top1_interval_95'],
            'correct': other['correct'], 'top5': other['top5'], 'ece': other['calibration']['ece'],
            'agreement': round(float((best[0] == best[1]).mean()), 4),
            'mcnemar': {'only_model_right': only[0], 'only_against_right': only[1], 'p_value': round(mcnemar(*only), 4)}}
    return result


def markdown(result: dict[str, Any], drawn: bool) -> str:
    top1, interval, against = report.percent(result['top1']), ' to '.join(map(report.percent, result['top1_interval_95'])), result['against']
    rows = [('photos', result['photos']['count']), ('top-1', f'{top1} (95 %: {interval})'),
            *([('top-5', report.percent(result['top5']))] if result['top5'] is not None else []),
            ('expected calibration error', result['calibration']['ece']), ('size', report.megabytes(result['model']['size_bytes'])),
            ('runtime', f'{result["runtime"]}, threads: {result["threads"]}'), ('processor', result['host']['processor'])]
    if against:
        counts = '{only_model_right} : {only_against_right} (McNemar p = {p_value})'.format(**against['mcnemar'])
        rows += [(f'top-1 of {against["model"]["name"]}', report.percent(against['top1'])), ('agreement', report.percent(against['agreement'])),
                 ('right where the other is wrong', counts)]
    pairs = [(truth, seen, count) for truth, row in result['confusion'].items() for seen, count in row.items() if truth != seen]
    pairs.sort(key=lambda pair: -pair[2])
    classes = [[entry[name] for name in ('label', 'precision', 'recall', 'support')] for entry in result['per_class']]
    bins = [(f'{entry["low"]:.1f} to {entry["high"]:.1f}', entry['count'], entry['score'], entry['accuracy'])
            for entry in result['calibration']['bins']]
    return '\n'.join([
        f'# {result["model"]["name"]} on {result["photos"]["source"]}\n', report.table(('', 'measured'), rows),
        '## Classes\n', report.table(('class', 'precision', 'recall', 'photos'), classes, '-'),
        '## Confusions\n', report.table(('is', 'taken for', 'times'), pairs[:CONFUSIONS]) if pairs else 'None.\n',
        '## Scores\n', report.table(('score', 'photos', 'mean score', 'right'), bins, '-'),
        '![Confusion matrix](confusion.png) ![Reliability](reliability.png)\n' if drawn else report.NO_PLOTS])


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def work() -> int:
        report.check_out(args.out, FILES, args.force)
        result = evaluate(args)
        side = 3 + 0.3 * min(len(result['per_class']), plots.MATRIX_CLASSES)
        return report.deliver(args, FILES, result, markdown, ((side, side), lambda chart: plots.confusion(result, chart)),
                              ((5, 6), lambda chart: plots.reliability(result, chart)))

    return report.run('evaluate', work)


if __name__ == '__main__':
    raise SystemExit(main())
