"""Mini VID: a small video data set drawn on the spot, in ILSVRC2015's own layout.

``shapes`` holds the outlines of animals and vehicles, ``coats`` what tells look-alikes apart,
``plan`` where everything is in every frame (numbers only), ``scene`` the drawing, and ``writer``
the files. Needs NumPy and OpenCV, not PyTorch.
"""
