"""What a recorded run was like: the slices over time and how they spread, age of information, drops, heat and what it cost, a verdict.

    ros2 run edge_resnet latency_report ~/runs --budget-ms 50 --out reports/today
    ros2 run edge_resnet latency_report runs/edge_resnet_20260101_120000_001.mcap --compare runs/yesterday --out reports/both

RUN is a file that latency_monitor recorded (its parameter record_to), or a folder, of which the newest run is taken. Writes
latency.json, index.html, a page that needs nothing else, and its pictures into --out, all or nothing. The exit code is 3 when the
budget was missed.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.exceptions import ParameterError
from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, METRICS, PARTS, QUANTILES, STAGES, percentiles
from edge_resnet.pipeline.recording import Run, read_run
from edge_resnet.tools import plots, report

FILES = ('latency.json', 'index.html', 'slices.png', 'spread.png', 'heat.png', 'slices_2.png', 'heat_2.png')
PICTURES = {'slices': 'The slices over time', 'spread': 'How much of the frames took how long', 'heat': 'Heat and what it cost'}
COST_S = 30.0  # before and after a transition, that its cost is taken from
HOPS = {'captured': 'between camera and preprocess', 'preprocess_started': 'in preprocess', 'frame_ready': 'between preprocess and inference',
        'inference_started': 'in inference', 'inference_done': 'between inference and actuator', 'actuator_started': 'in the actuator'}
STYLE = (':root{color-scheme:light dark}h1,h2,p,summary,figcaption{overflow-wrap:anywhere}figure{margin:1rem 0}'
         'body{font:16px system-ui,sans-serif;max-width:60rem;margin:1rem auto;padding:0 1rem}'
         'img{width:100%;background:#fff}'
         'table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}td,th{border:1px solid #8888;padding:.2rem .6rem}'
         'td,th{text-align:right}td:first-child,th:first-child{text-align:left}.simulated{background:#fc38;padding:.5rem}')


def analyse(run: Run, budget_ms: float | None) -> dict[str, Any]:
    """All figures of ``run``, ms and s since its first frame."""
    frames, total = run.frames, run.frames['total']
    if not len(total):
        raise ParameterError(f'{run.paths[0]}: no frame in it came from the camera to the actuator')
    commanded_s = (frames['stamp_ns'] - frames['stamp_ns'][0]) / 1e9 + total / 1e3
    # Age of information: at the actuator it grows from a frame's total until the next frame's command; its mean is that of the trapezes.
    gaps_ms = np.maximum(np.diff(commanded_s) * 1e3, 0)
    peaks_ms, length_ms = total[:-1] + gaps_ms, float(gaps_ms.sum())
    over = int((total > budget_ms).sum()) if budget_ms else 0
    budget = {'ms': budget_ms, 'over': over, 'percent': rounded(100 * over / len(total)), 'kept': over <= 0.01 * len(total)}
    ended, known = run.drops.get('ended', {}), frames['throttle_bits']
    return {
        'files': [path.name for path in run.paths], 'cut_off': run.cut_off, 'simulated': run.simulated, 'about': run.about,
        'start': datetime.fromtimestamp(frames['stamp_ns'][0] / 1e9, timezone.utc).isoformat(timespec='seconds'),
        'seconds': round(length_ms / 1e3, 3), 'frames': len(total), 'rate_hz': rounded((len(total) - 1) / length_ms * 1e3 if length_ms else None),
        'inference_duty_percent': rounded(100 * float(np.nansum(frames['inference'])) / length_ms if length_ms else None),
        'ms': {name: dict(zip(QUANTILES, map(rounded, percentiles(known_of(frames[name]), [*QUANTILES.values()])), strict=True)) for name in METRICS},
        'age_of_information_ms': {
            'mean': rounded(float(((total[:-1] + peaks_ms) / 2 * gaps_ms).sum()) / length_ms if length_ms else None),
            'peak': dict(zip(QUANTILES, map(rounded, percentiles(peaks_ms, [*QUANTILES.values()])), strict=True))},
        'drops': {'through': ended.get(ACTUATOR_COMMANDED, 0), **{stage: ended.get(stage, 0) for stage in STAGES[:-1]}},
        'missed': run.drops.get('missed', {}), 'clock_faults': run.drops.get('faults', {}),
        'temperature_max_c': rounded(max((entry['temperature_c'] for entry in run.board if entry['temperature_c'] is not None), default=None)),
        'throttled': by_state(total[known == known], known[known == known]),
        'events': [cost(event, run) for event in run.events],
        'budget': budget if budget_ms else None}


def known_of(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)


def by_state(total: np.ndarray, bits: np.ndarray) -> dict[str, Any]:
    """Total latency while any throttle flag was set, and while none was; empty when that is not known."""
    states = {'throttled': total[bits.astype(int) & 0xF != 0], 'free': total[bits.astype(int) & 0xF == 0]}
    return {name: {'frames': len(values), **dict(zip(QUANTILES, map(rounded, percentiles(values, [*QUANTILES.values()])), strict=True))}
            for name, values in states.items() if len(values)}


def cost(event: dict[str, Any], run: Run) -> dict[str, Any]:
    """``event``, its second, and what it cost: medians of total COST_S before and after it, up to the next other events."""
    stamps, total, own = run.frames['stamp_ns'], run.frames['total'], event['time_ns']
    others = [other['time_ns'] for other in run.events if abs(other['time_ns'] - own) > 5e7]  # flags that change together are one moment
    low = max([own - COST_S * 1e9, *(t for t in others if t < own)])
    high = min([own + COST_S * 1e9, *(t for t in others if t > own)])
    before, after = (percentiles(total[(stamps >= a) & (stamps < b)], (50,))[0] for a, b in ((low, own), (own, high)))
    return {'t_s': round((own - stamps[0]) / 1e9, 3), **{key: event.get(key) for key in ('event', 'on', 'temperature_c', 'clock_mhz', 'simulated')},
            'p50_before_ms': rounded(before), 'p50_after_ms': rounded(after), 'cost_ms': rounded(after - before)}


def page(results: Sequence[dict[str, Any]], pictures: dict[str, bytes]) -> str:
    """The HTML page of one run, or of two."""
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
             f'<title>Latency</title><style>{STYLE}</style><h1>Latency of {html.escape(", ".join(result["files"][0] for result in results))}</h1>']
    names = [''] if len(results) == 1 else [f'run {index + 1}: ' for index in range(len(results))]
    titles = [f'{name.replace(": ", ", ")}{result["files"][0]}' for name, result in zip(names, results, strict=True)]
    for title, result in zip(titles, results, strict=True):
        seconds, files = result['seconds'], len(result['files'])
        parts.append(f'<p>{html.escape(title)}{f" and {files - 1} more" if files > 1 else ""}: {result["start"]}, {seconds:.0f} s, '
                     f'{result["frames"]} frames, {number(result["rate_hz"])} Hz, inference busy {number(result["inference_duty_percent"])} % of the '
                     f'time.{" Not all of it could be read: its writer was killed, or the file is damaged." if result["cut_off"] else ""}</p>')
        if result['simulated']:
            parts.append('<p class="simulated"><b>Temperature, clock and throttling are simulated</b>, of a model of a Raspberry Pi 4.</p>')
        if result['budget']:
            budget = result['budget']
            parts.append(f'<p><b>Budget {"kept" if budget["kept"] else "missed"}</b>: {budget["over"]} of {result["frames"]} frames '
                         f'({number(budget["percent"])} %) took more than {budget["ms"]:g} ms; at most 1 % may.</p>')
    for name, data in pictures.items():
        shown = ' and '.join(titles) if name == 'spread.png' else titles[name.endswith('_2.png')]
        parts.append(f'<figure><img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
                     f'<figcaption>{PICTURES[name.partition(".")[0].removesuffix("_2")]}: {html.escape(shown)}</figcaption></figure>')
    head = [f'{name}{q}' for name in names for q in QUANTILES]
    compared = ('p50', 'p99') if len(results) == 2 else ()
    parts += ['<h2>What took how long, ms</h2>', table(['', *head, *(f'run 2 - run 1: {q}' for q in compared)], (
        [f'{"- " if name in PARTS else ""}{name.replace("_", " ")}', *(number(result['ms'][name][q]) for result in results for q in QUANTILES), *(
            number(None if None in (pair := [result['ms'][name][q] for result in results]) else pair[1] - pair[0]) for q in compared)]
        for name in METRICS))]
    parts += ['<h2>Age of information at the actuator, ms</h2>', table(['', *head], [
        ['just before the next command', *(number(result['age_of_information_ms']['peak'][q]) for result in results for q in QUANTILES)]])]
    parts += [f'<p>Mean over time: {", ".join(number(result["age_of_information_ms"]["mean"]) for result in results)} ms.</p>',
              '<h2>Where frames ended</h2>', table(['', *(f'{name}frames' for name in names)], [
                  ['got through', *(result['drops']['through'] for result in results)],
                  *([HOPS[stage], *(result['drops'][stage] for result in results)] for stage in STAGES[:-1]),
                  *([f'{who}, as told by the node', *(result['missed'].get(who, 0) for result in results)] for who in sorted(
                      {who for result in results for who in result['missed']})),
                  *([f'clock fault: {name}', *(result['clock_faults'].get(name, 0) for result in results)] for name in sorted(
                      {name for result in results for name in result['clock_faults']}))])]
    for title, result in zip(titles, results, strict=True):
        if len(result['throttled']) > 1:
            parts += [f'<h2>Total and throttling, ms: {html.escape(title)}{" (simulated)" * result["simulated"]}</h2>', table(
                ['', 'frames', *QUANTILES], ([f'while {state}', entry['frames'], *(number(entry[q]) for q in QUANTILES)]
                                             for state, entry in result['throttled'].items()))]
        if result['events']:
            parts += [f'<h2>Transitions: {html.escape(title)}{" (simulated)" * result["simulated"]}</h2>', table(
                ['', 'at s', 'C', 'MHz', 'p50 before', 'p50 after', 'cost ms'], (
                    [f'{", ".join(event["event"].replace("_", " ") for event in moment)} {"" if on is None else "began" if on else "ended"}', *(
                        number(moment[0][key]) for key in ('t_s', 'temperature_c', 'clock_mhz', 'p50_before_ms', 'p50_after_ms', 'cost_ms'))]
                    for (_, on), events in groupby(result['events'], lambda event: (event['t_s'], event['on'])) for moment in [list(events)]))]
        parts += [f'<details><summary>What ran: {html.escape(title)}</summary>'
                  f'<pre>{html.escape(json.dumps(result["about"], indent=1))}</pre></details>']
    return '\n'.join(parts) + '\n'


def number(value: float | None) -> str:
    return 'unknown' if value is None else f'{value:.4g}' if abs(value) < 1e4 else f'{value:.0f}'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [''.join(f'<{kind}>{html.escape(str(cell))}</{kind}>' for cell in line) for kind, line in (('th', head), *(('td', row) for row in rows))]
    return f'<table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def main(argv: list[str] | None = None) -> int:
    parser = report.options(argparse.ArgumentParser('latency_report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    parser.add_argument('run', type=Path, metavar='RUN', help='a recording, or a folder of them')
    parser.add_argument('--compare', type=Path, metavar='RUN2', help='another one to put beside it')
    parser.add_argument('--budget-ms', type=float, help='total latency that 99 of 100 frames have to keep to')
    args = parser.parse_args(argv)

    def work() -> int:
        report.check(args, {'budget_ms': (0.01, 60_000)})
        report.check_out(args.out, FILES, args.force)
        runs = [read_run(path) for path in (args.run, args.compare) if path is not None]
        results = [analyse(run, args.budget_ms) for run in runs]
        pictures: dict[str, bytes] = {}
        drawings = {'spread.png': partial(plots.spread, runs)}
        for suffix, recorded, result in zip(('', '_2'), runs, results, strict=False):
            drawings[f'slices{suffix}.png'] = partial(plots.slices, recorded, result)
            drawings[f'heat{suffix}.png'] = partial(plots.heat, recorded, result)
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print('matplotlib is not installed: pictures are left out (pip install -r requirements/tools.txt)', file=sys.stderr)
            drawings = {}
        for name, draw in drawings.items():
            chart, image = Figure(figsize=(11, 5), layout='constrained'), io.BytesIO()
            draw(chart)
            chart.savefig(image, dpi=110)
            pictures[name] = image.getvalue()
        data = json.dumps({'kind': 'latency', 'runs': results}, indent=2, allow_nan=False) + '\n'
        report.write(args.out, {'latency.json': data, 'index.html': page(results, pictures), **pictures})
        print(data if args.json else f'written to {args.out}', end='' if args.json else '\n')
        kept = all(result['budget'] is None or result['budget']['kept'] for result in results)
        return 0 if kept else 3  # 2 is argparse's

    return report.run('latency_report', work)


if __name__ == '__main__':
    raise SystemExit(main())
