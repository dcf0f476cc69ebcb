"""scripts/setup.sh refuses at once where it could not succeed; the rest of it is what every test runs on."""

import os
import shutil
import subprocess

import pytest


@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
@pytest.mark.parametrize('name', ['façade', '家'])
def test_a_folder_that_the_generators_cannot_build_in(root, tmp_path, name, locale):
    refused = setup_in(root, tmp_path / name, LC_ALL=locale)
    assert refused.returncode == 1
    assert refused.stderr.count('\n') == 1
    assert f'{tmp_path / name}: ROS 2' in refused.stderr
    assert not (tmp_path / name / '.venv').exists()


@pytest.mark.skipif(os.getuid() == 0, reason='root may write anywhere')
def test_a_folder_that_is_not_writable(root, tmp_path):
    (tmp_path / 'kept').mkdir(mode=0o555)
    refused = setup_in(root, tmp_path / 'kept')
    assert refused.returncode == 1
    assert 'is not writable' in refused.stderr


def setup_in(root, folder, **environment):
    shutil.copytree(root / 'scripts', folder / 'scripts')
    return subprocess.run(['bash', folder / 'scripts' / 'setup.sh'], env={**os.environ, **environment}, capture_output=True, text=True)
