"""The networks of `harness.models.networks` in PyTorch, with random weights, ready for export."""

from collections.abc import Callable

import torch
import transformers
from torch import nn
from torchvision import models as vision

from harness.models.networks import NETWORKS, Input
from harness.models.style_transfer import style_transfer

# Attention as plain matrix products and softmax, which every exporter and provider knows.
PLAIN = dict(attn_implementation="eager")


class Part(nn.Module):
    """`call(model, *inputs)` as a module, for a network of which a part is measured."""

    def __init__(self, model: nn.Module, call: Callable = nn.Module.__call__):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *inputs):
        return self.call(self.model, *inputs)


def deeplabv3() -> nn.Module:
    model = vision.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    return Part(model, lambda model, pixels: model(pixels)["out"])


def ssdlite320() -> nn.Module:
    whole = vision.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    parts = nn.ModuleDict({"backbone": whole.backbone, "head": whole.head})

    def call(model, pixels):
        found = model["head"](list(model["backbone"](pixels).values()))
        return found["cls_logits"], found["bbox_regression"]

    return Part(parts, call)


def vitpose() -> nn.Module:
    backbone = transformers.VitPoseBackboneConfig(**PLAIN)
    config = transformers.VitPoseConfig(
        backbone_config=backbone, num_labels=17, use_simple_decoder=True, **PLAIN
    )
    model = transformers.VitPoseForPoseEstimation(config)
    return Part(model, lambda model, pixels: model(pixels).heatmaps)


def depth_anything() -> nn.Module:
    model = transformers.DepthAnythingForDepthEstimation(transformers.DepthAnythingConfig(**PLAIN))
    return Part(model, lambda model, pixels: model(pixels).predicted_depth)


def distilbert() -> nn.Module:
    model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**PLAIN))
    return Part(model, lambda model, tokens: model(tokens).logits)


def marian_step() -> nn.Module:
    config = transformers.MarianConfig(
        vocab_size=58101, d_model=512, max_position_embeddings=512, activation_function="swish",
        encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048,
        decoder_layers=6, decoder_attention_heads=8, decoder_ffn_dim=2048,
        pad_token_id=58100, decoder_start_token_id=58100, **PLAIN,
    )  # fmt: skip
    whole = transformers.MarianMTModel(config)
    parts = nn.ModuleDict({"decoder": whole.model.decoder, "head": whole.lm_head})

    def call(model, tokens, encoded):
        decoded = model["decoder"](tokens, encoder_hidden_states=encoded, use_cache=False)
        return model["head"](decoded.last_hidden_state[:, -1])

    return Part(parts, call)


def whisper_encoder() -> nn.Module:
    config = transformers.WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536,
        decoder_layers=4, decoder_attention_heads=6, decoder_ffn_dim=1536, **PLAIN,
    )  # fmt: skip
    model = transformers.WhisperModel(config).encoder
    return Part(model, lambda model, mel: model(mel).last_hidden_state)


BUILDERS = {
    "mobilenetv3": lambda: Part(vision.mobilenet_v3_large()),
    "resnet50": lambda: Part(vision.resnet50()),
    "deeplabv3": deeplabv3,
    "ssdlite320": ssdlite320,
    "vitpose": vitpose,
    "depth_anything": depth_anything,
    "style_transfer": lambda: Part(style_transfer()),
    "distilbert_128": distilbert,
    "distilbert_384": distilbert,
    "marian_step": marian_step,
    "whisper_encoder": whisper_encoder,
}


def example(inputs: dict[str, Input], batch_size: int) -> tuple[torch.Tensor, ...]:
    """Random inputs of so many samples."""
    return tuple(
        torch.randint(tokens, (batch_size, *shape)) if tokens else torch.randn(batch_size, *shape)
        for shape, tokens in inputs.values()
    )


def random_network(name: str) -> nn.Module:
    """A network whose random weights keep signals at the size that trained ones have.

    Libraries' own random weights let them fade to 1e-10 over 50 layers, where neither half
    precision nor int8 can be judged. So weights are as He et al. ("Delving deep into rectifiers",
    2015) draw them, and batch normalization knows the mean and variance of what reaches it.
    """
    torch.manual_seed(0)
    model = BUILDERS[name]()
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
            model.train()(*example(NETWORKS[name].inputs, 4))
    return model.eval()
