#!/usr/bin/env python3
"""SROS2 policy of the pipeline, one enclave a node, from the graph of the running nodes: what a node does not use it may not do.

    python scripts/security_policy.py > config/security/policy.xml
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from xml.etree import ElementTree

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image

from edge_resnet.deployment import ENCLAVES, NODES
from edge_resnet.nodes.frames import shared_topic
from edge_resnet.nodes.pipeline import factory

DOMAIN_ID = 202 + os.getpid() % 20  # where no other nodes of these names are
SETTLED_S = 2.0  # without a change in the graph
Permissions = dict[str, set[str]]  # e.g. 'topics publish' -> names


def permissions(node: Node, name: str) -> Permissions:
    """What node ``name`` publishes, subscribes, serves and calls, as ``node`` sees it."""
    kinds: dict[str, Callable] = {
        'topics publish': node.get_publisher_names_and_types_by_node, 'topics subscribe': node.get_subscriber_names_and_types_by_node,
        'services reply': node.get_service_names_and_types_by_node, 'services request': node.get_client_names_and_types_by_node}
    found = {kind: {topic for topic, _ in names(name, '/')} for kind, names in kinds.items()}
    found['topics subscribe'] |= {shared_topic(topic.removesuffix('/memory')) for topic in found['topics subscribe'] if topic.endswith('/memory')}
    return found  # what is in memory is shared between processes only, and these here are in one


def of_the_graph() -> dict[str, Permissions]:
    """The permissions of every node of the pipeline, made here and active, once the graph has come to rest."""
    rclpy.init(args=['--ros-args', '--log-level', 'error'], domain_id=DOMAIN_ID)
    nodes = {name: factory(name)() for name in NODES}
    try:
        for node in nodes.values():
            node.trigger_configure()
            node.trigger_activate()
        nodes['dashboard']._watch(True)  # as while a page is open
        observer, found, since = Node('policy_observer'), {}, time.monotonic()
        observer.create_subscription(Image, 'overlay', lambda _: None, 1)
        while time.monotonic() - since < SETTLED_S:
            time.sleep(0.1)
            nodes['overlay']._watch()  # and as while somebody looks at that
            now = {name: permissions(observer, name) for name in NODES}
            found, since = now, (since if now == found else time.monotonic())
        observer.destroy_node()
        return found
    finally:
        for node in nodes.values():
            node.make_safe()
            node.destroy_node()
        rclpy.try_shutdown()


def policy(found: dict[str, Permissions]) -> str:
    """The policy document. Names are relative to the namespace, those of the node itself to the node."""
    root = ElementTree.Element('policy', version='0.2.0')
    enclaves = ElementTree.SubElement(root, 'enclaves')
    for name, kinds in found.items():
        profiles = ElementTree.SubElement(ElementTree.SubElement(enclaves, 'enclave', path=f'{ENCLAVES}/{name}'), 'profiles')
        profile = ElementTree.SubElement(profiles, 'profile', ns='/', node=name)
        for kind, names in kinds.items():
            group, verb = kind.split()
            if names:
                parent = ElementTree.SubElement(profile, group, {verb: 'ALLOW'})
                for topic in sorted(names):
                    own = topic.startswith(f'/{name}/')
                    ElementTree.SubElement(parent, group[:-1]).text = topic.replace(f'/{name}/', '~/', 1) if own else topic[1:]
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding='unicode') + '\n'


if __name__ == '__main__':
    print(policy(of_the_graph()), end='')
