"""Boxes of another format than COCO's: each of them may be usable, and only all of a split's together look wrong."""

from __future__ import annotations

__all__ = ["BoxFormat"]

REACH = 5
"""Pixels out of its image from which on a box is not just rounded."""

MANY = 0.1
"""Part of a split's boxes. Of corners that are read as x, y, width, height most reach out: a box whose
centre is in the right half does, and one in the lower half."""


class BoxFormat:
    """Counts a split's boxes, and of these the ones that look like another format's."""

    def __init__(self) -> None:
        self.boxes = self.tiny = self.corners = 0

    def add(self, box: list[float], width: int, height: int) -> None:
        """A box, as annotated, in an image of ``width`` x ``height`` pixels."""
        x, y, w, h = box
        self.boxes += 1
        if w <= 1 and h <= 1:
            self.tiny += 1
        # Objects that are annotated beyond the image's edge reach out too. As corners most of them make no box.
        elif (x + w > width + REACH or y + h > height + REACH) and x < w <= width + REACH and y < h <= height + REACH:
            self.corners += 1

    def doubt(self, *, is_coco: bool) -> str:
        """What is to be asked about the boxes, "" for nothing. is_coco: they were read as x, y, width, height."""
        if self.tiny > self.boxes / 2:
            return f"{self.tiny} of {self.boxes} boxes are not larger than 1 pixel: are they normalised to 0..1?"
        if is_coco and self.corners > self.boxes * MANY:
            return (
                f"{self.corners} of {self.boxes} boxes reach more than {REACH} pixels out of their image: are they x1,"
                " y1, x2, y2 (COCO's are x, y, width, height)?"
            )
        return ""
