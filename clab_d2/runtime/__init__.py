"""Exported models, run without PyTorch and Detectron2 (docs/export.md).

NumPy, OpenCV and one of onnxruntime and OpenVINO are all that is imported here. ``description`` is
what a model's folder says, ``sessions`` run its two graphs, ``memory`` keeps what they give of
frames, ``detections`` picks what is a detection, and ``model`` puts these together.
"""
