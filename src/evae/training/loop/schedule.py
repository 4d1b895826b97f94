"""The learning rate as a pure function of the step: linear warm-up, then a cosine to zero.

    rate(step) = peak * (step + 1) / warmup                                          step < warmup
    rate(step) = peak * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2       otherwise

Nothing is remembered between steps, so a resumed run needs no schedule state. Where `max_steps` is raised on the way,
or after the end, the following steps have the rate of a run of the new length: it jumps up once, without a warm-up.
"""

import math


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, max_steps: int) -> float:
    """The learning rate of one update.

    Args:
        step: number of updates already made, 0 for the first.
        peak: the rate at the end of the warm-up.
        warmup_steps: length of the warm-up in updates; 0 starts at the peak.
        max_steps: updates in the whole run, warm-up included.

    Returns:
        The rate, above 0 for every step below `max_steps` and 0 from there on.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step >= max_steps:
        return 0.0
    share = (step - warmup_steps) / (max_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))
