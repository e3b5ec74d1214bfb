"""Containers: the right stream of a file, and packets that come out of a new file as they went in."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from av.stream import Disposition
from painted_video import painted, painted_video

from pipeline.container import mux_packets, open_video


def video_with_cover() -> bytes:
    """An mp4 of ten frames with a cover picture, as music and lecture files have one."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        cover, video = output.add_stream("mjpeg", rate=1), output.add_stream("libx264", rate=25)
        cover.disposition = Disposition.attached_pic
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        for stream, count in ((cover, 1), (video, 10)):
            for number in range(count):
                picture = av.VideoFrame.from_ndarray(painted(number, 64, 64), format="rgb24")
                output.mux(stream.encode(picture.reformat(format=stream.pix_fmt, threads=1)))
            output.mux(stream.encode())
    return buffer.getvalue()


def test_a_cover_picture_is_not_the_video():
    with open_video(video_with_cover()) as (container, stream):
        assert len(container.streams.video) == 2
        assert stream.codec_context.name == "h264"
        assert sum(packet.size > 0 for packet in container.demux(stream)) == 10


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a readable video"), open_video(b"no video at all" * 100):
        pass
    (tmp_path / "text.mp4").write_text("a letter" * 100)
    with pytest.raises(ValueError, match="not a readable video"), open_video(tmp_path / "text.mp4"):
        pass


def test_muxed_packets_keep_their_bytes_and_are_evenly_spaced():
    with open_video(painted_video(20, gop=8)) as (container, stream):
        packets = [(bytes(packet), packet.is_keyframe) for packet in container.demux(stream) if packet.size]
        data = mux_packets(stream, packets[8:], ticks=512)  # at 12,800 ticks a second
    with open_video(data) as (container, stream):
        muxed = [packet for packet in container.demux(stream) if packet.size]
        assert [(bytes(packet), packet.is_keyframe) for packet in muxed] == packets[8:]
        assert np.diff([packet.pts for packet in muxed]).tolist() == [40] * 11  # Matroska's milliseconds
