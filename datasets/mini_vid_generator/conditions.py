"""Which annotation shows its object under what: ILSVRC's layout has no place for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clab_d2.converters.ilsvrc import read_annotation

from .writer import STATS_FILE


def with_conditions(data: dict[str, Any], root: Path) -> dict[str, Any]:
    """A converted file of videos whose annotations have a ``condition``.

    Args:
        data: the CocoVID file; left as it is. Its annotations follow the order of the XML files.
        root: the folder of Mini VID.

    Returns:
        The same; ``condition`` is what hides the object's markings in that frame, or "clear".
    """
    degradations = json.loads((root / STATS_FILE).read_text(encoding="utf-8"))["degradations"]
    videos = {video["id"]: video["name"] for video in data["videos"]}
    conditions: dict[int, list[str]] = {}
    for image in data["images"]:
        of_video = degradations[videos[image["video_id"]]]
        xml = root / "Annotations" / "VID" / image["file_name"]
        tracks = [int(item.track_id) for item in read_annotation(xml.with_suffix(".xml")).objects]
        states = [of_video[track][image["frame_id"]] or "clear" for track in tracks]
        conditions[image["id"]] = states[::-1]
    annotations = [{**a, "condition": conditions[a["image_id"]].pop()} for a in data["annotations"]]
    return {**data, "annotations": annotations}
