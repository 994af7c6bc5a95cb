"""FCOS in three lines, as the pip package `fcos` had it.

from fcos import FCOS
detector = FCOS("fcos_R_50_FPN_1x", cpu_only=True)
results = detector.detect(cv2.imread("street.jpg"))

The same on the command line: ``fcos street.jpg``. Importing the package alone imports nothing heavy.
"""

__all__ = ["FCOS"]


def __getattr__(name):
    if name == "FCOS":
        from fcos.fcos import FCOS

        return FCOS
    raise AttributeError("module 'fcos' has no attribute '{}'".format(name))
