"""train/engine.py and train/optimizer.py: the step in every ZeRO mode, resume, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine_worker import MODES, RESUMED

from train import engine as engine_module
from train.distributed import LAUNCH_VARIABLES, complete_launch_variables
from train.learning_rate import lr_factor
from train.optimizer import (
    OptimizerSettings,
    check_ds_config,
    deepspeed_dict,
    fit_buckets,
    merged,
    read_ds_config,
    resolve_auto,
    with_precision,
)

WORKER = Path(__file__).with_name("engine_worker.py")
EXACT = [name for name, mode in MODES.items() if not mode.bf16]


def launch(processes: int, result: Path) -> dict:
    """One launch runs every configuration in turn: importing DeepSpeed takes longer than they do."""
    env = {k: v for k, v in os.environ.items() if k not in (*LAUNCH_VARIABLES, "DS_ACCELERATOR")}
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(many if processes > 1 else []), str(WORKER), str(result)]
    done = subprocess.run(command, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert not done.stdout, "DeepSpeed is chatty"
    return json.loads(result.read_text())


@pytest.fixture(
    scope="module",
    params=[pytest.param(count, marks=pytest.mark.ci) for count in (1, 2)],
    ids=["1 process", "2 processes"],
)
def results(request, tmp_path_factory) -> dict:
    return launch(request.param, tmp_path_factory.mktemp("engine") / "result.json")


@pytest.mark.slow
def test_every_mode_takes_the_steps_of_plain_autograd(results):
    steps = results["steps"]
    moved = steps.pop("moved")
    assert moved["encoder"] > 1e-3 and moved["detector"] > 1e-2, "the reference did not learn"
    torch_mode = "plain torch" if "plain torch" in steps else "torch DDP"
    # float32 keeps 6e-8; three Adam steps turn that into up to 5e-7 (20 seeds, plain torch). Behind
    # ActionFormer's first factors, 1e-4, gradients are near Adam's epsilon, which enlarges it: up to 2.4e-6
    far = {
        name: steps[name]
        for name in (torch_mode, *EXACT)
        if max(steps[name]["encoder"], steps[name]["detector"]) > (5e-6 if "actionformer" in name else 1e-6)
    }
    assert not far


@pytest.mark.slow
def test_averaged_weights_are_a_plain_average_of_those_of_plain_autograd(results):
    found = {name: results["steps"][name]["average"] for name, mode in MODES.items() if mode.ema}
    # of weights that differ by up to 1e-6, see above; bfloat16 keeps 8 bits of activations and gradients
    far = {name: value for name, value in found.items() if value > (1e-2 if "bf16" in name else 1e-6)}
    assert not far


@pytest.mark.slow
def test_gradient_norms_are_those_of_plain_autograd(results):
    norms = {name: found["norm"] for name, found in results["steps"].items() if "norm" in found}
    without = ["zero 0", "zero 0, 2 micro steps", "zero 0, farthest", "zero 0, layers"]
    without += ["zero 0, actionformer", "zero 0, ema"]
    assert [name for name, norm in norms.items() if norm is None] == without
    # float32 sums in another order; bfloat16 keeps 8 bits of every activation
    far = {name: n for name, n in norms.items() if n is not None and n > (3e-2 if "bf16" in name else 1e-6)}
    assert not far


@pytest.mark.slow
@pytest.mark.parametrize("mode", RESUMED)
def test_a_resumed_run_is_the_one_that_did_not_stop(results, mode):
    resumed = results["resume"][mode]
    # DeepSpeed's Adam for CPUs keeps powers of beta as a running product and computes them anew after loading
    allowed = 1e-6 if MODES[mode].offload and MODES[mode].cpu_adam else 0.0
    assert max(resumed["difference"].values()) <= allowed
    assert max(resumed["average"].values()) <= allowed
    assert resumed["rates"]
    assert resumed["steps"] == [4, 4]


@pytest.mark.slow
def test_a_state_that_carries_code_is_refused_and_not_run(results):
    assert not results["refusals"]["executed"]
    assert "holds objects that could run code" in results["refusals"]["bomb"]


@pytest.mark.slow
def test_a_state_that_torch_warns_of_is_read_without_a_further_line(tmp_path):
    torch.save({"step": 3}, tmp_path / "state.pt", pickle_protocol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_module._load_safely(str(tmp_path / "state.pt")) == {"step": 3}


@pytest.mark.slow
def test_a_state_of_another_layout_or_none_is_refused_in_a_line(results):
    assert "'zero_stage': 1" in results["refusals"]["stage"]
    assert "start a new run from its weights" in results["refusals"]["stage"]
    assert "no training state" in results["refusals"]["nothing"]


@pytest.mark.slow
def test_a_state_with_other_groups_of_parameters_is_refused_with_both_and_what_to_do(results):
    message = results["refusals"]["groups"]
    assert "saved with other groups of parameters (encoder: " in message and "\n" not in message
    assert "encoder.backbone.layer1.2, without decay: " in message
    assert "resume with the optimizer.layer_lrs, optimizer.decay_weights_alone and frozen parts" in message


@pytest.mark.slow
def test_numbers_reach_tensorboard(results):
    assert results["tensorboard"]


@pytest.mark.slow
def test_a_flag_of_one_rank_reaches_all(results):
    assert results["any_rank"] == [0, 1]


def test_warmup_never_wastes_a_step_and_the_cosine_ends_at_zero():
    factor = lr_factor(OptimizerSettings(warmup_steps=4, schedule="cosine"), 14)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(9) == pytest.approx(0.5)  # half of the cosine's ten steps
    assert factor(14) == pytest.approx(0.0) and factor(20) == pytest.approx(0.0)


def test_the_constant_schedule_stays():
    factor = lr_factor(OptimizerSettings(schedule="constant"), 3)
    assert [factor(step) for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("total", [12, 600, 15_000])
def test_the_step_schedule_falls_at_its_share_of_the_run_as_etads_after_five_of_six_epochs(total):
    factor = lr_factor(OptimizerSettings(schedule="step", step_share=0.83333), total)
    fall = total * 5 // 6
    assert [factor(step) for step in (0, fall - 1, fall, total - 1)] == [1, 1, 0.1, 0.1]


def test_a_share_that_was_rounded_up_falls_at_the_step_that_was_meant():
    factor = lr_factor(OptimizerSettings(schedule="step", step_share=0.66667), 300)
    assert [factor(step) for step in (199, 200)] == [1, 0.1]


def test_the_step_schedule_falls_again_after_as_many_steps_and_counts_from_the_warmup():
    factor = lr_factor(
        OptimizerSettings(schedule="step", step_share=0.25, step_factor=0.5, warmup_steps=2), 10
    )
    assert [factor(step) for step in range(10)] == [0.5, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_a_run_shorter_than_its_warmup_has_a_schedule():
    factor = lr_factor(OptimizerSettings(warmup_steps=10), 4)
    assert all(0 < factor(step) <= 1 and math.isfinite(factor(step)) for step in range(5))


def test_settings_reach_deepspeed_and_nothing_is_left_to_its_defaults():
    own = {"gradient_clip": 0, "batch_size": 3, "accumulation_steps": 2, "betas": (0.8, 0.99)}
    settings = OptimizerSettings(**own, eps=1e-6, weight_decay=0.3, detector_lr=0.2)
    config = deepspeed_dict(settings, read_ds_config())
    assert config["gradient_clipping"] == 0
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 2
    assert config["optimizer"]["params"] == {
        "lr": 0.2,
        "betas": [0.8, 0.99],
        "eps": 1e-6,
        "weight_decay": 0.3,
        "torch_adam": True,
    }


@pytest.mark.parametrize(("compiler", "wanted", "cpu_adam"), [(1, 1, True), (1, 0, False), (0, 1, False)])
def test_offload_takes_deepspeeds_adam_if_it_compiles_and_is_wanted(monkeypatch, compiler, wanted, cpu_adam):
    monkeypatch.setattr("train.optimizer.has_compiler", lambda: bool(compiler))
    config = read_ds_config()
    config["zero_optimization"]["offload_optimizer"]["device"] = "cpu"
    params = deepspeed_dict(OptimizerSettings(cpu_adam=bool(wanted)), config)["optimizer"]["params"]
    assert ("torch_adam" not in params) == cpu_adam


def written(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    return path


def on_device(config: dict, device: str) -> tuple:
    """Where optimizer state and weights go, whether pinned, and whether bf16."""
    found = resolve_auto(config, on_gpu=device != "cpu", has_bf16=device == "gpu")
    assert "auto" not in json.dumps(found)
    zero = found["zero_optimization"]
    places = [tuple(zero[name].values()) for name in ("offload_optimizer", "offload_param")]
    return (*places, found["bf16"]["enabled"])


@pytest.mark.parametrize(
    ("device", "optimizer", "bf16"),
    [("gpu", ("cpu", True), True), ("old gpu", ("cpu", True), False), ("cpu", ("none", False), False)],
)
def test_as_shipped_a_gpu_has_bf16_and_its_optimizer_in_pinned_memory_and_a_cpu_neither(
    device, optimizer, bf16
):
    assert on_device(read_ds_config(), device) == (optimizer, ("none", False), bf16)


@pytest.mark.parametrize("device", ["gpu", "cpu"])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_what_a_file_states_is_not_decided_by_the_device(tmp_path, device, stage):
    zero = {"stage": stage, "offload_optimizer": {"device": "none"}, "offload_param": None}
    config = read_ds_config(written(tmp_path, {"zero_optimization": zero, "bf16": {"enabled": stage > 0}}))
    assert on_device(config, device) == (("none", False), ("none", False), stage > 0)


def test_without_partitioning_there_is_no_offload_and_no_bf16(tmp_path):
    config = read_ds_config(written(tmp_path, {"zero_optimization": {"stage": 0}}))
    assert on_device(config, "gpu") == (("none", False), ("none", False), False)


def test_what_a_file_leaves_out_is_ours_at_any_depth(tmp_path):
    """DeepSpeed's own bucket of 5e8 elements is 954 MiB in bf16."""
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    config = read_ds_config(written(tmp_path, {"zero_optimization": zero}))
    ours = read_ds_config()
    assert config == merged(ours, {"zero_optimization": zero})
    assert config["zero_optimization"]["reduce_bucket_size"] == 6_000_000
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": "auto"}
    assert {**config, "zero_optimization": 0} == {**ours, "zero_optimization": 0}
    assert ours == read_ds_config(), "merging changes neither"


@pytest.mark.parametrize(("size", "fitted"), [(5, 5), (10, 10), (500_000_000, 10)])
def test_a_bucket_is_never_larger_than_all_gradients(size, fitted):
    config = {"zero_optimization": {"stage": 1, "reduce_bucket_size": size}}
    assert fit_buckets(config, 10)["zero_optimization"] == {"stage": 1, "reduce_bucket_size": fitted}


@pytest.mark.parametrize(("precision", "enabled"), [("auto", "auto"), ("bf16", True), ("float32", False)])
def test_the_setting_of_precision_decides_what_the_file_leaves_open(precision, enabled):
    assert with_precision(read_ds_config(), precision)["bf16"]["enabled"] == enabled


def test_a_precision_that_the_file_denies_is_refused(tmp_path):
    config = read_ds_config(written(tmp_path, {"bf16": {"enabled": True}}))
    assert with_precision(config, "bf16") == config
    with pytest.raises(ValueError, match=r"float32, but run\.ds_config has bf16\.enabled true; leave one"):
        with_precision(config, "float32")
    with pytest.raises(ValueError, match=r"bf16, but run\.ds_config has bf16\.enabled false; leave one"):
        with_precision(read_ds_config(written(tmp_path, {"bf16": {"enabled": False}})), "bf16")
    with pytest.raises(ValueError, match="use stage 1 to 3"):
        with_precision(read_ds_config(written(tmp_path, {"zero_optimization": {"stage": 0}})), "bf16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_optimization": 3}, r"zero_optimization: got 3, want a JSON object, \{\.\.\.\}"),
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization\.stage: got 4, want one of 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": True}}, r"stage: got true, want one of 0, 1, 2, 3"),
        ({"bf16": True}, r"bf16: got true, want a JSON object"),
        ({"bf16": {"enabled": "yes"}}, r'bf16\.enabled: got "yes", want one of true, false, "auto"'),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "gpu"}}},
            r'offload_optimizer\.device: got "gpu", want one of "none", "cpu", "nvme", "auto"',
        ),
        ({"zero_optimization": {"offload_param": "cpu"}}, r'offload_param: got "cpu", want a JSON object'),
        (
            {"zero_optimization": {"offload_optimizer": {"pin_memory": 1}}},
            r'pin_memory: got 1, want one of true, false, "auto"',
        ),
    ],
)
def test_a_value_that_is_read_here_is_checked_here(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_ds_config(written(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size": 4}, "train_batch_size: set by LeanTAD's settings"),
        ({"gradient_clipping": 1.0}, "gradient_clipping: set by LeanTAD's settings"),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
        ({"fp16": {"enabled": True}}, "use bf16"),
        ({"zero_optimization": {"stage": 0}, "bf16": {"enabled": True}}, "use stage 1 to 3"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "has no effect with stage 0"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "use stage 3"),
    ],
)
def test_a_deepspeed_configuration_that_would_mislead_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_ds_config(read_ds_config() | change)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"zero": 1}'])
def test_an_unreadable_deepspeed_file_is_named(tmp_path, text):
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=str(path)) as caught:
        read_ds_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_compiler_is_reported_with_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with pytest.raises(ValueError, match=r"apt-get install g\+\+ ninja-build"):
        engine_module._deepspeed()


def test_half_a_launch_is_refused_and_a_single_process_needs_none(monkeypatch):
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun --nproc_per_node"):
        complete_launch_variables()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    complete_launch_variables()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
    assert 0 < int(os.environ["MASTER_PORT"]) < 65536


@pytest.mark.slow
def test_the_settings_can_be_read_without_importing_deepspeed():
    code = "import sys, train.engine; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=WORKER.parents[1]).returncode == 0


def test_a_state_of_another_network_is_one_line(tmp_path, monkeypatch):
    def load_checkpoint(folder, tag):
        raise RuntimeError("Error(s) in loading state_dict for Network:\n\tsize mismatch for a.weight")

    state = {"layout": {"processes": 1}, "groups": {"encoder": 5}}
    (tmp_path / engine_module.STATE_FILE).write_text(json.dumps(state))
    monkeypatch.setattr(engine_module, "_partitioning", lambda engine: state["layout"])
    engine = SimpleNamespace(load_checkpoint=load_checkpoint, group_sizes={"encoder": 5})
    with pytest.raises(ValueError, match="of another network than settings.yaml describes") as caught:
        engine_module.load_state(engine, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_state_with_its_parameters_in_another_order_is_refused(tmp_path):
    def engine(round_robin: bool) -> SimpleNamespace:
        return SimpleNamespace(
            zero_optimization_stage=lambda: 2,
            bfloat16_enabled=lambda: False,
            zero_round_robin_gradients=lambda: round_robin,
            group_sizes={"encoder": 5},
        )

    for before in (False, True):
        state = {"layout": engine_module._partitioning(engine(before)), "client_state": {}}
        (tmp_path / engine_module.STATE_FILE).write_text(json.dumps(state))
        with pytest.raises(ValueError, match="'round_robin_gradients': True.*; resume with what it was"):
            engine_module.load_state(engine(not before), tmp_path)


@pytest.mark.parametrize("groups", [{"encoder": 5, "detector": 7}, None])
def test_a_state_with_other_groups_or_of_an_older_version_is_refused_before_it_is_read(
    tmp_path, monkeypatch, groups
):
    state = {"layout": {}} | ({"groups": groups} if groups else {})
    (tmp_path / engine_module.STATE_FILE).write_text(json.dumps(state))
    monkeypatch.setattr(engine_module, "_partitioning", lambda engine: {})
    with pytest.raises(
        ValueError, match=r"saved with other groups of parameters \(.*; now encoder: 5\); resume"
    ):
        engine_module.load_state(SimpleNamespace(group_sizes={"encoder": 5}), tmp_path)
