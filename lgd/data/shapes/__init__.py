"""The default data: photograph-like images of simple objects, made on first use.

Seven classes are told apart by outline, not by colour, and two of them (``ball`` and ``plate``) share the
outline of a disc: the scene, and a ``cross`` that lies next to most plates, say which one it is. A detector
therefore gains from the context of an image and from the relations between its objects.

The directory is in COCO layout (``train/``, ``val/``, ``annotations/instances_{train,val}.json``) and every
image is a pure function of (seed, split, index, size), so a longer set begins with the shorter one, and every x86-64
processor with AVX2 draws the same pixels.
"""

from lgd.data.shapes.generate import make
from lgd.data.shapes.spec import CATEGORIES, SCENES, ShapesSpec

__all__ = ["CATEGORIES", "SCENES", "ShapesSpec", "make"]
