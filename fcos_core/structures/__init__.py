"""Boxes and batches of images: tensor geometry (`box_ops`), `BoxList`, functions on BoxLists, `ImageList`."""
