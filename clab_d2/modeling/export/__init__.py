"""Detectors as graphs for other runtimes: what a frame gives, and what a key frame makes of it.

``base`` says what the two graphs of a detector are; each kind of detector has a module that builds
its own. What is written to files, and how it is run, is not known here (:mod:`clab_d2.export`,
:mod:`clab_d2.runtime`).
"""
