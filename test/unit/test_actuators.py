"""What is switched: OFF when opened, OFF when closed, and no failure in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_resnet.exceptions import BackendError, ParameterError
from edge_resnet.hardware.actuators import GpioActuator, HeldOff, SimulatedActuator, open_actuator

# The simulated one


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / 'folder' / 'actuator.state'


def test_its_state_is_in_a_file(file):
    actuator = SimulatedActuator(file)
    states = [file.read_text()]
    for on in (True, True, False, True):
        actuator.write(on)
        states.append(file.read_text())
    actuator.close()
    assert states == ['0\n', '1\n', '1\n', '0\n', '1\n']
    assert file.read_text() == '0\n'


def test_it_starts_off_whatever_was_left_behind(file):
    file.parent.mkdir()
    file.write_text('1\n')
    SimulatedActuator(file)
    assert file.read_text() == '0\n'


def test_a_process_that_is_killed_leaves_it_on(file):
    """As a Raspberry Pi's pin: that is what the guard process is for, so the fake must not be kinder."""
    if (child := os.fork()) == 0:
        SimulatedActuator(file).write(True)
        os._exit(9)
    os.waitpid(child, 0)
    assert file.read_text() == '1\n'


def test_closing_twice_is_fine_and_writing_then_is_not(file):
    actuator = SimulatedActuator(file)
    actuator.close()
    actuator.close()
    with pytest.raises(BackendError, match='actuator.state is closed'):
        actuator.write(True)
    assert file.read_text() == '0\n'


def test_a_link_is_not_followed(file, tmp_path):
    """The temporary folder is everyone's: a link there could make the node overwrite a file of its user."""
    victim = tmp_path / 'victim'
    victim.write_text('precious')
    file.parent.mkdir()
    file.symlink_to(victim)
    with pytest.raises(BackendError, match='simulated actuator: .*actuator.state: a link, which is refused'):
        SimulatedActuator(file)
    assert victim.read_text() == 'precious'


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(file, make):
    file.parent.mkdir()
    make(file)
    with pytest.raises(BackendError, match='simulated actuator: .*actuator.state'):
        SimulatedActuator(file)


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(BackendError, match='simulated actuator: .*File exists|Not a directory'):
        SimulatedActuator(tmp_path / 'file' / 'state')


def test_a_full_disk_is_told(file, monkeypatch):
    actuator = SimulatedActuator(file)
    monkeypatch.setattr(os, 'pwrite', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(BackendError, match='No space left on device'):
        actuator.write(True)


# GPIO, on gpiozero's mock pins

@pytest.fixture
def pins() -> Iterator:
    mock = pytest.importorskip('gpiozero.pins.mock')
    factory = mock.MockFactory()
    yield factory
    factory.reset()


@pytest.mark.parametrize('active_high', [True, False])
def test_levels(pins, active_high):
    actuator = GpioActuator(17, active_high=active_high, pin_factory=pins)
    levels = [pins.pin(17).state]
    for on in (True, False, True):
        actuator.write(on)
        levels.append(pins.pin(17).state)
    assert [bool(level) is active_high for level in levels] == [False, True, False, True]


@pytest.mark.parametrize('active_high', [True, False])
def test_opening_never_pulses(pins, active_high):
    """The first level that is ever driven is OFF: even a moment of ON would be one too many."""
    actuator = GpioActuator(17, active_high=active_high, pin_factory=pins)
    pin = pins.pin(17)
    _, *driven = [bool(entry.state) for entry in pin.states]  # the first is the input's before
    assert driven in ([], [not active_high])
    assert (pin.function, bool(pin.state)) == ('output', not active_high)
    actuator.close()


def test_closing_switches_off_first_and_frees_the_pin(pins):
    actuator = GpioActuator(17, pin_factory=pins)
    actuator.write(True)
    actuator.close()
    actuator.close()
    assert [bool(state.state) for state in pins.pin(17).states][-2:] == [True, False]
    with pytest.raises(BackendError, match='gpio actuator: pin 17 is closed'):
        actuator.write(True)
    GpioActuator(17, pin_factory=pins).close()


def test_a_pin_that_is_taken(pins):
    holder = GpioActuator(17, pin_factory=pins)
    with pytest.raises(BackendError, match='gpio actuator: pin 17: .*already in use'):
        GpioActuator(17, pin_factory=pins)
    holder.close()


def test_a_write_that_fails_is_told_and_the_pin_freed(pins):
    actuator = GpioActuator(17, pin_factory=pins)
    actuator._device.close()
    with pytest.raises(BackendError, match='gpio actuator: pin 17: '):
        actuator.write(True)
    with pytest.raises(BackendError, match='pin 17'):
        actuator.close()
    actuator.close()
    GpioActuator(17, pin_factory=pins).close()


@pytest.mark.parametrize('pin', [-1, 28])
def test_a_pin_that_is_not_on_the_header(pin):
    with pytest.raises(ParameterError, match=rf'gpio_pin is {pin}, expected 0 to 27 \(BCM numbering\)'):
        GpioActuator(pin)


def test_without_gpiozero_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gpiozero', None)
    with pytest.raises(BackendError, match='gpiozero is not installed: apt install python3-gpiozero python3-lgpio'):
        GpioActuator(17)


def test_without_a_pi_it_refuses_instead_of_pretending(file):
    pytest.importorskip('gpiozero')
    if Path('/dev/gpiochip0').exists():
        pytest.skip('this machine has GPIO')
    with pytest.warns(Warning), pytest.raises(BackendError, match='gpio actuator: pin 17: '):
        open_actuator('gpio', gpio_pin=17, state_file=file)
    assert not file.exists()


def test_the_backend_is_chosen_by_name(file):
    open_actuator('simulated', gpio_pin=17, state_file=file).close()
    assert file.read_text() == '0\n'
    with pytest.raises(ParameterError, match="backend is 'relay', expected one of simulated, gpio"):
        open_actuator('relay', gpio_pin=17, state_file=file)


def test_who_held_it_off_is_remembered(file):
    held = HeldOff(file)
    assert held.read() == HeldOff.NO
    for state in (HeldOff.STOPPED, HeldOff.DISARMED, HeldOff.NO, HeldOff.NO):
        held.write(state)
        assert HeldOff(file).read() == state
        assert not file.exists()


@pytest.mark.parametrize('spoil', [lambda path: path.write_bytes(b'\xff'), lambda path: path.write_text(''), lambda path: path.mkdir()])
def test_what_can_not_be_read_is_a_stop(file, spoil):
    file.parent.mkdir()
    spoil(HeldOff(file).path)
    assert HeldOff(file).read() == HeldOff.STOPPED


def test_what_can_not_be_kept_is_told_and_no_link_is_followed(file, tmp_path):
    victim = tmp_path / 'victim'
    victim.write_text('untouched')
    file.parent.mkdir()
    HeldOff(file).path.symlink_to(victim)
    with pytest.raises(BackendError, match='after a crash the actuator will not know that it is stopped'):
        HeldOff(file).write(HeldOff.STOPPED)
    assert victim.read_text() == 'untouched'
