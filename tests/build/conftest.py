"""Fixtures of the tests of the build."""

import pytest

from fcos_core.build import torch_files, torch_path


@pytest.fixture
def site():
    """The folder that holds a torch whose files say how it was built."""
    folder = torch_path.expose_torch()
    if folder is None or torch_files.read(folder) is None:
        pytest.skip("the files of this torch do not say how it was built")
    return folder
