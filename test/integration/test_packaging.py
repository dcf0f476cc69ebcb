"""What gets installed by pip (from the sdist) and by colcon, found where ROS looks for it; and what package.xml asks for."""

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge_resnet.deployment import NODES

NAME = 'edge_resnet'
SHARED = ('launch', 'config', 'models', 'samples')
LEFT_OUT = shutil.ignore_patterns('.*', 'build', 'install', 'log', 'dist', '*.egg-info', '__pycache__')
ROSDEP = {'cv2': 'python3-opencv', 'yaml': 'python3-yaml'}  # where the key is not the import's name, with or without python3-
FIND = "from edge_resnet.pipeline import bundle; print(*(bundle.find_shared(*name) for name in (('models', 'probe'), ('samples', ''))), sep='\\n')"


@dataclass(frozen=True)
class Installed:
    """An installation of the package outside of the interpreter's own folders, and the environment that finds it."""

    prefix: Path
    environment: dict[str, str]

    @property
    def share(self) -> Path:
        return self.prefix / 'share' / NAME

    @property
    def executables(self) -> Path:
        return self.prefix / 'lib' / NAME


def copy_tree(root: Path, to: Path) -> Path:
    """The source tree without what was built in it, plus a model bundle ``probe``."""
    shutil.copytree(root, to, ignore=LEFT_OUT, symlinks=True)
    (to / 'models' / 'probe').mkdir(parents=True)
    (to / 'models' / 'probe' / 'labels.txt').write_text('green\nred\n')
    return to


def run(*command: object, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment or dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, f'{command}: {done.stdout}{done.stderr}'
    return done.stdout


def found_in(folder: Path) -> Installed:
    """The installation below ``folder``: Debian's pip puts local/ in between, and the modules are where the interpreter's scheme says."""
    prefix = next(folder.rglob('share/ament_index')).parents[1]
    modules = next(path.parent for path in folder.rglob(NAME) if (path / '__init__.py').is_file())
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(modules), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep),
                   'AMENT_PREFIX_PATH': os.pathsep.join([str(prefix), os.environ.get('AMENT_PREFIX_PATH', '')]).rstrip(os.pathsep)}
    return Installed(prefix, environment)


def pip_install(root: Path, folder: Path) -> Installed:
    """The package of source tree ``root`` as a user gets it: its sdist, installed with pip below ``folder``."""
    source = copy_tree(root, folder / 'source')
    build = 'from setuptools import build_meta; print(build_meta.build_sdist("dist"))'
    sdist = source / 'dist' / run(sys.executable, '-c', build, cwd=source).splitlines()[-1]
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check',
        '--ignore-installed',  # or pip removes the one in the environment that runs this

        '--prefix', folder / 'prefix', sdist, cwd=folder)
    return found_in(folder / 'prefix')


def colcon_build(root: Path, folder: Path, *options: str) -> Installed:
    copy_tree(root, folder / 'src' / NAME)
    run('colcon', 'build', *options, cwd=folder)
    text = run('bash', '-c', 'source install/setup.bash && env', cwd=folder)
    environment = dict(line.split('=', 1) for line in text.splitlines() if '=' in line)
    return Installed(folder / 'install' / NAME, environment)


def installed_by(how: str, root: Path, folder: Path) -> Installed:
    if how == 'pip':
        return pip_install(root, folder)
    if shutil.which('colcon') is None:
        pytest.skip('colcon is not installed')
    return colcon_build(root, folder, *(['--symlink-install'] if how == 'colcon, links' else []))


@pytest.fixture(scope='module', params=['pip', 'colcon', 'colcon, links'])
def installed(request, tmp_path_factory):
    return installed_by(request.param, Path(__file__).resolve().parents[2], tmp_path_factory.mktemp('installed'))


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file() and '__pycache__' not in path.parts}


def test_shared_files_and_index_entry(installed, root):
    for kind in SHARED:
        wanted = {f'{kind}/{name}' for name in names_below(root / kind)} | ({'models/probe/labels.txt'} if kind == 'models' else set())
        assert wanted <= names_below(installed.share), f'{kind}: {wanted - names_below(installed.share)} missing'
    assert (installed.share / 'launch' / 'pipeline.launch.py').read_text() == (root / 'launch' / 'pipeline.launch.py').read_text()
    assert ElementTree.parse(installed.share / 'package.xml').findtext('name') == NAME
    assert (installed.prefix / 'share' / 'ament_index' / 'resource_index' / 'packages' / NAME).is_file()


def test_package_finds_its_own_shared_files(installed, tmp_path):
    """Also with --symlink-install, where the modules are links into the source tree."""
    probe, samples = map(Path, run(sys.executable, '-c', FIND, cwd=tmp_path, environment=installed.environment).splitlines())
    assert (probe / 'labels.txt').read_text() == 'green\nred\n'
    assert (samples / 'labels.csv').is_file()


def test_executables_are_where_ros2_run_looks(installed, tmp_path):
    found = {path.name for path in installed.executables.iterdir() if os.access(path, os.X_OK)}
    assert {f'{node}_node' for node in NODES} | {'pipeline', 'calibrate', 'edge_resnet_demo'} <= found
    assert names_below(installed.executables) == found
    text = run(installed.executables / 'edge_resnet_demo', '--help', cwd=tmp_path, environment=installed.environment)
    assert 'params_file' in text


def test_an_executable_runs_the_installed_package(installed, tmp_path):
    """A refusal is enough: it comes from the node, and passes through whatever starts it."""
    pytest.importorskip('rclpy')
    command = [str(installed.executables / 'camera_node'), '--ros-args', '-p', 'framerate:=0.0']
    done = subprocess.run(command, cwd=tmp_path, env=installed.environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'framerate is 0.0, expected 0.1 to 240.0' in done.stdout + done.stderr


def imports(path: Path) -> set[str]:
    found = set()
    for entry in ast.walk(ast.parse(path.read_text())):
        if isinstance(entry, ast.Import):
            found |= {alias.name.split('.')[0] for alias in entry.names}
        elif isinstance(entry, ast.ImportFrom) and not entry.level:
            found.add(entry.module.split('.')[0])
    return found - sys.stdlib_module_names - {NAME}


def test_package_xml_asks_for_what_is_imported(root):
    package = ElementTree.parse(root / 'package.xml').getroot()
    assert package.get('format') == '3'
    assert package.findtext('export/build_type') == 'ament_python'
    keys = {entry.text for entry in package.iter() if entry.tag in ('depend', 'exec_depend')}
    used = {name: path for path in [*root.glob('launch/*.py'), *root.glob(f'{NAME}/**/*.py')] for name in imports(path) if 'tools' not in path.parts}
    assert 'rclpy' in used
    missing = {name: str(path) for name, path in used.items() if not {name, f'python3-{name}', ROSDEP.get(name)} & keys}
    assert missing.pop('mcap'), 'rosdep has no key for it: recording says what to install'
    assert not missing, f'no exec_depend in package.xml for {missing}'
    imported = {key for name in used for key in (name, f'python3-{name}', ROSDEP.get(name))}
    assert keys - imported == {'ros2launch'}, 'nothing imports these'


def test_what_only_the_tools_import_is_declared(root):
    """They may need more than rosdep has: requirements/tools.txt, or an extra of setup.py."""
    package = (root / 'package.xml').read_text()
    extra = (root / 'setup.py').read_text() + ''.join(path.read_text() for path in root.glob('requirements/*.txt'))
    keras = {'keras': 'tensorflow'}  # comes with it
    for path in root.glob(f'{NAME}/tools/*.py'):
        for name in imports(path):
            declared = f'>{name}<' in package or f'>{ROSDEP.get(name, f"python3-{name}")}<' in package
            assert declared or keras.get(name, name) in extra, f'{path} imports {name}, which is nowhere asked for'
