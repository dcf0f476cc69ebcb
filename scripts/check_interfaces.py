"""Exits with an error unless the vision_msgs that was just built has upstream's type hashes, so that it talks to the real one."""

import json
import os
import sys
from pathlib import Path

EXPECTED = {
    'Classification': 'RIHS01_f74db28d0eaef3afb78f48bf2161cd709a1383a0309d3454383b25be11345143',
    'ObjectHypothesis': 'RIHS01_51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90',
    'LabelInfo': 'RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783',
    'VisionClass': 'RIHS01_1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a',
}
folder = Path(os.environ['AMENT_PREFIX_PATH']) / 'share' / 'vision_msgs' / 'msg'
for name, expected in EXPECTED.items():
    entries = json.loads((folder / f'{name}.json').read_text())['type_hashes']
    found = next(entry['hash_string'] for entry in entries if entry['type_name'] == f'vision_msgs/msg/{name}')
    if found != expected:
        sys.exit(f'vision_msgs/{name}: type hash is {found}, expected {expected}')
import vision_msgs.msg  # noqa: E402  the Python side loads

assert all(hasattr(vision_msgs.msg, name) for name in EXPECTED)
