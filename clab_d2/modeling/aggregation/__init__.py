"""How a key frame's features take in those of its reference frames: one file a method."""
