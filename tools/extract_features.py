"""`leantad extract-features`: encodes a data set once, so that detectors train on features in a fraction of
the time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.dataset import Dataset
from pipeline.lock import writing_file
from pipeline.text import counted
from train.cli import (
    PATH,
    Command,
    Output,
    check_new,
    check_new_file,
    force_option,
    output_options,
    trust_option,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.features.records import FeatureVideo
    from pipeline.features.writer import Precision
    from pipeline.records import PackedVideo
    from tools.features.extraction import FeatureEncoder
    from tools.features.parts import Parts


@dataclass(frozen=True)
class ExtractionOptions:
    """The options of the command, but for --quiet and --json."""

    videos: tuple[str, ...]
    recipe: Path | None
    checkpoint: Path | None
    shards: str | None
    out: Path
    precision: Precision
    overrides: tuple[str, ...]
    force: bool
    trust: bool


def load_encoder(options: ExtractionOptions) -> FeatureEncoder:
    """The encoder that the options name; ValueError unless they name one."""
    from tools.features.extraction import encoder_of_recipe, encoder_of_run

    given = [*options.overrides, *([f"data.shards={options.shards}"] if options.shards else [])]
    if (options.recipe is None) is (options.checkpoint is None):
        raise ValueError(
            "want --checkpoint (a trained run) or --recipe (pretrained weights), and not both: one names the "
            "encoder"
        )
    if options.recipe is not None:
        return encoder_of_recipe(options.recipe, given, trust=options.trust)
    assert options.checkpoint is not None
    if not (options.trust or options.videos or options.checkpoint.is_file()):
        from train.checkpoint import settings_file
        from train.settings import check_trust

        where = settings_file(options.checkpoint)
        check_trust(where, given, only=["data.shards"], option="--shards DATA")
    return encoder_of_run(options.checkpoint, given)


@dataclass(frozen=True)
class Extraction:
    """A data set, the encoder that its videos go through, and where the features go."""

    encoder: FeatureEncoder
    dataset: Dataset
    out: Path
    precision: Precision

    def videos(self) -> list[PackedVideo]:
        """Those that have frames, by key; ValueError if there are none."""
        found = [video for _, video in sorted(self.dataset.videos.items()) if video.reject is None]
        if not found:
            raise ValueError(f"{self.dataset.folder}: no packed video in it, so there is nothing to encode")
        return found

    def settings(self) -> dict[str, Any]:
        """What made the features, as the file states it."""
        return self.encoder.made_with(self.dataset.packing, self.precision)

    def parts(self, *, force: bool) -> Parts:
        """What is finished already, with the same encoder, of the same clips of the same videos."""
        from pipeline.files import sha256_of
        from tools.features.parts import Parts

        clips = ((video, self.encoder.clips_of(video).count) for video in self.videos())
        videos = sha256_of("\n".join(f"{video.key} {video.sha256} {count}" for video, count in clips))
        return Parts(self.out, {**self.settings(), "videos": videos}, force=force)

    def encode(self, parts: Parts, output: Output) -> None:
        """Encode the videos that are not finished. ValueError naming the first that cannot be."""
        from pipeline.features.writer import as_stored
        from tools.features.extraction import VideoEncoder

        videos = self.videos()
        left = [video for video in videos if not parts.has(video.key)]
        if len(left) < len(videos):
            output.remark(
                f"{parts.folder}: {len(videos) - len(left)} of {len(videos)} videos are encoded already"
            )
        encoded = VideoEncoder(self.encoder, self.dataset, left).features()
        for video, features in output.progress(encoded, "encoding", unit="video", total=len(left)):
            try:
                parts.add(video, as_stored(features, self.precision))
            except ValueError as error:
                raise ValueError(f"video {video.name}: {error}") from None

    def write(self, parts: Parts) -> tuple[int, int]:
        """Write the feature file from the finished videos; returns channels, and feature steps of a clip."""
        from pipeline.features.writer import write_features
        from tools.features.extraction import entry_of, rejected_entry

        def entries() -> Iterator[tuple[FeatureVideo, NDArray[Any] | None]]:
            for key, video in sorted(self.dataset.videos.items()):
                if video.reject is not None:
                    yield rejected_entry(video), None
                else:
                    features = parts.read(key)
                    yield entry_of(video, self.encoder.clips_of(video), len(features)), features

        first = self.videos()[0]
        num_steps, num_features = parts.read(first.key).shape
        write_features(
            self.out,
            entries(),
            classes=self.dataset.classes,
            num_features=num_features,
            settings=self.settings(),
            precision=self.precision,
        )
        return num_features, num_steps // self.encoder.clips_of(first).count


def extract_files(options: ExtractionOptions, output: Output) -> dict[str, Any]:
    """Encode video files and write their features; returns what --json prints.

    ValueError, and no file, if none of them could be used.
    """
    from pipeline.features.writer import write_features
    from pipeline.packing.prepare import find_videos
    from tools.features.files import encode_files

    files, rejected = find_videos(options.videos), dict[str, str]()
    with output.others_on_stderr():
        encoder = load_encoder(options)

    def entries() -> Iterator[tuple[FeatureVideo, NDArray[Any] | None]]:
        encoded = encode_files(encoder, files)
        for video, features in output.progress(encoded, "encoding", unit="video", total=len(files)):
            if video.reject is not None:
                rejected[video.source] = video.reject
                output.error(f"{files[video.source]}: {video.reject}")
            yield video, features
        if len(rejected) == len(files):
            raise ValueError(f"{options.out}: not written, as none of the {len(files)} files could be read")

    packing = (encoder.trained and encoder.trained.packing) or {}
    width = encoder.network.encoder.num_features
    write_features(
        options.out,
        entries(),
        classes=(),
        num_features=width,
        settings=encoder.made_with(packing, options.precision),
        precision=options.precision,
    )
    output.say(f"{options.out}: {counted(len(files) - len(rejected), 'video')}, features of width {width}")
    output.say(f"detect in them with leantad predict {options.out} --checkpoint RUN, a run on such features")
    return {"out": options.out, "videos": len(files) - len(rejected), "rejected": rejected}


def extract(options: ExtractionOptions, output: Output) -> dict[str, Any]:
    """Encode what is not encoded yet, then write the feature file; returns what --json prints."""
    with output.others_on_stderr():
        encoder = load_encoder(options)
    shards = encoder.settings.data.shards
    if not shards:
        raise ValueError(f"{options.checkpoint}: is a model without a data set; name yours with --shards")
    work = Extraction(encoder, Dataset.open(shards), options.out, options.precision)
    parts = work.parts(force=options.force)
    work.encode(parts, output)
    num_features, steps_per_clip = work.write(parts)
    parts.remove()
    videos, size = work.videos(), options.out.stat().st_size
    steps = encoder.settings.data.num_clips * steps_per_clip
    output.say(
        f"{options.out}: {counted(len(videos), 'video')}, features of width {num_features}, "
        f"{size / 1e6:.1f} MB"
    )
    given = {"data.shards": options.out, "data.num_features": num_features, "data.num_clips": steps}
    given |= {"encoder.weights": "null"} if encoder.settings.encoder.weights else {}
    output.say(f"train on them with {' '.join(f'--set {name}={value}' for name, value in given.items())}")
    rejected = len(work.dataset.videos) - len(videos)
    return {
        "out": options.out,
        "bytes": size,
        "videos": len(videos),
        "rejected": rejected,
        "num_features": num_features,
        "steps_per_window": steps,
        "settings": work.settings(),
    }


EPILOG = """
\b
Examples:
  leantad extract-features --checkpoint runs/demo --out demo.h5
  leantad extract-features --recipe own_videos_i3d --shards data/mine --out mine.h5
  leantad extract-features match.mp4 recordings/ --checkpoint runs/demo --out new.h5
"""


@click.command(cls=Command, epilog=EPILOG, interrupted="the same command goes on with the next video")
@click.argument("videos", nargs=-1, metavar="[VIDEO]...")
@click.option("--checkpoint", type=PATH, help="Run (its best), checkpoint or model file: its encoder.")
@click.option("--recipe", type=PATH, help="Recipe with pretrained encoder.weights, instead of a run.")
@click.option("--shards", help="Data set to encode. Default: that of the run, or recipe.")
@click.option("--out", type=PATH, required=True, help="Feature file to write (.h5).")
@click.option(
    "--precision",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    help="Numbers that are stored.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@force_option
@trust_option
@output_options
@click.pass_context
def main(ctx: click.Context, /, output: Output, **values: Any) -> None:
    """Encode all videos of a data set once, or VIDEO files, and write their features into one file.

    Detectors train on such a file with data.num_features, without encoder and videos, in a fraction of the
    time; see docs/features.md. The clips are those that a run with the same settings sees. What is finished
    is kept in OUT.parts, where the next call goes on; OUT appears when it is whole.
    """
    options = ExtractionOptions(**values)
    if options.out.suffix != ".h5":
        raise ValueError(f"--out {options.out}: want a name that ends in .h5")
    if options.videos and (options.shards or not options.checkpoint):
        raise ValueError("VIDEO: want --checkpoint with it, whose packing is theirs, too, and no --shards")
    check_new_file(options.out, force=options.force)
    with writing_file(options.out, "extract-features"):
        check_new(options.out, force=options.force)
        document = (extract_files if options.videos else extract)(options, output)
        output.document(document)
    ctx.exit(1 if options.videos and document["rejected"] else 0)


if __name__ == "__main__":
    main()
