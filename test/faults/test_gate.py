"""Every state that the decision gate can be in, found by trying, and every fault in each of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest

from edge_resnet.pipeline.decision import DecisionConfig, DecisionGate
from edge_resnet.pipeline.postprocessing import Score

CONFIG = DecisionConfig(debounce_frames=2, refractory_s=0.5, max_result_age_s=1.0, max_on_s=3.0)
PAUSES_S = (0.2, 0.6, 1.1, 3.1)


class World:
    """A gate and its clock, to be copied together."""

    def __init__(self, config: DecisionConfig = CONFIG) -> None:
        self.time_s = 100.0
        self.gate = DecisionGate(config, self)

    def __call__(self) -> float:
        return self.time_s

    def see(self, red: float, age_s: float = 0.1) -> None:
        self.gate.observe([Score('red', red), Score('green', 0.1)], age_s)

    def wait(self, seconds: float) -> None:
        self.time_s += seconds
        self.gate.tick()

    def state(self) -> tuple:
        """All that the gate remembers, times as how long ago, in tenths up to where they no longer matter."""
        gate = self.gate

        def ago(since: float | None, limit: float) -> int:
            return -1 if since is None or since == -math.inf else round(10 * min(self.time_s - since, limit + 0.2))

        return (gate._armed, gate._stopped, gate._on, min(gate._streak, CONFIG.debounce_frames), gate._exhausted, ago(gate._result_time, 1.0),
                ago(gate._off_since, 0.5), ago(gate._on_since, 3.0) if gate._on else None)


EVENTS: dict[str, Callable[[World], object]] = {
    'red': lambda world: world.see(0.9), 'between': lambda world: world.see(0.6), 'green': lambda world: world.see(0.1),
    **{f'pause {seconds}': lambda world, seconds=seconds: world.wait(seconds) for seconds in PAUSES_S},
    'arm': lambda world: world.gate.arm(True), 'disarm': lambda world: world.gate.arm(False), 'stop': lambda world: world.gate.emergency_stop(),
    'reset': lambda world: world.gate.reset()}
FAULTS: dict[str, Callable[[World], object]] = {
    **{f'score {score}': lambda world, score=score: world.see(score) for score in (math.nan, math.inf, -math.inf, 1.001, -0.001)},
    **{f'age {age}': lambda world, age=age: world.see(0.9, age) for age in (math.nan, math.inf, -math.inf, 1.001, -0.051, 3600.0, -3600.0)},
    'another score is NaN': lambda world: world.gate.observe([Score('red', 0.9), Score('green', math.nan)], 0.1),
    'no scores': lambda world: world.gate.observe([], 0.1), 'target gone': lambda world: world.see(0.0),
    'silence': lambda world: world.wait(1.2), 'on for too long': lambda world: [world.see(0.9) or world.wait(0.5) for _ in range(8)],
    'disarmed': EVENTS['disarm'], 'emergency stop': EVENTS['stop'], 'deactivated': EVENTS['reset']}


def reachable() -> dict[tuple, World]:
    found, open_ = {}, [World(), World(DecisionConfig(**{**vars(CONFIG), 'require_arm': True}))]
    while open_:
        world = open_.pop()
        if world.state() in found:
            continue
        found[world.state()] = world
        for event in EVENTS.values():
            after = copy.deepcopy(world)
            event(after)
            open_.append(after)
    return found


@pytest.mark.row(35)
def test_every_state_and_every_fault(row):
    worlds = reachable()
    assert sum(world.gate.decision.on for world in worlds.values()) > 10, 'states that are ON are among them'
    for state, world in worlds.items():
        for name, fault in FAULTS.items():
            if name == 'on for too long' and not world.gate.decision.on:
                continue
            after = copy.deepcopy(world)
            fault(after)
            assert not after.gate.decision.on, f'{name} in {state}'
            row.trial()
            if name not in ('target gone', 'no scores'):  # one good result is not enough afterwards
                after.see(0.9)
                assert not after.gate.decision.on, f'{name} and one good result in {state}'
    row.note = f'{len(worlds)} states x {len(FAULTS)} faults'
