"""What the governor is worth on a simulated Raspberry Pi 4 that infers all the time: with and without it, for each cooling.

    make bench-governor

A simulation, no measurement: the board is edge_resnet.hardware.thermal.SimulatedPi4, the camera is never the bottleneck, an inference takes
100 ms of all four cores at 1500 MHz and as much longer as the clock is slower, and the time is simulated too.
"""

from __future__ import annotations

import argparse
from typing import Any

from edge_resnet.hardware.thermal import FULL_MHZ, SimulatedPi4
from edge_resnet.pipeline.governor import Governor
from edge_resnet.pipeline.latency import percentile

INFERENCE_S, STEP_S = 0.1, 1 / 30  # the second is the camera's period
COOLINGS = {'bare': (False, False), 'heatsink': (True, False), 'fan': (False, True), 'heatsink and fan': (True, True)}


def simulate(minutes: float, governed: bool, heatsink: bool = False, fan: bool = False, ambient_c: float = 25.0) -> dict[str, list[float]]:
    """When each inference began (s), what it took (ms), and the temperature and clock at that time."""
    now_s, busy_s, looked_s = 0.0, 0.0, 0.0
    board = SimulatedPi4(heatsink=heatsink, fan=fan, ambient_c=ambient_c, clock=lambda: now_s, load=lambda: busy_s / max(1e-9, now_s - looked_s))
    governor, reading = Governor(78.0, lambda: now_s), board.read()
    seen: dict[str, list[float]] = {'s': [], 'ms': [], 'temperature_c': [], 'clock_mhz': []}
    while now_s < 60 * minutes:
        if now_s - looked_s >= 1.0:
            reading = board.read()
            looked_s, busy_s = now_s, 0.0
            governor.see(round(reading.temperature_c / 0.487) * 0.487)  # a Pi's sensor has steps of this size
        if governed and not governor.allows():
            now_s += STEP_S
            continue
        took_s = INFERENCE_S * FULL_MHZ / reading.clock_mhz
        for key, value in zip(seen, (now_s, 1000 * took_s, reading.temperature_c, reading.clock_mhz), strict=True):
            seen[key].append(value)
        now_s += took_s
        busy_s += took_s
        governor.worked(took_s)
    return seen


def summary(seen: dict[str, list[float]], minutes: float, warm_minutes: float) -> dict[str, Any]:
    """Figures after ``warm_minutes``."""
    rows = [row for row in zip(*seen.values(), strict=True) if row[0] >= 60 * warm_minutes]
    took = [row[1] for row in rows]
    return {'rate_hz': len(rows) / (60 * (minutes - warm_minutes)), 'p50_ms': percentile(took, 50), 'p99_ms': percentile(took, 99),
            'max_c': max(row[2] for row in rows), 'throttled_percent': 100 * sum(row[3] < FULL_MHZ for row in rows) / len(rows)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=40.0)
    parser.add_argument('--warm', type=float, default=10.0, help='minutes left out at the beginning')
    parser.add_argument('--plot', help='PNG of the bare board')
    args = parser.parse_args(argv)
    print('SIMULATED\n| cooling, ambient | governor | rate | p50 | p99 | hottest | throttled |\n|---|---|---:|---:|---:|---:|---:|')
    for cooling, (heatsink, fan) in COOLINGS.items():
        for ambient_c in (25.0, 40.0):
            for governed in (False, True):
                row = summary(simulate(args.minutes, governed, heatsink, fan, ambient_c), args.minutes, args.warm)
                print(f'| {cooling}, {ambient_c:.0f} C | {"on" if governed else "off"} | {row["rate_hz"]:.1f} Hz | {row["p50_ms"]:.0f} ms | '
                      f'{row["p99_ms"]:.0f} ms | {row["max_c"]:.1f} C | {row["throttled_percent"]:.0f} % |')
    if args.plot:
        from matplotlib.figure import Figure

        chart = Figure(figsize=(11, 5), layout='constrained')
        upper, lower = chart.subplots(2, 1, sharex=True)
        for governed, color in ((False, 'tab:red'), (True, 'tab:green')):
            seen = simulate(args.minutes, governed)
            minutes = [second / 60 for second in seen['s']]
            upper.plot(minutes, seen['temperature_c'], color=color, label=f'governor {"on" if governed else "off"}')
            lower.plot(minutes, seen['ms'], '.', markersize=2, color=color)
        upper.axhline(80, color='grey', linestyle='--', linewidth=0.8)
        upper.set(ylabel='temperature, C', title='Simulated: a bare Raspberry Pi 4 at 25 C that infers all the time')
        upper.legend()
        lower.set(ylabel='inference, ms', xlabel='minutes', ylim=(0, None))
        chart.savefig(args.plot, dpi=110)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
