"""All nodes of the pipeline in one process, one executor thread each. Arguments: the nodes to start; none: all but the optional."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rclpy.utilities import remove_ros_args

from edge_resnet.deployment import NODES, STARTED
from edge_resnet.nodes.base import ManagedNode
from edge_resnet.nodes.runner import run


def factory(name: str) -> Callable[[], ManagedNode]:
    """The class of node ``name``; modules are imported only for nodes that are wanted."""
    module = import_module(f'edge_resnet.nodes.{name}_node')
    return getattr(module, ''.join(part.capitalize() for part in name.split('_')) + 'Node')


def main(argv: Sequence[str] | None = None) -> int:
    wanted = remove_ros_args(list(argv if argv is not None else sys.argv))[1:] or list(STARTED)
    unknown = [name for name in wanted if name not in NODES]
    if unknown:
        print(f'pipeline: no node {unknown[0]}, expected some of {", ".join(NODES)}', file=sys.stderr)
        return 2
    return run([factory(name) for name in NODES if name in wanted], argv)


if __name__ == '__main__':
    raise SystemExit(main())
