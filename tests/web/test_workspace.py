from __future__ import annotations

from pathlib import Path

from clab_d2.web.workspace import Workspace


def write(folder: Path) -> Path:
    file = folder / "drawn.mp4"
    file.write_bytes(b"x")
    return file


def test_a_visitors_last_job_goes_with_the_next_one_and_with_the_visitor() -> None:
    with Workspace() as workspace:
        workspace.enter("a")
        workspace.enter("b")
        first, of_b = write(workspace.new_job("a")), write(workspace.new_job("b"))
        second = write(workspace.new_job("a"))
        assert not first.exists() and second.exists() and of_b.exists()
        workspace.leave("a")
        assert not second.exists() and of_b.exists()


def test_the_last_visitor_takes_all_along() -> None:
    with Workspace() as workspace:
        workspace.enter("a")
        workspace.enter("b")
        upload = workspace.root / "0123" / "clip.mp4"
        upload.parent.mkdir()
        upload.write_bytes(b"x")
        workspace.leave("a")
        assert upload.exists()
        workspace.leave("b")
        workspace.leave("b")
        assert not list(workspace.root.iterdir())
        assert workspace.new_job("c").is_dir()
    assert not workspace.root.exists()
