"""Reference sampling: frames 1, BASE, BASE ** 2, ... to both sides of the key frame."""

from detectron2.config import configurable

from clab_d2 import extend_config
from clab_d2.data import REFERENCE_SAMPLING_REGISTRY, ReferenceSampling
from clab_d2.errors import ConfigError


@extend_config
def add_keys(cfg):
    cfg.INPUT.REFERENCES.BASE = 2  # in training
    cfg.TEST.REFERENCES.BASE = 2


@REFERENCE_SAMPLING_REGISTRY.register(name="exponential")
class ExponentialReferences(ReferenceSampling):
    @configurable
    def __init__(self, num=4, base=2):
        if num < 2 or num % 2 or base < 2:
            raise ConfigError(f"REFERENCES.NUM {num} must be even, and BASE {base} at least 2")
        self.steps = [base**i for i in range(num // 2)]
        self.reach = (self.steps[-1], self.steps[-1])  # frames before and after, at most

    @classmethod
    def from_config(cls, cfg, references):
        # cfg.INPUT.REFERENCES in training, cfg.TEST.REFERENCES at test
        return {"num": references.NUM, "base": references.BASE}

    def frames(self, num_frames, key):
        wanted = [key - step for step in self.steps] + [key + step for step in self.steps]
        return [min(max(frame, 0), num_frames - 1) for frame in wanted]
