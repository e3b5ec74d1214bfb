"""Stand-ins for timm and torchvision, small: what has to hold where the libraries are not installed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import torch
from foreign_blocks import Basic, PreNorm
from torch import Tensor, nn

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
SIZE = 16  # pixels that the networks were made for


class Images(nn.Module):
    """A residual network as timm's: maps without a classifier, if it is told so."""

    def __init__(self, num_classes: int = 5, global_pool: str = "avg", residual: bool = True) -> None:
        super().__init__()
        self.num_features, self.global_pool = 8, global_pool
        self.pretrained_cfg = {"classifier": "fc", "input_size": (3, SIZE, SIZE)}
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        blocks = [Basic(), Basic(nn.Conv2d(4, 4, 1)), Basic(), Basic()]
        self.blocks = nn.Sequential(*(blocks if residual else [nn.Conv2d(4, 4, 1)]))
        self.last = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.fc(x.mean((2, 3))) if self.global_pool else x


class Tokens(nn.Module):
    """A vision transformer as timm's: class token first, no choice of pooling, one size of pictures."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.num_features, self.num_prefix_tokens, self.pretrained_cfg = 8, 1, {}
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIZE // 8) ** 2, 8))
        self.blocks = nn.Sequential(PreNorm(), PreNorm())
        self.head = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.blocks(x)


class Clips(nn.Module):
    """A network for clips as torchvision's: means over time and space, flattened, then classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (3, 7, 7), (1, 4, 4), (1, 3, 3))
        self.layer1 = nn.Sequential(Residual3d(), Residual3d())
        self.avgpool, self.fc = nn.AdaptiveAvgPool3d(1), nn.Linear(8, 400)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.layer1(self.stem(x))).flatten(1))


class Residual3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.conv(x))


NETWORKS = {"small": Images, "tokens": Tokens, "plain": lambda **o: Images(residual=False, **o)}


def create_model(name: str, *, pretrained: bool, **options: object) -> nn.Module:
    if name not in NETWORKS:
        raise RuntimeError(f"Unknown model ({name})")
    network = NETWORKS[name](**options)
    if pretrained:  # what would be downloaded
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.25)
    return network


def _module(name: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    return module


def install(monkeypatch) -> None:
    """Put them in the place of the libraries, in this process."""
    described = {"input_size": (3, SIZE, SIZE), "mean": MEAN, "std": STD}
    data = _module("timm.data", resolve_model_data_config=lambda network: described)
    preset = SimpleNamespace(crop_size=[SIZE], mean=MEAN, std=STD)
    weights = SimpleNamespace(
        DEFAULT=SimpleNamespace(transforms=lambda: preset, meta={"min_temporal_size": 4})
    )
    models = _module(
        "torchvision.models",
        video=None,
        get_model=lambda name, weights: Clips(),
        list_models=lambda module: ["r3d_tiny"],
        get_model_weights=lambda name: weights,
    )
    timm = _module("timm", create_model=create_model, data=data)
    torchvision = _module("torchvision", models=models)
    for module in (timm, data, torchvision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
