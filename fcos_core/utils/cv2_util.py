"""Differences between versions of OpenCV."""


def findContours(*args, **kwargs):
    """`cv2.findContours` with the two results of OpenCV 4, contours and hierarchy; OpenCV 3 puts an image before them.

    Raises:
        ImportError: OpenCV is missing.
    """
    import cv2

    contours, hierarchy = cv2.findContours(*args, **kwargs)[-2:]
    return contours, hierarchy
