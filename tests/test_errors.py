"""What a user reads is one line that any terminal can print."""

from __future__ import annotations

import pickle

import pytest

from clab_d2.errors import ConfigError, DataError


@pytest.mark.parametrize("kind", [DataError, ConfigError])
def test_a_message_is_one_printable_line(kind: type[ValueError]) -> None:
    error = kind("a\nb\x1b[31m\0\ud800 ü, 貓.mp4")
    assert str(error) == "a\\nb\\x1b[31m\\x00\\ud800 ü, 貓.mp4"
    str(error).encode()
    # From a data-loading worker it comes pickled, and is no longer for that.
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
