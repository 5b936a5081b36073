"""LGD, Label-Guided self-Distillation for object detection (AAAI 2022), for any detectron2 detector."""

__version__ = "0.1.0"
