"""VideoMAE checkpoints of three sources; Hugging Face's own network against ours on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from weight_cases import own_tensors, published, shapes

from model.backbones.videomae import Layout, VideoMAE, sine_table
from tools.weights.names import videomae

TINY = Layout(features=32, depth=2, heads=4, image_side=32)


def huggingface(kind: type, **settings) -> torch.nn.Module:
    """A network as small as TINY, of weights that are all drawn at random, biases and norms too."""
    import transformers  # here, for it takes a second that only these tests need

    config = transformers.VideoMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        num_frames=4,
        layer_norm_eps=1e-6,  # as VideoMAE's authors; transformers' default, 1e-12, is of no consequence
        decoder_num_attention_heads=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=32,
        **settings,
    )
    torch.manual_seed(0)
    network = getattr(transformers, kind)(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def loaded(weights: dict[str, Tensor], layout: Layout = TINY) -> VideoMAE:
    """Ours, with every tensor found and none left over."""
    network = VideoMAE(layout).eval()
    network.load_state_dict(weights)
    return network


def relative_error(got: Tensor, want: Tensor) -> float:
    return (torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)).item()


def test_every_tensor_of_the_authors_file_but_the_head_finds_its_place(shared_real):
    weights = published(shared_real, "videomae_vit_base_k400_finetune.json")
    converted = videomae.from_videomae(weights)
    assert shapes(converted) == shapes(own_tensors("videomae_b"))
    assert len(converted) == len(weights) - 2  # head.weight, head.bias


@pytest.mark.slow
def test_every_tensor_of_mmaction2s_file_finds_its_place(shared_real):
    weights = published(shared_real, "mmaction2_videomae_base_backbone.json")
    weights["pos_embed"] = sine_table(1568, 768, torch.device("cpu"))[None]
    for prefix in ("", "backbone."):
        converted = videomae.from_mmaction2({prefix + name: tensor for name, tensor in weights.items()})
        assert shapes(converted) == shapes(own_tensors("videomae_b"))
        assert len(converted) == len(weights) - 1  # pos_embed


def test_a_pretraining_file_of_the_authors_gives_its_encoder():
    own = VideoMAE(TINY).state_dict()
    weights = {f"encoder.{name}": tensor for name, tensor in own.items()}
    decoder = (
        "mask_token",
        "encoder_to_decoder.weight",
        "decoder.blocks.0.norm1.weight",
        "decoder.norm.bias",
    )
    assert videomae.from_videomae(weights | dict.fromkeys(decoder, torch.zeros(1))).keys() == own.keys()


def test_learnt_positions_are_refused():
    weights = {"pos_embed": torch.randn(1, 8, 32)}
    for convert in (videomae.from_mmaction2, videomae.from_videomae):
        with pytest.raises(ValueError, match="'pos_embed' differs from the fixed sine-cosine table"):
            convert(weights)


@pytest.mark.slow
def test_features_are_those_of_transformers_with_its_last_norm():
    network, clip = huggingface("VideoMAEModel", use_mean_pooling=False), torch.randn(2, 3, 4, 32, 32)
    ours = loaded(videomae.from_huggingface(network.state_dict()))
    with torch.no_grad():
        expected = network(clip.transpose(1, 2)).last_hidden_state  # (n, tokens, D)
        features = ours(clip).flatten(2).transpose(1, 2)
    assert relative_error(features, expected) < 1e-5  # roundings of float32, summed in another order


@pytest.mark.slow
def test_features_are_those_of_transformers_without_a_last_norm():
    network, clip = huggingface("VideoMAEModel"), torch.randn(2, 3, 4, 32, 32)
    layout = Layout(features=32, depth=2, heads=4, image_side=32, norm=False)
    ours = loaded(videomae.from_huggingface(network.state_dict()), layout)
    with torch.no_grad():
        expected = network(clip.transpose(1, 2)).last_hidden_state
        assert relative_error(ours(clip).flatten(2).transpose(1, 2), expected) < 1e-5


@pytest.mark.parametrize("kind", ["VideoMAEForPreTraining", "VideoMAEForVideoClassification"])
def test_decoders_and_classifiers_of_transformers_are_left_out(kind):
    weights = huggingface(kind, use_mean_pooling=kind == "VideoMAEForVideoClassification").state_dict()
    assert loaded(videomae.from_huggingface(weights))


def test_names_of_transformers_4_give_the_same_weights():
    new = huggingface("VideoMAEModel", use_mean_pooling=False).state_dict()
    old = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): tensor
        for name, tensor in new.items()
    }
    assert old.keys() != new.keys()
    converted, expected = videomae.from_huggingface(old), videomae.from_huggingface(new)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_a_block_without_its_keys_is_refused():
    weights = huggingface("VideoMAEModel").state_dict()
    del weights["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ValueError, match="no 'encoder.layer.1.attention.attention.key.weight'"):
        videomae.from_huggingface(weights)


def test_a_bias_of_the_keys_would_change_nothing():
    network, clip = huggingface("VideoMAEModel", use_mean_pooling=False), torch.randn(1, 3, 4, 32, 32)
    ours = loaded(videomae.from_huggingface(network.state_dict()))
    for layer in network.encoder.layer:
        layer.attention.attention.key.bias = torch.nn.Parameter(torch.randn(32))
    converted = videomae.from_huggingface(network.state_dict())
    assert converted.keys() == ours.state_dict().keys()
    with torch.no_grad():
        expected = network(clip.transpose(1, 2)).last_hidden_state
        assert relative_error(ours(clip).flatten(2).transpose(1, 2), expected) < 1e-5
