"""Views (crop, flip, colours): replayable, one for all frames of a video, and the pixels they promise."""

import numpy as np
import pytest
import torch

from pipeline.augment import (
    CENTRE,
    Colour,
    View,
    Zoom,
    apply_view,
    blur_kernel,
    draw_view,
    resized_size,
    zoomed_size,
)

WINDOW = (0.0, 12.5)


def draw(seed=0, epoch=0, key="a", window=WINDOW, flip=0.5, random_crop=True, color=0.4, **more):
    return draw_view(seed, epoch, key, window, flip=flip, random_crop=random_crop, color=color, **more)


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_view_is_replayable_and_depends_on_each_part_of_the_sample():
    assert draw() == draw()
    views = [draw(), draw(seed=1), draw(epoch=1), draw(key="b"), draw(window=(0.0, 12.6))]
    assert len(set(views)) == len(views)


def test_views_spread_over_the_range_they_promise():
    views = [draw(key=str(i), flip=0.25) for i in range(2000)]
    crops = np.array([(view.crop_x, view.crop_y) for view in views])
    assert crops.min() >= 0 and crops.max() < 1
    # means of 2000 draws: 0.5 +- 0.0065 and 0.25 +- 0.01 (one standard deviation); 5 of them are allowed
    assert np.allclose(crops.mean(0), 0.5, atol=0.033)
    assert abs(np.mean([view.flip for view in views]) - 0.25) < 0.05
    factors = np.array(
        [(view.colour.brightness, view.colour.contrast, view.colour.saturation) for view in views]
    )
    assert factors.min() >= 0.6 and factors.max() <= 1.4 and np.ptp(factors) > 0.7


def test_augmentation_that_is_switched_off_is_the_centre():
    assert draw(flip=0.0, random_crop=False, color=0.0) == CENTRE


@pytest.mark.parametrize(
    ("height", "width", "want"), [(240, 320, (128, 171)), (320, 240, (171, 128)), (64, 64, (128, 128))]
)
def test_the_short_side_becomes_resize(height, width, want):
    assert resized_size(height, width, 128) == want


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (128, 171)])
def test_two_numbers_are_width_and_height_whatever_the_shape(height, width):
    assert resized_size(height, width, (171, 128)) == (128, 171)
    frames = noise(1, height, width, 3)
    whole = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2), size=(128, 171), mode="bilinear", antialias=True
    )
    assert torch.equal(apply_view(frames, CENTRE, resize=(171, 128), crop=112), whole[..., 8:120, 30:142])


def test_without_a_resize_the_pixels_are_the_source():
    frames = noise(3, 12, 16, 3)
    assert torch.equal(
        apply_view(frames, CENTRE, resize=12, crop=8), frames[:, 2:10, 4:12].permute(0, 3, 1, 2)
    )
    corner = apply_view(frames, View(crop_x=1.0, crop_y=0.0, flip=True), resize=12, crop=8)
    assert torch.equal(corner, frames[:, 0:8, 8:16].flip(2).permute(0, 3, 1, 2))


def test_reducing_averages_all_pixels_instead_of_skipping_some():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, 1::4] = stripes[:, :, 2::4] = 255  # the two columns that plain bilinear would use
    small = apply_view(stripes, CENTRE, resize=16, crop=16).float()
    # antialiased: grey, but for the outermost columns whose kernel is cut; without it white
    assert (small[..., 1:-1] - 127.5).abs().max() <= 1


def test_a_view_is_the_same_for_every_frame():
    frame = noise(1, 20, 24, 3)
    view = draw()
    images = apply_view(frame.expand(70, -1, -1, -1), view, resize=16, crop=12)  # more than one chunk of 64
    assert torch.equal(images, apply_view(frame, view, resize=16, crop=12).expand(70, -1, -1, -1))


def test_colour_follows_its_definition():
    frames = noise(2, 8, 8, 3)
    colour = Colour(brightness=1.2, contrast=0.7, saturation=0.5)
    got = apply_view(frames, View(colour=colour), resize=8, crop=8)
    x = frames.permute(0, 3, 1, 2).double() * 1.2
    x = (x - 127.5) * 0.7 + 127.5
    grey = (x * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1, keepdim=True)
    x = grey + (x - grey) * 0.5
    # float32 against float64: a value on the edge of .5 may round the other way
    assert (got.double() - x.round().clamp(0, 255)).abs().max() <= 1
    same = apply_view(frames, View(colour=Colour(1.0, 1.0, 1.0)), resize=8, crop=8)
    assert torch.equal(same, frames.permute(0, 3, 1, 2))


@pytest.mark.gpu
def test_the_gpu_resizes_to_the_same_pixels():
    frames = noise(70, 90, 120, 3)
    view = View(0.2, 0.7, True, Colour(1.1, 0.9, 1.2))
    here = apply_view(frames, view, resize=48, crop=40).int()
    there = apply_view(frames.cuda(), view, resize=48, crop=40).cpu().int()
    # the CPU's resize kernel computes in 8-bit fixed point, within 1 of float32; colour factors can make it 2
    assert (here - there).abs().max() <= 2


def test_zooms_and_blurs_spread_over_what_is_allowed_and_leave_the_rest_of_the_view_alone():
    views = [draw(key=str(i), least_area=0.2, blur=2.0) for i in range(1000)]
    areas, aspects = np.array([(view.zoom.area, view.zoom.aspect) for view in views]).T
    blurs = np.array([view.blur for view in views])
    assert areas.min() >= 0.2 and areas.max() <= 1 and abs(areas.mean() - 0.6) < 0.04  # 5 standard errors
    assert aspects.min() >= 0.75 and aspects.max() <= 4 / 3 and abs(np.log(aspects).mean()) < 0.03
    assert blurs.min() < 0.02 and 1.98 < blurs.max() <= 2
    for i, view in enumerate(views[:20]):
        plain = draw(key=str(i))
        assert (plain.crop_x, plain.flip, plain.colour) == (view.crop_x, view.flip, view.colour)
        assert plain.zoom is None and plain.blur == 0


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (9, 200)])
def test_a_zoomed_part_fits_and_has_its_area_where_that_is_possible(size):
    for aspect in (0.75, 1.0, 4 / 3):
        for area in (0.08, 0.5, 1.0):
            height, width = zoomed_size(*size, Zoom(area, aspect))
            assert 1 <= height <= size[0] and 1 <= width <= size[1]
            if min(size) > 100 and area <= 0.5:
                assert height * width == pytest.approx(area * size[0] * size[1], rel=0.02)  # rounded sides
                assert width / height == pytest.approx(aspect, rel=0.02)


def test_a_zoomed_part_is_cut_where_the_view_says_and_resized_to_the_square():
    frames = noise(2, 40, 60, 3)
    view = View(crop_x=1.0, crop_y=0.0, zoom=Zoom(20 * 20 / (40 * 60), 1.0))
    assert torch.equal(apply_view(frames, view, resize=36, crop=20), frames[:, :20, 40:].permute(0, 3, 1, 2))
    small = apply_view(frames, view, resize=36, crop=10)
    part = frames[:, :20, 40:].permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(part, size=(10, 10), mode="bilinear", antialias=True)
    assert torch.equal(small, want)


@pytest.mark.parametrize(("size", "part"), [((40, 60), (40, 53)), ((60, 40), (30, 40))])
def test_a_zoomed_part_that_does_not_fit_has_the_height_or_the_width_of_the_picture(size, part):
    frames = noise(1, *size, 3)
    small = apply_view(frames, View(crop_x=0.0, crop_y=1.0, zoom=Zoom(1.0, 4 / 3)), resize=36, crop=10)
    cut = frames[:, size[0] - part[0] :, : part[1]].permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(cut, size=(10, 10), mode="bilinear", antialias=True)
    assert torch.equal(small, want)


def test_a_blur_is_the_gaussian_mean_of_each_neighbourhood_and_keeps_a_flat_picture():
    frames, sigma = noise(1, 12, 12, 3), 0.8
    blurred = apply_view(frames, View(blur=sigma), resize=12, crop=12)[0]
    kernel, pixels = blur_kernel(sigma).double(), frames[0].permute(2, 0, 1).double()
    radius = len(kernel) // 2
    for y, x in ((0, 0), (5, 7), (11, 3)):
        rows = [min(max(y + d, 0), 11) for d in range(-radius, radius + 1)]
        columns = [min(max(x + d, 0), 11) for d in range(-radius, radius + 1)]
        want = kernel @ pixels[:, rows][:, :, columns] @ kernel
        assert (blurred[:, y, x] - want).abs().max() <= 0.51  # rounded to a whole number
    flat = torch.full((70, 9, 9, 3), 77, dtype=torch.uint8)
    assert (apply_view(flat, View(blur=3.0), resize=9, crop=9) == 77).all()
    assert torch.equal(apply_view(frames, View(blur=0.05), resize=12, crop=12)[0], pixels.byte())
