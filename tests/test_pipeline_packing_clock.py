"""Times of frames: their order, rate and end, and the rates that are meant."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pipeline.packing.clock import REORDERED_FRAMES, Clock, in_order, is_steady
from pipeline.packing.rates import closest_rate, exact_rate, moving_rate

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("measured", "stated", "meant"),
    [
        (Fraction("29.9"), NTSC, NTSC),  # 0.24 % less
        (Fraction("30.1"), NTSC, NTSC),
        (Fraction("29.8"), NTSC, Fraction("29.8")),
        (Fraction("30.2"), NTSC, Fraction("30.2")),
        (Fraction(25), None, Fraction(25)),
        (Fraction(123456, 10001), None, Fraction(123456, 10001).limit_denominator(1001)),
        (Fraction(1, 5000), None, Fraction(1, 5000)),  # less than any fraction of so small a denominator
    ],
)
def test_a_stated_rate_counts_where_the_measured_one_is_near(measured, stated, meant):
    assert closest_rate(measured, stated) == meant


def test_rates_of_television_are_exact_and_others_stay_as_they_are():
    named = {29.97: 30000, 23.976: 24000, 59.94: 60000, 14.985: 15000}
    assert all(exact_rate(fps) == Fraction(above, 1001) for fps, above in named.items())
    for fps in (Fraction(1, 2), Fraction(25), Fraction(25, 2), Fraction("29.9"), Fraction(24), Fraction(30)):
        assert exact_rate(float(fps)) == fps


def test_the_rate_of_what_moves_is_that_of_the_densest_frames():
    pairs = [time for start in range(10) for time in (start, start + 0.01)]  # two frames at once, each second
    assert moving_rate(pairs, None) == 2
    burst = [number / 30 for number in range(31)] + [20.0, 40.0]  # a second of 30, then stills
    assert moving_rate(burst, None) == 30
    assert moving_rate(burst, NTSC) == NTSC and moving_rate(burst, Fraction(50)) == 30
    assert moving_rate([0.0, 0.0, 0.0], None) == 1000  # at most


def test_stamps_that_decoders_swap_are_put_in_order_and_frames_stay():
    stamps = [0, 3, 1, 2, 4, 5, *range(9, 5, -1), *range(10, 60)]
    found = list(in_order((Fraction(stamp), number) for number, stamp in enumerate(stamps)))
    assert found == [(Fraction(number), number) for number in range(60)]
    taken = iter(range(60))
    next(in_order((Fraction(number), number) for number in taken))
    assert next(taken) == REORDERED_FRAMES + 1  # no more are held


def test_the_last_frame_lasts_as_stated_or_as_the_one_before_or_as_the_header_says():
    def end(stated, *frames):
        clock = Clock(stated)
        for time, shown in frames:
            clock.add(Fraction(time), Fraction(shown))
        return clock.end

    assert end(None, (0, 0), (1, Fraction(1, 4))) == Fraction(5, 4)
    assert end(Fraction(10), (0, 0), (2, 0)) == 4
    assert end(Fraction(10), (0, 0)) == Fraction(1, 10) and end(None, (0, 0)) == Fraction(1, 25)


def test_the_stated_rate_is_taken_only_of_frames_that_come_evenly():
    steady, uneven = Clock(NTSC), Clock(NTSC)
    for number in range(1000):
        steady.add(Fraction(round(1000 * number / NTSC), 1000), Fraction(0))
        uneven.add((number + 2 * (number > 500)) / NTSC, Fraction(0))
    assert steady.rate() == NTSC and is_steady(steady.times, NTSC)
    assert not is_steady(uneven.times, NTSC)
    assert uneven.rate() == (NTSC * 999 / 1001).limit_denominator(1001)  # 0.2 % less
    assert uneven.longest() == (pytest.approx(float(500 / NTSC)), pytest.approx(float(3 / NTSC)))
    single = Clock(None)
    single.add(Fraction(0), Fraction(1, 10))
    assert single.rate() == 10 and single.longest() == (0.0, 0.0)
