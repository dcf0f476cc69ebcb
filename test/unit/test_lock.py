"""What pip installs is pinned by version and sha256."""

import re

import pytest


def pins(text: str) -> set[tuple[str, str]]:
    return {(re.sub(r'[-_.]+', '-', name).lower(), version) for name, version in re.findall(r'^([\w.-]+)==([^\s;\\]+)', text, re.M)}


@pytest.mark.parametrize('name', ['ros', 'base', 'build', 'tools', 'test', 'quality'])
def test_locked(root, name):
    """When it is not: scripts/lock.sh."""
    lock = (root / 'requirements' / f'{name}.lock').read_text()
    assert pins((root / 'requirements' / f'{name}.txt').read_text()) <= pins(lock)
    for entry in re.split(r'\n(?=\S)', lock)[1:]:
        assert '--hash=sha256:' in entry, entry


def test_setup_installs_nothing_else(root):
    text = (root / 'scripts' / 'setup.sh').read_text()
    assert [line.strip() for line in text.splitlines() if 'pip install' in line and '--require-hashes' not in line and '--no-deps' not in line] == []
