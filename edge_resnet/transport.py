"""What Fast DDS is told: memory large enough for images, and ports that no process which was killed has had.

Each process has a shared-memory port for its topics and one for the graph. Fast DDS 2.14 gives them the lowest free numbers, and has no answer to a
``kill -9``: who starts next makes the dead one's port anew under the same number, while those that sent to it have the old one mapped and go on
writing there, for 1 to 2 s, or for ever if the dead one was between two messages (its listener neither waits nor processes then:
SharedMemGlobal.hpp, update_status_all_listeners). If it was processing one, who sends to it hangs for good once the port counts as abandoned
(get_and_remove_blocked_processing locks a mutex twice). docs/faults.md has the figures.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path

from edge_resnet.pipeline.bundle import find_shared

PROFILE_NAMES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')  # Fast DDS 2, with Humble and Jazzy, reads only the second
SHARED_MEMORY = Path('/dev/shm')
PORT_BASE, OFFSETS = 7400, (0, 10, 1, 11)  # DDS's own: discovery to all and to one, topics to all and to one
GRAPH_PORTS, TOPIC_PORTS = 200, 60  # how many numbers there are to choose from; domain 232 has no more
HOLD_S = 30.0  # of the 20 s for which others take a dead participant for alive


def transport_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that give Fast DDS a shared-memory segment large enough for images, or the profile that the user has under one of the names."""
    given = [environment[name] for name in PROFILE_NAMES if environment.get(name)]
    profile = given[0] if given else str(find_shared('config', 'fastdds.xml'))
    return {name: profile for name in PROFILE_NAMES if not environment.get(name)}


def use_transport_profile() -> None:
    """Set ``transport_environment`` in this process, for the nodes it starts."""
    os.environ.update(transport_environment(os.environ))


def use_ports_of_its_own() -> None:
    """Before ``rclpy.init``: number the ports of this process by chance, unless it has another profile than ours. Discovery stays as it is."""
    given = [Path(os.environ[name]) for name in PROFILE_NAMES if name in os.environ]
    if given and all(path.is_file() and path.samefile(find_shared('config', 'fastdds.xml')) for path in given):
        for name in PROFILE_NAMES:
            os.environ[name] = str(find_shared('config', 'fastdds_node.xml'))
        domain = os.environ.get('ROS_DOMAIN_ID', '')
        os.environ.update(own_ports(int(domain) if domain.isdigit() else 0, _ports_there_are()))


def _ports_there_are(folder: Path = SHARED_MEMORY) -> set[int]:
    """The numbers of ports that some process has, had, or writes to."""
    return {int(match[1]) for path in folder.glob('fast*_port*') if (match := re.match(r'fast(?:rtps|dds)_port(\d+)', path.name))}


def own_ports(domain: int, taken: Container[int] = (), choose: Callable[[Sequence[int]], int] = random.choice) -> dict[str, str]:
    """The variables of config/fastdds_node.xml. The base, below which the graph's ports are, moves down by as much as the offsets of all others
    move up; that of topics moves on within the 250 of its ``domain``. Numbers that are ``taken`` only when there is no other."""
    downs, ons = range(GRAPH_PORTS), range(0, 2 * TOPIC_PORTS, 2)
    down = choose([down for down in downs if PORT_BASE - 400 - down not in taken] or downs)
    on = choose([on for on in ons if PORT_BASE + 250 * domain + OFFSETS[3] + on not in taken] or ons)
    offsets = (OFFSETS[0] + down, OFFSETS[1] + down, OFFSETS[2] + down, OFFSETS[3] + down + on)
    return {'EDGE_RESNET_PORT_BASE': str(PORT_BASE - down),
            **{f'EDGE_RESNET_PORT_OFFSET{index}': str(offset) for index, offset in enumerate(offsets)}}


class DeadPorts:
    """Holds the locks of ports whose process was killed, so that no process counts them as abandoned, and removes them once all have forgotten it.

    What was abandoned before is left alone.
    """

    def __init__(self, folder: Path = SHARED_MEMORY) -> None:
        self._folder = folder
        self._known = {os.fstat(lock).st_ino for lock in self._locks()}  # closed again at once

    def hold(self, seconds: float = HOLD_S) -> None:
        """Call this as soon as a process was killed: within a second or two its port counts as abandoned."""
        locks = {}
        for lock in self._locks():
            if os.fstat(lock).st_ino not in self._known:
                locks[os.dup(lock)] = Path(os.readlink(f'/proc/self/fd/{lock}'))
                self._known.add(os.fstat(lock).st_ino)
        timer = threading.Timer(seconds, _remove, [locks])
        timer.daemon = True
        timer.start()

    def _locks(self) -> Iterator[int]:
        """Descriptors of the locks that no living process has, with which they are shared while they are open."""
        for path in self._folder.glob('fast*_port*_el'):
            try:
                with path.open('rb') as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    yield file.fileno()
            except OSError:  # its process lives, or it is gone, or another user's
                continue


def _remove(locks: Mapping[int, Path]) -> None:
    for lock, path in locks.items():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not when another launcher holds it, too
            if path.stat().st_ino == os.fstat(lock).st_ino:
                path.with_name(path.name.removesuffix('_el')).unlink(missing_ok=True)
                path.unlink()
        except OSError:
            pass
        finally:
            os.close(lock)
