"""From which beta on the inverse of the reversible recurrence is accurate enough to be used."""

from __future__ import annotations

import torch

# Largest relative error accepted in a reconstructed state, by the dtype that the branches compute in.
# Gradients of smooth branches then agree with plain autograd to about as much. (That of a ReLU jumps where a
# value rounds to the other side of 0: the float32 gradient of R(2+1)D-34 is 1e-3 to 1e-2 off the float64 one,
# inverted or not.)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# In lower precision the branches' own rounding noise is far above that; this many times it is accepted. (In
# R(2+1)D-34 the bfloat16 gradient is then as far from the float32 one as without the inverse, within 3 %.)
NOISE_GAIN = 4.0


def smallest_beta(num_branches: int, dtype: torch.dtype, *, post_activation: bool = False) -> float:
    """The smallest beta whose inverse is accurate enough; `dtype` is that of the branches.

    The inverse multiplies an error by 1 / beta per branch, and once more where phi^-1 divides by beta: by
    beta^-p, where p counts the divisions. float32, float64: the error starts as one rounding of a state, u,
    and we ask that 20 u beta^-p be within TOLERANCE. The 20 stands for the roundings on the way and the
    slope of the branches: 4 to 8 were measured with random MLPs, 7 to 19 with R(2+1)D-34. Lower precision:
    a branch that gets a state off by u rounds some values the other way, and a few layers later differs by
    all of its own rounding noise; so we ask that beta^-p be within NOISE_GAIN.
    """
    divisions = max(2 * num_branches - 1 if post_activation else num_branches, 1)
    gain = TOLERANCE[dtype] / (10 * torch.finfo(dtype).eps) if dtype in TOLERANCE else NOISE_GAIN
    beta: float = gain ** (-1 / divisions)
    return beta
