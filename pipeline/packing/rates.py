"""Frame rates as exact fractions of frames per second."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def exact_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as the fraction meant: 29.97 becomes 30000/1001, 23.976 becomes 24000/1001."""
    rate = Fraction(fps).limit_denominator(100)
    ntsc = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    return ntsc if rate.denominator > 1 and abs(ntsc - Fraction(fps)) < Fraction(1, 500) else rate


def stated_rate(stream: av.VideoStream) -> Fraction | None:
    """The rate the header states; None when it states none."""
    rate = stream.average_rate or stream.guessed_rate
    return Fraction(rate) if rate else None


def coded_rate(stream: av.VideoStream) -> Fraction | None:
    """The rate that the encoded stream itself states, whatever its container; None when it states none."""
    rate = stream.codec_context.framerate
    return Fraction(rate) if rate else None


def closest_rate(measured: Fraction, stated: Fraction | None) -> Fraction:
    """The stated rate where the measured one is within 0.5 % of it, else the measured one."""
    if stated and abs(measured / stated - 1) < Fraction(1, 200):
        return stated
    return measured.limit_denominator(1001) or measured


def moving_rate(times: Sequence[float], stated: Fraction | None) -> Fraction:
    """Frames per second where they come densely, of frames that do not come evenly; at least 1, so that what
    changes now and then does so in the right second.

    times: seconds, rising, at least two. The tenth part of all steps that is shortest counts, each with the
    one after it (some recorders write frames in pairs), and the fullest second, for motion may be rarer than
    that; the stated rate where that is near.
    """
    at, span = np.array(times), min(2, len(times) - 1)
    shortest = float(np.quantile(at[span:] - at[:-span], 0.1, method="lower"))
    fullest = int((np.searchsorted(at, at + 1.001, side="right") - np.arange(len(at))).max()) - 1
    measured = Fraction(max(span / max(shortest, span / 1000), fullest, 1)).limit_denominator(1001)
    return stated if stated and abs(measured / stated - 1) < Fraction(1, 10) else measured
