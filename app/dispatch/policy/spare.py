"""How much of the time until its deadline an image can wait. Pure: the dispatcher and front ends use it
alike, so that no front end decodes what the dispatcher would refuse.
"""

# Of the time until its deadline, what an image leaves at most to those behind it in its batch.
BATCH_SHARE = 0.25


def batch_s(image_s: float, images: float, allowed_s: float) -> float:
    """What a batch of images like it takes, beside the overhead: a full one of so many, or what the time that
    is allowed leaves room for."""
    return max(image_s, min(images * image_s, BATCH_SHARE * allowed_s))


def batch_slack_s(image_s: float, whole_batch_s: float, queued_s: float) -> float:
    """What it leaves to those behind it in its batch: no more than there is when ``queued_s`` is what waits
    before it, on all streams."""
    return min(whole_batch_s - image_s, queued_s)


def spare_s(allowed_s: float, taken_s: float, caution: float, wait_limit_s: float) -> float:
    """How long it may wait: what is left when its own batch, which takes so long, has been computed, with
    caution."""
    return min(allowed_s / caution - taken_s, wait_limit_s)
