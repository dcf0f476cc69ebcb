"""Who may import whom, what a node costs to load, and that every installed command is there."""

from __future__ import annotations

import ast
import importlib
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'edge_resnet'
MAY_USE_ROS = ('nodes/', 'tools/capture_calibration.py')  # the second has a thin node of its own


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that ``path`` imports, wherever in the file and however relative."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join([*package[:len(package) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
            yield from (f'{base}.{alias.name}' for alias in node.names)


def offenders(folder: str, *forbidden: str) -> list[str]:
    files = sorted((PACKAGE / folder).rglob('*.py'))
    assert files, f'{folder} has no modules'
    return [f'{path.relative_to(ROOT)} imports {name}' for path in files for name in imported(path)
            if any(name == bad or name.startswith(bad + '.') for bad in forbidden)]


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    path = tmp_path / 'edge_resnet' / 'pipeline' / 'x.py'
    path.parent.mkdir(parents=True)
    path.write_text('import rclpy.node as r\ndef f():\n    from ..hardware import thermal\n    from . import probe\n    from rclpy import init\n')
    monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
    assert set(imported(path)) == {'rclpy.node', 'edge_resnet.hardware.thermal', 'edge_resnet.pipeline.probe', 'rclpy.init'}


def test_pipeline_knows_no_hardware_and_no_nodes():
    assert offenders('pipeline', 'rclpy', 'edge_resnet.hardware', 'edge_resnet.nodes', 'edge_resnet.tools', 'edge_resnet.conversions') == []


def test_hardware_knows_no_pipeline_and_no_nodes():
    assert offenders('hardware', 'rclpy', 'edge_resnet.pipeline', 'edge_resnet.nodes', 'edge_resnet.tools', 'edge_resnet.conversions') == []


def test_only_nodes_import_rclpy():
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py') if any(name.split('.')[0] == 'rclpy' for name in imported(path))}
    assert sorted(user for user in users if not user.startswith(MAY_USE_ROS)) == []
    assert 'nodes/base.py' in users  # else the walk sees nothing


@pytest.mark.parametrize('node', ['inference_node', 'actuator_node', 'thermal_monitor_node', 'latency_monitor_node'])
def test_nodes_that_touch_no_images_load_no_opencv(node):
    """OpenCV costs some 30 MB and half a second on a Pi."""
    code = f'import edge_resnet.nodes.{node}, sys; sys.exit("cv2" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60).returncode == 0


def test_the_pipeline_runs_without_ros():
    """The tools work where no ROS 2 is: nothing of it is loaded by the classifier, the decision gate or the calibration."""
    code = ('import sys; sys.modules.update(rclpy=None, sensor_msgs=None, vision_msgs=None)\n'
            'import edge_resnet.pipeline.classifier, edge_resnet.pipeline.decision, edge_resnet.tools.calibrate, edge_resnet.deployment')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60).returncode == 0


def executables() -> list[str]:
    """``name = module:function`` of every command that setup.py installs."""
    arguments: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, 'setup', lambda **given: arguments.update(given))
        patch.chdir(ROOT)
        runpy.run_path('setup.py')
    return arguments['entry_points']['console_scripts']


def test_the_nodes_of_the_contract_are_installed():
    assert {line.split(' = ')[0] for line in executables()} >= {
        'camera_node', 'preprocess_node', 'inference_node', 'actuator_node', 'thermal_monitor_node', 'latency_monitor_node', 'pipeline', 'calibrate',
        'export_model'}


@pytest.mark.parametrize('line', executables())
def test_every_installed_command_has_its_main(line):
    module, function = line.split(' = ')[1].split(':')
    assert callable(getattr(importlib.import_module(module), function))
