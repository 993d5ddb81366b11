from __future__ import annotations

from dataclasses import replace

import torch
from plain_contrast import make_frame, make_loss, make_truth

from clab_d2.modeling.contrastive.track_contrast import MultiPositiveLoss

BOXES = [[4.0, 8.0, 50.0, 60.0], [40.0, 20.0, 100.0, 90.0]]


def two_frames(tracks, videos=(1, 1)):
    return [
        make_frame(number, number, videos[number], make_truth(BOXES, [0, 0], tracks))
        for number in range(2)
    ]


def test_identities_count_within_their_video_only():
    """Object 0 of another video is another object."""
    loss = make_loss("TrackContrast")
    assert loss(two_frames([0, 1])) > 0
    assert loss(two_frames([0, 1], videos=(1, 2))) == 0  # no positive


def test_objects_without_identity_are_no_anchors_and_no_negatives_in_their_video():
    loss = make_loss("TrackContrast")
    assert loss(two_frames([-1, -1])) == 0
    # Either may be the object that is known, so there is no negative.
    assert loss(two_frames([0, -1])) == 0
    known = two_frames([0, 1])
    stranger = make_frame(5, 2, 9, make_truth(BOXES, [0, 0], [-1, -1]))
    same_video = replace(stranger, video=known[0].video)
    assert loss([*known, stranger]) > loss(known)  # more negatives
    torch.testing.assert_close(loss([*known, same_video]), loss(known))


def test_a_track_is_one_over_batches():
    """An object that is alone in its batch has its positive in the memory."""
    loss = make_loss("TrackContrast", memory_size=20)
    first, second = two_frames([0, 1])
    assert loss([first]) == 0
    assert loss([second]) > 0


def test_large_similarities_do_not_overflow():
    vectors = torch.randn(6, 3, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    loss = MultiPositiveLoss(temperature=1e-4)(vectors, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(vectors.grad).all()
