"""The network of features is the detector of the whole network: same losses, gradients, predictions."""

import pytest
import torch
from tiny_run import SMALL

from model.feature_network import FeatureNetwork
from train.build_network import build_network
from train.optimizer import OptimizerSettings
from train.parameter_groups import parameter_groups
from train.settings import RECIPES, load_settings

TINY = {**SMALL, "data.shards": "unused", "encoder.frozen": True, "optimizer.batch_size": 2}
TINY |= {"detector.actionformer.max_distances": [4, 8]}


def networks(kind):
    """A network with a frozen encoder, and one of features with the same detector."""
    sets = [f"{name}={value}" for name, value in {**TINY, "detector.kind": kind}.items()]
    whole = build_network(load_settings(RECIPES / "demo.yaml", sets), 3).train()
    width = whole.encoder.num_features
    settings = load_settings(RECIPES / "demo.yaml", [*sets, f"data.num_features={width}"])
    alone = build_network(settings, 3).train()
    assert isinstance(alone, FeatureNetwork)
    alone.detector.load_state_dict(whole.detector.state_dict())
    return whole, alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["proposals", "etad", "actionformer"])
def test_loss_gradients_and_predictions_are_those_of_the_frozen_network(kind):
    whole, alone = networks(kind)
    clips = torch.randint(0, 256, (2, 8, 3, 4, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        features = whole.encode(clips, kept=None)
    segments, labels = (
        [torch.tensor([[2.0, 9.0]]), torch.zeros(0, 2)],
        [torch.tensor([1]), torch.zeros(0).long()],
    )
    # all clips are kept, and none drawn, so that both draw the same proposals
    whole._choose_clips = lambda *_: torch.arange(8).repeat(2, 1)
    losses = []
    for network, inputs in ((whole, clips), (alone, features)):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)  # of drop-path
        loss, _ = network(inputs, segments, labels, generator=generator)
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    gradients = [{name: p.grad for name, p in one.detector.named_parameters()} for one in (whole, alone)]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    whole.eval()
    alone.eval()
    first, second = whole(clips), alone(features)
    for name in ("segments", "quality", "class_scores", "boundary"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_it_has_the_groups_of_a_detector_alone_and_no_loss_without_ground_truth_for_it():
    _, alone = networks("proposals")
    groups = parameter_groups(alone, OptimizerSettings())
    assert [group["name"] for group in groups] == ["detector", "detector, without decay"]
    with pytest.raises(ValueError, match="gt_labels: got None with ground truth"):
        alone(torch.zeros(1, alone.detector.num_features, 16), [torch.zeros(0, 2)])


def test_pretrained_weights_of_an_encoder_that_is_not_there_are_refused():
    sets = [f"{name}={value}" for name, value in TINY.items()]
    with pytest.raises(ValueError, match="encoder.weights: with data.num_features .* set it to null, or"):
        load_settings(RECIPES / "demo.yaml", [*sets, "data.num_features=8", "encoder.weights=a.safetensors"])
