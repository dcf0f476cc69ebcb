"""ament_python package. Each ``nodes/*_node.py`` and ``tools/*.py`` with a ``main`` becomes an executable of its name."""

import re
from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

from distutils.command.install_data import install_data  # isort: skip  setuptools provides it

NAME = 'edge_resnet'
here = Path(__file__).resolve().parent


def executables():
    """Console scripts, by the rule above; ``nodes/pipeline.py`` too, and ``tools/demo.py`` under a name of its own."""
    for path in sorted([*here.glob(f'{NAME}/nodes/*_node.py'), here / NAME / 'nodes' / 'pipeline.py', *here.glob(f'{NAME}/tools/*.py')]):
        if path.exists() and re.search(r'^def main\(', path.read_text(), re.M):
            name = 'edge_resnet_demo' if path.stem == 'demo' else path.stem
            yield f'{name} = {NAME}.{path.parent.name}.{path.stem}:main'


def shared(*folders):
    """(installed folder, files) of every file below ``folders``, the tree kept as it is."""
    for folder in folders:
        for path in sorted((here / folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                yield f'share/{NAME}/{path.parent.relative_to(here)}', [str(path.relative_to(here))]


class InstallData(install_data):
    """pip puts executables into bin/ whatever setup.cfg says, but ros2 run and ros2 launch look for them in lib/edge_resnet."""

    def run(self):
        super().run()
        if Path(self.get_finalized_command('install').install_scripts).name == NAME:
            return  # colcon: they are there
        folder = Path(self.install_dir, 'lib', NAME)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (entry.split(' = ')[0] for entry in executables()):
            script = folder / name
            script.write_text(f'#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/../../bin/{name}" "$@"\n')
            script.chmod(0o755)
            self.outfiles.append(str(script))


package = ElementTree.parse(here / 'package.xml').getroot()
setup(
    name=NAME,
    version=package.findtext('version'),
    description=' '.join(package.findtext('description').split()),
    license='Apache-2.0',
    maintainer='edge_resnet maintainers',
    maintainer_email='maintainers@edge-resnet.example',
    packages=find_packages(include=[f'{NAME}*']),
    package_data={NAME: ['web/static/*', 'web/static/**/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        *shared('launch', 'config', 'models', 'samples'),
    ],
    python_requires='>=3.10',
    install_requires=['setuptools'],
    extras_require={'export': ['tensorflow-cpu==2.18.1'], 'train': ['tensorflow-cpu==2.18.1']},
    zip_safe=False,
    cmdclass={'install_data': InstallData},
    entry_points={'console_scripts': list(executables())},
)
