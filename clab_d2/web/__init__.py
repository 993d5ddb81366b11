"""A page in the browser: a video in, detections out (tools/serve.py, docs/serve.md).

``video_job`` detects in one video within limits and draws what it found, ``objects`` sums it up,
``workspace`` keeps and deletes the files of visitors; none of them knows of the page. ``page`` is
the page itself, made with Gradio.
"""
