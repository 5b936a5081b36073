"""LGD, Label-Guided self-Distillation for object detection (AAAI 2022), for any detectron2 detector."""

import warnings

__version__ = "0.1.0"

# detectron2 and fvcore call what torch has deprecated since; nothing a user of this package can act on.
warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=r".*torch\.meshgrid.*", category=UserWarning)
