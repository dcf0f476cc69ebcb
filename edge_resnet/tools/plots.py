"""The charts of the reports, each drawn on an empty matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_resnet.pipeline.latency import SLICES, percentile
from edge_resnet.pipeline.recording import Run
from edge_resnet.tools import report

MATRIX_CLASSES = 30  # as many stay readable
POINTS = 300  # along a time axis


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
        lower.legend(loc='upper right')


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


def over_time(run: Run, axes: Any, events: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
    """Time axis of ``run``, s since its first frame, with its events marked; that time of each frame."""
    start_ns = run.frames['stamp_ns'][0] if len(run.frames['stamp_ns']) else 0
    moments: dict[float, list[str]] = {}
    for event in events:
        moments.setdefault(event['t_s'], []).append(
            f'{event["event"].replace("_", " ")}{"" if event["on"] is None else " on" if event["on"] else " off"}')
    colors = {text: f'C{3 + number % 7}' for number, text in enumerate(dict.fromkeys(', '.join(names) for names in moments.values()))}
    told = set()
    for t_s, names in moments.items():
        text = ', '.join(names)
        axes.axvline(t_s, color=colors[text], linestyle=':', label=None if text in told else text)
        told.add(text)
    axes.set_xlabel(f'time since the start, s{" (temperature, clock and throttling are simulated)" * run.simulated}')
    return (run.frames['stamp_ns'] - start_ns) / 1e9


def slices(run: Run, result: Mapping[str, Any], chart: Any) -> None:
    """The three slices stacked over time, medians of POINTS bins, and the slowest frame of each."""
    axes = chart.add_subplot()
    times = over_time(run, axes, result['events'])
    edges = np.linspace(0, max(times[-1], 1e-3), min(POINTS, len(times)) + 1)
    parts = [times_of for times_of in np.split(np.arange(len(times)), np.searchsorted(times, edges[1:-1])) if len(times_of)]
    middles = [times[part].mean() for part in parts]
    medians = [[percentile(run.frames[name][part], 50) for part in parts] for name in SLICES[:3]]
    axes.stackplot(middles, medians, labels=[name.replace('_', ' ') for name in SLICES[:3]], alpha=0.8)
    axes.plot(middles, [run.frames['total'][part].max() for part in parts], 'k.', markersize=2, label='slowest frame')
    if result['budget']:
        axes.axhline(result['budget']['ms'], color='black', linestyle='--', label=f'budget {result["budget"]["ms"]:g} ms')
    axes.set(ylabel='latency, ms', ylim=(0, None), xlim=(0, times[-1] or 1))
    axes.legend(loc='upper left', fontsize=8)


def spread(runs: Sequence[Run], chart: Any) -> None:
    """How much of the frames took how long, of each slice, with the tail drawn out: 50, 90, 99, 99.9 %."""
    for column, name in zip(chart.subplots(1, len(SLICES), sharey=True), SLICES, strict=True):
        for number, run in enumerate(runs):
            values = np.sort(run.frames[name])
            column.plot(values, 1 / (1 - np.arange(len(values)) / len(values)), color=f'C{number}',
                        label=f'run {number + 1}, {run.paths[0].name}{" (board simulated)" * run.simulated}')
        column.set(yscale='log', xlabel='ms', title=name.replace('_', ' '))
        column.grid(alpha=0.3)
        column.title.set_fontsize(9)
    ticks = {50: 2, 90: 10, 99: 100, 99.9: 1000}
    chart.axes[0].set_yticks(list(ticks.values()), [f'{percent:g} %' for percent in ticks])
    chart.axes[0].set_ylabel('share of frames below')
    if len(runs) > 1:
        chart.legend(*chart.axes[0].get_legend_handles_labels(), loc='outside lower center', fontsize=8)


def heat(run: Run, result: Mapping[str, Any], chart: Any) -> None:
    """Temperature and clock above, total latency below, with the throttle moments on the same time axis."""
    upper, lower = chart.subplots(2, 1, sharex=True)
    clock = upper.twinx()
    start_ns = run.frames['stamp_ns'][0]
    times = [(entry['time_ns'] - start_ns) / 1e9 for entry in run.board]
    upper.plot(times, [entry['temperature_c'] for entry in run.board], color='tab:red')
    clock.plot(times, [entry['clock_mhz'] for entry in run.board], color='tab:blue', alpha=0.6)
    upper.set_ylabel('temperature, C', color='tab:red')
    clock.set_ylabel('clock, MHz', color='tab:blue')
    for axes, name in ((upper, 'temperature_c'), (clock, 'clock_mhz')):
        if all(entry[name] is None for entry in run.board):
            axes.set_yticks([])
            axes.set_ylabel(f'{axes.get_ylabel().partition(",")[0]} unknown')
        elif axes is upper:
            axes.axhline(80, color='tab:red', linewidth=0.6, linestyle='--')
    stamps = over_time(run, lower, result['events'])
    lower.plot(stamps, run.frames['total'], '.', markersize=1.5, color='black')
    lower.set(ylabel='total, ms', ylim=(0, None))
    if result['events']:
        lower.legend(loc='lower left', fontsize=8)
