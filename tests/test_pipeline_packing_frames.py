"""What cannot be decoded: dropped before the first good frame, an end after the last, damage in between."""

from __future__ import annotations

import av
import pytest
from ffmpeg import follow
from odd_video import FPS, GOP, KINDS, packet_bytes, remuxed, scratched, shown, video

from pipeline.packing.probe import Unreadable, probe

# AV1's packets cannot be muxed again, pictures of MJPEG lean on no other, VP8 decodes on from what it has.
CUT = [kind for kind in KINDS if kind[0] not in ("libsvtav1", "mjpeg", "libvpx")]
CUT.remove(("mpeg2video", "mxf"))  # its index then names times that no packet has
# Formats that say when they end too early: by an index, the size of a packet, or (FLV: by a second) their
# length.
TELLING = [kind for kind in KINDS if kind[1] not in ("mpegts", "vob", "asf")]
# Decoders that notice inverted bytes; MPEG-2, VP9 and, in small frames, HEVC show wrong pictures without a
# word.
NOTICING = [kind for kind in KINDS if kind[0] in ("libx264", "libx265", "mpeg4", "mjpeg", "libsvtav1")]


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container"), KINDS)
def test_a_whole_video_has_its_frames_at_their_times_and_no_remark(tmp_path, codec, container):
    frames, remarks = shown(video(tmp_path, codec, container), strict=True)
    assert [number for _, number in frames] == list(range(72)) and remarks == {}
    assert [time for time, _ in frames] == pytest.approx([number / FPS for number in range(72)])


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container"), CUT)
def test_a_stream_cut_behind_its_key_frame_begins_at_the_next_one(tmp_path, codec, container):
    data = remuxed(video(tmp_path, codec, container), container, skip=5)
    frames, remarks = shown(data)
    assert [number for _, number in frames] == list(range(GOP, 72))
    first = frames[0][0]
    assert [time for time, _ in frames] == pytest.approx([first + k / FPS for k in range(72 - GOP)])
    # Its first frames were 4 to 7, by the codec's order; AVI counts those cut off, too, and one more.
    assert (GOP - 7) / FPS - 1e-9 <= first <= (GOP + (container == "avi")) / FPS + 1e-9
    assert remarks["leading"].split()[0] in ("17", "18", "19")
    with pytest.raises(Unreadable, match="frames before the first good one cannot be decoded"):
        probe(data, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_an_open_group_begins_at_its_key_frame_without_those_that_lean_on_the_one_before(
    tmp_path, codec, container
):
    options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0"}
    if codec == "libx265":
        options = {"x265-params": "log-level=none:open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
    data = video(tmp_path, codec, container, **options)
    with av.open(str(tmp_path / "made.bin")) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        cut = next(k for k in keys[1:] if packets[k + 1].pts < packets[k].pts)  # B-frames shown before it
        leading = sum(packet.pts < packets[cut].pts for packet in packets[cut + 1 :])
        number = round((packets[cut].pts - packets[0].pts) * packets[0].time_base * FPS)
    frames, remarks = shown(remuxed(data, container, skip=cut))
    assert [shown_number for _, shown_number in frames] == list(range(number, 72))
    steps = [after - before for (before, _), (after, _) in zip(frames, frames[1:], strict=False)]
    assert steps == pytest.approx([1 / FPS] * len(steps), abs=2e-3)  # Matroska counts milliseconds
    assert remarks["leading"].split()[0] == str(leading)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container"), NOTICING)
def test_a_damaged_first_key_frame_makes_the_video_begin_at_the_second(tmp_path, codec, container):
    data = video(tmp_path, codec, container)
    start, end = packet_bytes(data, 0)
    frames, remarks = shown(scratched(data, start + (end - start) // 3, end - 8))
    first = 1 if codec == "mjpeg" else GOP
    assert [number for _, number in frames] == list(range(first, 72))
    assert frames[0][0] == (0.0 if codec == "mjpeg" else GOP / FPS) and remarks["leading"].startswith(
        f"{first} "
    )


@pytest.mark.slow
@pytest.mark.parametrize("packet", [40, 69])
@pytest.mark.parametrize(("codec", "container"), KINDS)
def test_of_a_file_that_breaks_off_all_is_kept_that_decodes(tmp_path, codec, container, packet):
    data = video(tmp_path, codec, container)
    cut = data[: packet_bytes(data, packet)[1] - 4]
    frames, remarks = shown(cut)
    numbers = [number for _, number in frames]
    # B-frames that come after the last picture in the file are gone, so there is a gap before it; VOB and ASF
    # are cut in parts of several frames.
    assert numbers[:-3] == list(range(len(numbers) - 3)) and numbers[-1] - len(numbers) <= 2
    assert packet - 3 <= numbers[-1] <= packet + 2 or container in ("vob", "asf")
    metadata = probe(cut)
    # formats without time stamps show the last picture where the missing ones would be
    assert float(metadata.duration) == pytest.approx((numbers[-1] + 1) / FPS, abs=2 / FPS + 1e-9)
    if (codec, container) in TELLING and (container != "flv" or packet == 40):
        assert f"{len(numbers)} frames" in remarks["ending"] and "are kept" in remarks["ending"]
        with pytest.raises(Unreadable, match=rf"decoded {len(numbers)} frames"):
            probe(cut, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "container"), NOTICING)
def test_a_file_that_ends_in_zeros_is_kept_up_to_them(tmp_path, codec, container):
    data = video(tmp_path, codec, container)
    length = int(len(data) * 0.8)
    frames, _ = shown(data[:length] + bytes(len(data) - length))
    numbers = [number for _, number in frames]
    assert len(numbers) > 20 and numbers[:-2] == list(range(len(numbers) - 2))
    assert float(probe(data[:length] + bytes(len(data) - length)).duration) < 72 / FPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "container"), [kind for kind in NOTICING if kind[0] != "libx265" and kind[1] != "mpegts"]
)
def test_damage_in_the_middle_is_refused_and_the_way_out_works(tmp_path, codec, container):
    data = video(tmp_path, codec, container)
    start, end = packet_bytes(data, GOP)  # the second key frame
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(scratched(data, start + (end - start) // 2, end - 4))
    for strict in (False, True):
        with pytest.raises(
            Unreadable, match=r"decoded \d+ frames .*; more follows, so re-encode it"
        ) as error:
            probe(damaged, strict=strict)
    repaired = follow(str(error.value), damaged, tmp_path / "repaired.mp4")
    metadata = probe(repaired)
    # of AVI's made-up times ffmpeg leaves out those that go back
    assert metadata.num_frames >= 45 and 2.6 < metadata.duration < 3.1 and not metadata.remarks


def test_a_file_of_which_nothing_decodes_is_refused_with_the_first_reason(tmp_path):
    data = video(tmp_path, stamps=range(10))
    start, end = packet_bytes(data, 0)
    with pytest.raises(Unreadable, match=r"Invalid data found .* \(h264\)"):
        probe(scratched(data, start, len(data)))
