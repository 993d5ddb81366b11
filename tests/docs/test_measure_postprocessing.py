"""docs/scripts/measure_postprocessing.py: its figures are those of tools/evaluate.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tool_modules import import_docs_script, import_tool

from clab_d2.evaluation.comparison import Spread

BEGIN, END = (f"<!-- {w}: docs/scripts/measure_postprocessing.py -->" for w in ("begin", "end"))


def write_dataset(folder: Path) -> None:
    """A box in ten frames, found as a dog in some of them."""
    images = [{"id": f + 1, "video_id": 1, "frame_id": f} for f in range(10)]
    annotations = [
        {"id": f + 1, "image_id": f + 1, "category_id": 1, "instance_id": 1, "bbox": [f, 0, 20, 20]}
        for f in range(10)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    truth = {"categories": categories, "images": images, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps({**truth, "videos": [{"id": 1, "name": "v"}]}))
    for seed, dogs in ((1, (3, 7)), (2, (3, 4, 7))):
        entries = [
            {"image_id": f + 1, "category_id": category, "bbox": [f, 0, 20, 20], "score": score}
            for f in range(10)
            for category, score in zip((1, 2), (0.2, 0.8) if f in dogs else (0.9, 0.1), strict=True)
        ]
        (folder / f"p{seed}.json").write_text(json.dumps(entries))


def test_tables_hold_what_evaluate_says(tmp_path, capsys) -> None:
    write_dataset(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["--annotations", str(tmp_path / "truth.json")]
    script = import_docs_script("measure_postprocessing")
    assert (
        script.main([*arguments, "--group", f"mine={tmp_path}/p*.json", "--page", str(page)]) == 0
    )
    tables = capsys.readouterr().out.strip()
    assert page.read_text() == f"before\n{BEGIN}\n\n{tables}\n\n{END}\nafter\n"

    evaluate = import_tool("evaluate")
    lines = tables.replace("`", "").split("\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    changes = {}
    for method in ("none", "seq_nms"):
        more = ["--postprocess", method] if method != "none" else []
        output = tmp_path / "m.json"
        files = [str(tmp_path / f"p{seed}.json") for seed in (1, 2)]
        command = [*arguments, "--flicker", "--output", str(output), "--predictions", *files, *more]
        assert evaluate.main([*command, "--labels", "mine", "mine"]) == 0
        group = json.loads(output.read_text())["groups"]["mine"]
        shown = [f"{group['vid'][k]['mean']:.1f} ± {group['vid'][k]['std']:.1f}" for k in ("AP50",)]
        flicker = group["flicker"]["class-changes"]
        shown.append(f"{flicker['mean']:.1f} ± {flicker['std']:.1f}")
        (row,) = [row for row in rows if row[:3] == ["mine", "2", method]]
        assert [row[3], row[8]] == shown
        runs = json.loads(output.read_text())["runs"]
        changes[method] = [run["flicker"]["class-changes"] for run in runs]
    change = Spread.of([b - a for a, b in zip(changes["none"], changes["seq_nms"], strict=True)])
    assert change.mean < 0
    (row,) = [row for row in rows if row[:2] == ["mine", "seq_nms"]]
    assert row[7] == f"{change.mean:+.1f} ± {change.std:.1f}"


def test_a_page_without_its_place_is_refused(tmp_path, capsys) -> None:
    write_dataset(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    arguments = ["--annotations", str(tmp_path / "truth.json"), "--page", str(page)]
    script = import_docs_script("measure_postprocessing")
    with pytest.raises(SystemExit):
        script.main([*arguments, "--group", f"mine={tmp_path}/p*.json"])
    assert "needs the two comments" in capsys.readouterr().err
