"""Mini VID: a small video data set drawn on the spot, in ILSVRC2015's own layout.

``shapes`` holds the outlines of animals and vehicles, ``coats`` what tells look-alikes apart,
``plan`` where everything is in every frame (numbers only), ``background``, ``hiding`` and
``scene`` the drawing, ``writer`` the files, and ``summary`` the figures and the contact sheet.
Needs NumPy and OpenCV, not PyTorch.
"""
