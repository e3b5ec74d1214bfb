"""Networks of torchvision and of Hugging Face in the table of bench-coverage: one of each family, small."""

from __future__ import annotations

from typing import Any

# family, network, shape of the input, options
TORCHVISION: list[tuple[str, str, tuple[int, ...], dict[str, Any]]] = [
    ("convnext", "convnext_tiny", (3, 64, 64), {}),
    ("efficientnet", "efficientnet_b0", (3, 64, 64), {}),
    ("maxvit", "maxvit_t", (3, 224, 224), {}),
    ("mnasnet", "mnasnet0_5", (3, 64, 64), {}),
    ("mobilenetv2", "mobilenet_v2", (3, 64, 64), {}),
    ("mobilenetv3", "mobilenet_v3_small", (3, 64, 64), {}),
    ("regnet", "regnet_y_400mf", (3, 64, 64), {}),
    ("resnet", "resnet18", (3, 64, 64), {}),
    ("resnet bottleneck", "resnet50", (3, 64, 64), {}),
    ("resnext", "resnext50_32x4d", (3, 64, 64), {}),
    ("swin", "swin_t", (3, 64, 64), {}),
    ("swin v2", "swin_v2_t", (3, 64, 64), {}),
    ("vit", "vit_b_32", (3, 64, 64), {"image_size": 64}),
    ("video mvit v1", "mvit_v1_b", (3, 16, 224, 224), {}),
    ("video mvit v2", "mvit_v2_s", (3, 16, 224, 224), {}),
    ("video resnet 3d", "r3d_18", (3, 4, 32, 32), {}),
    ("video resnet mc3", "mc3_18", (3, 4, 32, 32), {}),
    ("video r(2+1)d", "r2plus1d_18", (3, 4, 32, 32), {}),
    ("video swin", "swin3d_t", (3, 4, 64, 64), {}),
]

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_SWIN: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [2, 4],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": 64,
}
_CONVNEXT: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [2, 3], "num_stages": 2, "image_size": 64}
_RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 3]}
_PIXELS = (3, 32, 32)

# family, class, shape of the input, options of the configuration
HUGGING_FACE: list[tuple[str, str, tuple[int, ...], dict[str, Any]]] = [
    ("beit", "BeitModel", _PIXELS, {**_SMALL, "use_relative_position_bias": True}),
    ("bit", "BitModel", (3, 64, 64), {"embedding_size": 32, "hidden_sizes": [128, 256], "depths": [2, 3]}),
    ("clip", "CLIPVisionModel", _PIXELS, _SMALL),
    ("convnext", "ConvNextModel", (3, 64, 64), _CONVNEXT),
    ("convnextv2", "ConvNextV2Model", (3, 64, 64), _CONVNEXT),
    ("cvt", "CvtModel", (3, 64, 64), {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}),
    ("data2vec", "Data2VecVisionModel", _PIXELS, _SMALL),
    ("deit", "DeiTModel", _PIXELS, _SMALL),
    ("dinov2", "Dinov2Model", _PIXELS, _SMALL),
    ("dinov2 registers", "Dinov2WithRegistersModel", _PIXELS, _SMALL),
    ("dinov3", "DINOv3ViTModel", _PIXELS, _SMALL),
    (
        "dinov3 convnext",
        "DINOv3ConvNextModel",
        (3, 64, 64),
        {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 3, 2]},
    ),
    (
        "efficientnet",
        "EfficientNetModel",
        (3, 64, 64),
        {"width_coefficient": 0.25, "image_size": 64, "hidden_dim": 320},
    ),
    (
        "focalnet",
        "FocalNetModel",
        (3, 64, 64),
        {
            "embed_dim": 16,
            "depths": [2, 3],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "hidden_sizes": [16, 32],
            "image_size": 64,
        },
    ),
    ("hiera", "HieraModel", (3, 224, 224), {"embed_dim": 16}),
    ("ijepa", "IJepaModel", _PIXELS, _SMALL),
    ("levit", "LevitModel", (3, 224, 224), {}),
    ("mobilenet v2", "MobileNetV2Model", (3, 64, 64), {"depth_multiplier": 0.35}),
    (
        "mobilevit",
        "MobileViTModel",
        (3, 64, 64),
        {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 8, 16, 24, 32, 40, 80], "image_size": 64},
    ),
    ("mobilevit v2", "MobileViTV2Model", (3, 64, 64), {"width_multiplier": 0.5}),
    ("poolformer", "PoolFormerModel", (3, 64, 64), {"hidden_sizes": [16, 16, 32, 32]}),
    (
        "pvt",
        "PvtModel",
        (3, 64, 64),
        {"hidden_sizes": [16, 32, 32, 64], "num_attention_heads": [1, 2, 2, 4], "image_size": 64},
    ),
    (
        "pvt v2",
        "PvtV2Model",
        (3, 64, 64),
        {"hidden_sizes": [16, 32, 32, 64], "num_attention_heads": [1, 2, 2, 4], "image_size": 64},
    ),
    ("regnet", "RegNetModel", (3, 64, 64), {**_RESNET, "groups_width": 8}),
    ("resnet", "ResNetModel", (3, 64, 64), _RESNET),
    (
        "segformer",
        "SegformerModel",
        (3, 64, 64),
        {"hidden_sizes": [16, 32, 32, 64], "num_attention_heads": [1, 2, 2, 4]},
    ),
    ("siglip", "SiglipVisionModel", _PIXELS, _SMALL),
    ("swin", "SwinModel", (3, 64, 64), _SWIN),
    ("swin v2", "Swinv2Model", (3, 64, 64), _SWIN),
    ("timesformer", "TimesformerModel", (4, 3, 32, 32), {**_SMALL, "num_frames": 4}),
    ("videomae", "VideoMAEModel", (4, 3, 32, 32), {**_SMALL, "num_frames": 4, "use_mean_pooling": False}),
    ("vit", "ViTModel", _PIXELS, _SMALL),
    ("vit mae", "ViTMAEModel", _PIXELS, _SMALL),
    ("vit msn", "ViTMSNModel", _PIXELS, _SMALL),
    ("vivit", "VivitModel", (4, 3, 32, 32), {**_SMALL, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    (
        "vjepa2",
        "VJEPA2Model",
        (4, 3, 32, 32),
        {
            **_SMALL,
            "crop_size": 32,
            "frames_per_clip": 4,
            "mlp_ratio": 2.0,
            "pred_hidden_size": 32,
            "pred_num_hidden_layers": 2,
            "pred_num_attention_heads": 2,
        },
    ),
]
