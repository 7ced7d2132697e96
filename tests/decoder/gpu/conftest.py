"""The GPU tests need only torch, Triton and pytest, and run without the configuration of the rest.

On a machine without the other requirements:
pytest -c /dev/null --rootdir . --confcutdir tests/decoder/gpu tests/decoder/gpu
"""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items):
    """Warnings are errors in the other tests. Here, drivers and compilers may give any warning."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
