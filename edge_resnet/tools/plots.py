"""The charts of the reports, each drawn on an empty matplotlib figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_resnet.pipeline.latency import percentile
from edge_resnet.tools import report

MATRIX_CLASSES = 30  # as many stay readable


def confusion(result: dict[str, Any], chart: Any) -> None:
    """The matrix of all classes that occur, or of the MATRIX_CLASSES with the most confusions."""
    counted = result['confusion']
    wrong = {entry['label']: entry['support'] + entry['predicted'] - 2 * counted.get(entry['label'], {}).get(entry['label'], 0)
             for entry in result['per_class']}
    shown = set(sorted(wrong, key=lambda label: -wrong[label])[:MATRIX_CLASSES])
    labels = [label for label in wrong if label in shown]
    counts = np.array([[counted.get(truth, {}).get(seen, 0) for seen in labels] for truth in labels])
    axes = chart.add_subplot()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap='Blues', vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, count, ha='center', va='center', fontsize=8, color='white' if 2 * count > counts[row].sum() else 'black')
    axes.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 4 else 0)
    axes.set_yticks(range(len(labels)), labels)
    rest = '' if len(labels) == len(wrong) else f'\nthe {len(labels)} most confused of {len(wrong)} classes'
    axes.set(xlabel='taken for', ylabel='is', title=f'{result["model"]["name"]}: top-1 {report.percent(result["top1"])}{rest}')


def reliability(result: dict[str, Any], chart: Any) -> None:
    bins, width = [entry for entry in result['calibration']['bins'] if entry['count']], 1 / len(result['calibration']['bins'])
    upper, lower = chart.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color='grey', linestyle='--', label='perfect')
    upper.bar([entry['low'] for entry in bins], [entry['accuracy'] for entry in bins], width, align='edge', alpha=0.5, edgecolor='black')
    upper.plot([entry['score'] for entry in bins], [entry['accuracy'] for entry in bins], 'o-', color='tab:red', label='measured, at the mean score')
    upper.set(ylabel='share that is right', ylim=(0, 1.02), xlim=(0, 1), title=f'{result["model"]["name"]}: ECE {result["calibration"]["ece"]:.4f}')
    upper.legend()
    bars = lower.bar([entry['low'] for entry in bins], [entry['count'] for entry in bins], width, align='edge', edgecolor='black')
    lower.bar_label(bars, fontsize=8)
    lower.set(xlabel='score of the first class', ylabel='photos')
    lower.margins(y=0.2)


def latency(result: dict[str, Any], latencies: dict[str, list[float]], chart: Any) -> None:
    """Above, the spread of each row: 1 to 99 %, the middle half, median and maximum. Below, its medians over time, and the temperature."""
    upper, lower = chart.subplots(2, 1)
    hot = lower.twinx()
    rows = [row for row in result['rows'] if 'error' not in row]
    for number, (spread, row) in enumerate(zip(latencies.values(), rows, strict=True)):
        low, left, middle, right, high, worst = (percentile(spread, q) for q in (1, 25, 50, 75, 99, 100))
        color, seen = f'C{number % 10}', row['timeline']
        upper.hlines([number] * 2, [low, left], [high, right], color=color, linewidth=[1, 8])
        upper.plot([middle, worst], [number] * 2, 'k|', markersize=10)
        lower.plot([entry['t_s'] for entry in seen if entry['runs']], [entry['p50_ms'] for entry in seen if entry['runs']], '.', color=color)
        hot.plot(*zip(*((entry['t_s'], entry['temperature_c'] or np.nan) for entry in seen), strict=True), 'kx', alpha=0.4)
    upper.set_yticks(range(len(rows)), list(latencies))
    upper.invert_yaxis()
    upper.set(xscale='log', xlabel='latency, ms: 1 to 99 %, middle half, median and maximum')
    lower.set(yscale='log', xlabel='time since the start, s', ylabel='median latency, ms')
    hot.set_ylabel('temperature, degrees Celsius (x)')
    hot.set_visible(any(row['temperature_max_c'] is not None for row in rows))
    for event in result['throttle_events'] or []:
        lower.axvline(event['t_s'], color='red' if event['on'] else 'green', linestyle=':', label=f'{event["flag"]} {"on" if event["on"] else "off"}')
        lower.legend()


def pareto(result: dict[str, Any], chart: Any) -> None:
    """Accuracy against latency, size as area; against size where no latency is known."""
    axes, bounds = chart.add_subplot(), {bar['figure']: bar['bound'] for bar in result['bars']}
    models = [model for model in result['models'] if model['top1'] is not None]
    figure = 'latency_ms' if any(model['latency_ms'] is not None for model in models) else 'size_mb'
    models = sorted((model for model in models if model[figure] is not None), key=lambda model: model[figure])
    largest, front = max(model['size_mb'] for model in models), [model for model in models if model['pareto']]
    axes.plot([model[figure] for model in front], [model['top1'] for model in front], color='grey', linestyle='--', label='Pareto front')
    for model in models:
        color = 'tab:green' if model['name'] == result['chosen'] else 'tab:orange' if model['pareto'] else 'tab:grey'
        axes.scatter(model[figure], model['top1'], s=40 + 1500 * model['size_mb'] / largest, color=color, alpha=0.6)
        label = f'{model["name"]}\n{report.megabytes(model["size_bytes"])}'
        axes.annotate(label, (model[figure], model['top1']), fontsize=8, ha='center', va='center')
    axes.axhline(bounds['top1'], color='red', linewidth=0.8, label='bars')
    if figure in bounds:
        axes.axvline(bounds[figure], color='red', linewidth=0.8)
    axes.set(xscale='log', ylabel='top-1', xlabel='size, MB' if figure == 'size_mb' else f'{result["percentile"]} latency, ms', title='Size as area')
    axes.margins(0.25)
    axes.legend()
