"""Which torch is proposed where."""

import pytest

from fcos_core.build import releases


@pytest.mark.parametrize(
    "python, gpu, driver, expected",
    [
        ((3, 7), 86, None, "1.13.1"),
        ((3, 8), 86, None, "2.4.1"),
        ((3, 10), 86, (12, 2), "2.10.0"),
        ((3, 11), 86, (13, 0), "2.15.0"),
        ((3, 11), 120, (12, 8), "2.10.0"),
        ((3, 10), 61, None, "2.7.1"),
        ((3, 9), 37, None, "2.0.1"),
        ((3, 10), 86, (11, 4), "2.0.1"),
        ((3, 9), 70, (10, 2), "1.12.1"),
        ((3, 9), 70, (10, 1), None),  # before CUDA 11 the minor version counts
        ((3, 7), 120, None, None),
        ((3, 14), 61, None, None),
        ((3, 11), None, None, "2.15.0"),
    ],
)
def test_newest_that_serves_python_gpu_and_driver(python, gpu, driver, expected):
    release = releases.best(python, gpu, driver)
    assert (release and release.version) == expected


def test_commands():
    index = " --index-url https://download.pytorch.org/whl/"
    assert releases.command((3, 11)) == "python -m pip install torch torchvision"
    assert releases.command((3, 7), 86) == "python -m pip install torch==1.13.1 torchvision" + index + "cu117"
    assert releases.command((3, 10), 86, (12, 2), upgrade=True) == (
        "python -m pip install --force-reinstall torch==2.10.0 torchvision" + index + "cu128"
    )
    too_old = releases.command((3, 11), 120, (11, 4))
    assert "update the NVIDIA driver to one that serves CUDA 13.2 (this one: 11.4), then python -m pip" in too_old
    assert "no torch for Python 3.7 serves this GPU; use Python 3.11 to 3.15" in releases.command((3, 7), 120)
    assert "use Python 3.9 to 3.13 with torch 2.7.1" in releases.command((3, 14), 61)
    assert "MODEL.DEVICE cpu" in releases.command((3, 11), 30)


def test_table_is_in_order_and_complete():
    versions = [tuple(map(int, release.version.split("."))) for release in releases.RELEASES]
    assert versions == sorted(versions)
    for release in releases.RELEASES:
        assert release.archs == tuple(sorted(release.archs)) and release.pythons[0] < release.pythons[1]
