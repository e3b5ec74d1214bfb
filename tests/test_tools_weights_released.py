"""Whole detectors of other projects become checkpoints; what is not whole is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import golden_authors
import golden_etad
import golden_opentad
import numpy as np
import opentad_etad
import pytest
import torch
from commands import call, refused
from safetensors.torch import load_file
from torch import Tensor
from untrained_run import write_videos

from model.backbones import build_backbone
from model.detector.build import build_detector
from model.detector.proposals import candidate_proposals
from model.detector.settings import DetectorSettings
from tools.convert_weights import main
from tools.import_features import main as import_features
from tools.make_shards import main as make_shards
from tools.predict import main as predict
from tools.weights import shapes
from tools.weights.class_names import read_class_names
from tools.weights.families import family_of, split
from tools.weights.released import ConvertedDetector, class_names, convert_detector
from train.eval import main as evaluate
from train.inference import load_trained

# Lists of whole checkpoints -> family, backbone, reversible, recipe
WHOLE = {
    "etad_e2e_anet_r2plus1d": ("etad", "r2plus1d_34", False, "activitynet_etad_paper"),
    "opentad_etad_e2e_anet_r2plus1d": (
        "opentad-etad", "r2plus1d_34", False, "activitynet_etad_opentad"
    ),
    "opentad_plain_thumos_slowfast101": (
        "opentad-actionformer", "slowfast_101_mmaction2", False, "thumos_re2tal_slowfast101"
    ),
    "opentad_plain_thumos_swin_tiny": (
        "opentad-actionformer", "video_swin_t", False, "thumos_re2tal_swin_t"
    ),
    "opentad_re2tal_anet_slowfast101": (
        "opentad-actionformer", "slowfast_101_mmaction2", True, "activitynet_re2tal_slowfast101"
    ),
    "opentad_re2tal_anet_swin_tiny": (
        "opentad-actionformer", "video_swin_t", True, "activitynet_re2tal_swin_t"
    ),
    "opentad_re2tal_thumos_slowfast101": (
        "opentad-actionformer", "slowfast_101_mmaction2", True, "thumos_re2tal_slowfast101"
    ),
    "opentad_re2tal_thumos_swin_tiny": (
        "opentad-actionformer", "video_swin_t", True, "thumos_re2tal_swin_t"
    ),
}  # fmt: skip
ON_FEATURES = {
    "actionformer_release_anet_tsp": ("actionformer", 512, 1),
    "actionformer_release_thumos_i3d": ("actionformer", 2048, 20),
    "etad_feature_anet_tsp": ("etad", 512, 1),
    "opentad_etad_anet_tsp": ("opentad-etad", 512, 1),
    "opentad_etad_thumos_i3d": ("opentad-etad", 2048, 1),
    "opentad_actionformer_anet_tsp": ("opentad-actionformer", 512, 1),
    "opentad_actionformer_thumos_i3d": ("opentad-actionformer", 2048, 20),
}
OTHERS = {"opentad_tridet_thumos_i3d": "TriDet's detector"}
SMALL_CLIPS = {"data.num_clips": 8, "data.clip_frames": 4, "data.resize": 18, "data.crop": 16}


def listed(
    shared_real: Path, name: str, *, prefix: str = "module.", device: str = "meta"
) -> dict[str, Tensor]:
    """The checkpoint of a list of names, shapes and dtypes, as saved."""
    keys = json.loads((shared_real / "golden" / "keys" / f"{name}.json").read_text())["keys"]
    rows = keys if isinstance(keys, list) else [(each, *entry) for each, entry in keys.items()]
    return {f"{prefix}{n}": torch.empty(s, dtype=getattr(torch, d), device=device) for n, s, d in rows}


def converted(weights: dict[str, Tensor], **options: object) -> ConvertedDetector:
    family = family_of(weights)
    assert family is not None
    with torch.device("meta"):
        return convert_detector(weights, family, **options)


def test_every_list_of_whole_checkpoints_is_known_here(shared_real):
    found = {path.stem for path in (shared_real / "golden" / "keys").glob("*.json")}
    assert found == {*WHOLE, *ON_FEATURES, *OTHERS}


# The others differ from these in one thing each; they take seconds.
QUICK = (
    "opentad_re2tal_thumos_swin_tiny",
    "opentad_re2tal_anet_slowfast101",
    "opentad_etad_e2e_anet_r2plus1d",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.ci) for name in WHOLE]
)
def test_every_tensor_of_a_whole_detector_finds_its_place(name, shared_real):
    family, backbone, reversible, recipe = WHOLE[name]
    weights = listed(shared_real, name, prefix="" if name.startswith("etad") else "module.")
    classes = [f"class{number}" for number in range(20)] if "thumos" in name else None
    found = converted(weights, classes=classes)
    assert (found.family.name, found.encoder.backbone, found.recipe) == (family, backbone, recipe)
    assert found.settings.encoder.reversible == reversible
    assert found.settings.encoder.beta.end == 1 and not found.settings.encoder.leapfrog
    assert len(found.classes) == (20 if classes else 1)
    # Scales of levels are one tensor each there, one vector here; ours counts matched points in any case.
    left_out = {each for each in weights if each.endswith("relative_position_index")}
    scales = sum(bool(re.search(r"scale\.\d+\.scale$", each)) for each in weights)
    assert len(found.state) == len(weights) - len(left_out) - max(0, scales - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_detector_on_features_needs_no_encoder(name, shared_real):
    family, num_features, num_classes = ON_FEATURES[name]
    weights = listed(shared_real, name)
    found = family_of(weights)
    assert found is not None and found.name == family
    names = [f"class{number}" for number in range(num_classes)]
    whole = converted(weights, classes=names)
    assert whole.encoder is None and whole.settings.data.num_features == num_features
    assert len(whole.classes) == num_classes
    assert {name.partition(".")[0] for name in whole.state} == {"detector"}


@pytest.mark.parametrize("name", OTHERS)
def test_a_detector_that_has_no_network_here_is_named_and_refused(name, shared_real, tmp_path):
    weights = {n: torch.zeros(1) for n in listed(shared_real, name)}
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    message = refused(main, tmp_path / "a.pth", "--out", tmp_path / "out")
    assert OTHERS[name] in message and "--encoder-only" in message
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ ETAD's, small, end to end


def small_etad(shared_real: Path) -> dict[str, Tensor]:
    """ETAD's golden detector, which takes 64 features, behind an encoder that gives 64; names as released."""
    heads = load_file(shared_real / "golden" / "etad_quarter" / "weights.safetensors")
    torch.manual_seed(3)
    encoder = build_backbone("r2plus1d_tiny").state_dict()
    weights = {f"feature_extractor.model.backbone.{name}": tensor for name, tensor in encoder.items()}
    return weights | {f"base_detector.{name}": tensor for name, tensor in heads.items()}


@pytest.fixture(scope="module")
def etad(shared_real, tmp_path_factory) -> Path:
    """The folder that such a checkpoint becomes."""
    folder = tmp_path_factory.mktemp("etad")
    torch.save({"epoch": 5, "state_dict": small_etad(shared_real)}, folder / "epoch_5.pth.tar")
    sets = [part for key, value in SMALL_CLIPS.items() for part in ("--set", f"{key}={value}")]
    options = ("--backbone", "r2plus1d_tiny", "--recipe", "activitynet_etad_paper", *sets)
    result = call(main, folder / "epoch_5.pth.tar", *options, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    assert "none left over" in result.output and "128 steps" in result.output
    return folder / "out"


@pytest.mark.slow
def test_etads_golden_outputs_come_out_of_the_converted_checkpoint(etad, shared_real):
    reference = golden_etad.read(shared_real / "golden" / "etad_quarter")
    detector = load_trained(etad, ["detector.num_steps=128", "run.device=cpu"]).network.detector
    state = reference.detector.state_dict()
    assert detector.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state_dict().items())
    fixture = golden_etad.Fixture(reference.meta, reference.data, detector)
    outputs = golden_etad.outputs_of(fixture, torch.float32)
    checks = list(golden_etad.output_checks(fixture, outputs))
    assert len(checks) == 14 and all(check.passed for check in checks)


@pytest.mark.slow
def test_predict_and_eval_take_the_converted_checkpoint_alike(etad, tmp_path):
    videos = write_videos(tmp_path)
    rows = ["video,start,end,label,subset", "first,0.5,1.5,run,validation", "second,,,,validation", ""]
    (tmp_path / "own.csv").write_text("\n".join(rows))
    packing = ("--fps", 15, "--short-side", 256, "--quiet")
    packed = call(make_shards, videos, tmp_path / "own.csv", "--out", tmp_path / "shards", *packing)
    assert packed.exit_code == 0, packed.output
    values = ("run.device=cpu", "detector.num_steps=32", "optimizer.batch_size=1")  # as predict has it
    small = [part for value in values for part in ("--set", value)]
    out = ("--out", tmp_path / "e.json")
    done = call(evaluate, "--checkpoint", etad, "--shards", tmp_path / "shards", *out, *small)
    assert done.exit_code == 0, done.output
    files = (videos / "first.mkv", videos / "second.webm")
    done = call(predict, *files, "--checkpoint", etad, "--out", tmp_path / "found", *small)
    assert done.exit_code == 0, done.output
    evaluated = json.loads((tmp_path / "e.json").read_text())["results"]
    predicted = json.loads((tmp_path / "found" / "detections.json").read_text())["results"]
    assert set(evaluated) == set(predicted) == {"first", "second"} and evaluated["first"]
    for name, detections in evaluated.items():
        assert [each["segment"] for each in predicted[name]] == [each["segment"] for each in detections]


@pytest.mark.slow
def test_a_detector_on_features_predicts_and_evaluates_in_a_feature_file(shared_real, tmp_path):
    heads = load_file(shared_real / "golden" / "etad_quarter" / "weights.safetensors")
    torch.save({"state_dict": {f"base_detector.{n}": t for n, t in heads.items()}}, tmp_path / "a.pth.tar")
    given = ("--recipe", "activitynet_tsp_features", "--set", "run.device=cpu")
    done = call(
        main, tmp_path / "a.pth.tar", *given, "--set", "detector.num_steps=32", "--out", tmp_path / "etad"
    )
    assert done.exit_code == 0 and "on features of width 64" in done.output, done.output
    (tmp_path / "features").mkdir()
    np.save(
        tmp_path / "features" / "v_one.npy", np.random.default_rng(0).standard_normal((40, 64), np.float32)
    )
    action = {"segment": [5, 20], "label": "run"}
    entry = {"subset": "validation", "duration": 44.0, "annotations": [action]}
    (tmp_path / "one.json").write_text(json.dumps({"database": {"one": entry}}))
    options = ("--stride", 16, "--fps", 15, "--out", tmp_path / "f.h5", "--quiet")
    done = call(import_features, tmp_path / "features", tmp_path / "one.json", *options)
    assert done.exit_code == 0, done.output
    done = call(predict, tmp_path / "f.h5", "--checkpoint", tmp_path / "etad", "--out", tmp_path / "found")
    assert done.exit_code == 0, done.output
    (tmp_path / "cuhk.json").write_text(
        json.dumps({"results": {"one": [0.2, 0.9]}, "class": ["jump", "run"]})
    )
    files = ("--shards", tmp_path / "f.h5", "--external-scores", tmp_path / "cuhk.json")
    done = call(evaluate, "--checkpoint", tmp_path / "etad", *files, "--out", tmp_path / "e.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "e.json").read_text())["results"]
    assert {each["label"] for each in next(iter(found.values()))} == {"jump", "run"}


@pytest.mark.slow
def test_a_detector_is_replaced_with_force_and_nothing_else_ever(etad, shared_real, tmp_path):
    checkpoint = etad.parent / "epoch_5.pth.tar"
    options = ("--backbone", "r2plus1d_tiny", "--recipe", "activitynet_etad_paper")
    assert "exists; --force replaces it" in refused(main, checkpoint, *options, "--out", etad)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    message = refused(main, checkpoint, *options, "--out", tmp_path / "mine", "--force")
    assert "holds something else" in message and (tmp_path / "mine" / "notes.txt").exists()
    assert "--encoder-only" in refused(main, checkpoint, *options, "--out", tmp_path / "a.safetensors")
    again = call(main, checkpoint, *options, "--out", tmp_path / "again")
    again = call(main, checkpoint, *options, "--out", tmp_path / "again", "--force")
    assert again.exit_code == 0 and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_the_encoder_of_a_whole_detector_can_be_had_alone(etad, tmp_path):
    options = ("--encoder-only", "--backbone", "r2plus1d_tiny", "--out", tmp_path / "e.safetensors")
    checkpoint = etad.parent / "epoch_5.pth.tar"
    result = call(main, checkpoint, *options)
    assert result.exit_code == 0, result.output
    encoder = load_file(tmp_path / "e.safetensors")
    whole = load_file(etad / "model.safetensors")
    assert all(torch.equal(tensor, whole[f"encoder.backbone.{name}"]) for name, tensor in encoder.items())
    assert "leave it out" in refused(main, checkpoint, *options, "--recipe", "thumos_etad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_detector.tem.2.bias": None}, "1 missing: detector.boundary.logits.bias"),
        ({"base_detector.stage_pem.2.iou_fc.6.bias": torch.zeros(3)}, "(3,), want (2,)"),
        ({"base_detector.stage_pem.0.reduce_dim_ext.0.weight": torch.zeros(3)}, "is (3,), want outputs x"),
        ({"base_detector.adapter.weight": torch.zeros(3)}, "does not have: 'base_detector.adapter.weight'"),
        (
            {"feature_extractor.model.backbone.layer9.weight": torch.zeros(3)},
            "1 unexpected ('layer9.weight')",
        ),
        (
            {"feature_extractor.model.backbone.layer1.0.conv1.0.0.weight": None},
            "1 tensors missing ('layer1.0.conv1.0.0.weight')",
        ),
    ],
)
def test_a_detector_that_is_not_whole_is_refused_by_the_name_of_the_tensor(change, message, shared_real):
    weights: dict[str, Tensor | None] = {**small_etad(shared_real), **change}
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        converted(kept, backbone="r2plus1d_tiny", recipe="activitynet_etad_paper")


def test_wrong_names_get_a_suggestion(etad, tmp_path):
    checkpoint, out = etad.parent / "epoch_5.pth.tar", ("--out", tmp_path / "out")
    message = refused(main, checkpoint, "--source", "opentad-actionformer", *out)
    assert "did you mean 'etad'?" in message
    message = refused(main, checkpoint, "--recipe", "activitynet_etad_papr", *out)
    assert "did you mean 'activitynet_etad_paper'?" in message
    message = refused(main, checkpoint, "--backbone", "r2plus1d_tiny", *out)
    assert "--recipe: none is known for etad with r2plus1d_tiny" in message
    torch.save(build_backbone("r2plus1d_tiny").state_dict(), tmp_path / "encoder.pth")
    assert "the file holds no detector" in refused(main, tmp_path / "encoder.pth", "--source", "etad", *out)


def test_class_names_are_read_in_the_order_of_the_scores(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffrun\n\njump \n", encoding="utf-8")
    assert read_class_names(tmp_path / "names.txt") == ["run", "jump"]
    actions = [{"label": "run", "label_id": 1}, {"label": "jump", "label_id": 0}]
    path = tmp_path / "thumos14.json"
    path.write_text(json.dumps({"database": {"v": {"annotations": actions}}}))
    assert read_class_names(path) == ["jump", "run"]
    for wrong, message in (
        ([{"label": "run"}], "has no label_id"),
        ([{"label": "run", "label_id": 2}], r"got numbers \[2\], want all from 0 on"),
        ([*actions, {"label": "swim", "label_id": 1}], "1 is both 'run' and 'swim'"),
    ):
        path.write_text(json.dumps({"database": {"v": {"annotations": wrong}}}))
        with pytest.raises(ValueError, match=message):
            read_class_names(path)


def test_a_class_that_is_named_twice_is_refused():
    assert class_names(["run", "jump"], 2) == ("run", "jump")
    with pytest.raises(ValueError, match=r"^--classes: class 'run' stands there more than once, want each"):
        class_names(["run", "jump", "run"], 3)


# ------------------------------------------------------------------------------ OpenTAD's


GOLDEN_HEADS = {
    "opentad_re2tal_thumos": "thumos_re2tal_swin_t",
    "opentad_re2tal_anet": "activitynet_re2tal_swin_t",
    "opentad_actionformer_thumos_i3d": "thumos_i3d_features",
    "opentad_actionformer_anet_tsp": "activitynet_tsp_actionformer",
    "actionformer_thumos_i3d": "thumos_i3d_features",
    "actionformer_anet_tsp": "activitynet_tsp_actionformer",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_HEADS)
def test_the_golden_outputs_of_heads_come_out_of_a_converted_file(name, shared_real, tmp_path):
    """Heads at reduced width, so on features of width 32, by way of the file, the folder and its settings."""
    folder, opentad = shared_real / "golden" / name, name.startswith("opentad")
    heads = load_file(folder / "weights.safetensors")
    torch.save({"state_dict_ema": {f"module.{n}": t for n, t in heads.items()}}, tmp_path / "a.pth")
    (tmp_path / "names.txt").write_text("\n".join(f"class{number}" for number in range(20)))
    given = ("--recipe", GOLDEN_HEADS[name], "--set", "detector.actionformer.point_offset=0")
    classes = ("--classes", tmp_path / "names.txt") if "thumos" in name else ()
    done = call(main, tmp_path / "a.pth", *given, *classes, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    fixture_of = golden_opentad.opentad_fixture if opentad else golden_authors.authors_fixture
    reference = fixture_of(folder)
    steps = f"detector.num_steps={reference.detector.num_steps}"
    detector = load_trained(tmp_path / "out", [steps, "run.device=cpu"]).network.detector
    fixture = golden_opentad.Fixture(reference.meta, reference.data, detector)
    if opentad:
        checks = [*golden_opentad.opentad_evaluation(fixture), *golden_opentad.opentad_epsilon(fixture)]
    else:
        checks = list(golden_authors.authors_epsilon(fixture))
        checks += [
            each for case in fixture.meta["eval"] for each in golden_authors.authors_evaluation(fixture, case)
        ]
    assert checks and all(check.passed for check in checks)


def test_etad_in_opentads_form_computes_its_equations(shared_real):
    """Against tests/opentad_etad.py, on weights under OpenTAD's names, of a width that takes a second."""
    generator = torch.Generator().manual_seed(1)
    narrow = {256: 16, 128: 8, 64: 4, 1024: 64, 512: 32, 4096: 16 * 16}
    weights = {}
    for name, tensor in listed(shared_real, "opentad_etad_anet_tsp").items():
        shape = [narrow.get(size, size) for size in tensor.shape]
        weights[name] = torch.randn(shape, generator=generator) * 0.3
    family = family_of(weights)
    assert family is not None and family.name == "opentad-etad"
    parts = split(weights, family)
    assert parts.settings["etad"] == {"head_layers": 3, "origin": "opentad", "bins": "aligned"}
    sizes = {key: value for key, value in parts.settings.items() if key not in ("kind", "etad")}
    settings = DetectorSettings(kind="etad", num_steps=12, etad=parts.settings["etad"], **sizes)
    detector = build_detector(settings, num_features=shapes.num_features(parts.detector), num_classes=1)
    detector.load_state_dict(parts.detector)
    features = torch.randn(1, detector.num_features, 12, generator=generator)
    found = detector.predict(features)
    theirs = {name.removeprefix("module."): tensor.double() for name, tensor in weights.items()}
    x = opentad_etad.neck(theirs, features[0].double())
    # float32 against float64, through three networks in a row
    assert torch.allclose(found.boundary[0].double(), opentad_etad.boundaries(theirs, x), atol=1e-5)
    for number, (start, end) in enumerate(candidate_proposals(12).tolist()):
        segment, quality = opentad_etad.cascade(theirs, x, start, end, settings.roi_bins)
        inside = [min(max(place, 0.0), 12.0) for place in segment]
        if inside[1] - inside[0] > 0.2:
            assert found.segments[0, number].tolist() == pytest.approx(inside, abs=1e-3)
            assert float(found.quality[0, number]) == pytest.approx(quality, abs=1e-4)


@pytest.mark.ci
@pytest.mark.slow
def test_a_whole_re2tal_of_reduced_width_predicts(shared_real, tmp_path):
    """Encoder in full, head of 16 channels: random weights, averaged and not, as OpenTAD saves them."""
    generator = torch.Generator().manual_seed(0)
    narrow = {512: 16, 2048: 64, 1536: 48}
    weights = {}
    for name, tensor in listed(shared_real, "opentad_re2tal_thumos_swin_tiny").items():
        head = not name.startswith("module.backbone.")
        shape = [narrow.get(size, size) if head else size for size in tensor.shape]
        floats = tensor.is_floating_point()
        weights[name] = (
            torch.randn(shape, generator=generator) * 0.05
            if floats
            else torch.ones(shape, dtype=tensor.dtype)
        )
    last = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"epoch": 119, "state_dict": last, "state_dict_ema": weights}, tmp_path / "a.pth")
    names = [f"class{number}" for number in range(20)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    out = tmp_path / "re2tal"
    assert "got none, the detector scores 20" in refused(main, tmp_path / "a.pth", "--out", out)
    result = call(main, tmp_path / "a.pth", "--classes", tmp_path / "names.txt", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["key"], report["reversible"], report["num_steps"]) == ("state_dict_ema", True, 512)
    video = write_videos(tmp_path) / "second.webm"
    small = ("data.clip_frames=16", "data.crop=32", "data.resize=32", "run.device=cpu")
    sets = [part for value in small for part in ("--set", value)]
    done = call(predict, video, "--checkpoint", out, "--out", tmp_path / "found", *sets)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["results"]["second"]
    assert found and {each["label"] for each in found} <= set(names)
