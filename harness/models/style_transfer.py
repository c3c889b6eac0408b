"""The image transformation network of fast style transfer, in PyTorch; no library ships it.

Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution",
2016, supplementary material, table 1; with instance instead of batch normalization (Ulyanov et al.,
"Instance normalization: the missing ingredient for fast stylization", 2016).
"""

from torch import nn


def convolution(channels: int, filters: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution of the same width, or its stride's part, and normalization."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, size, stride, size // 2, padding_mode="reflect"),
        nn.InstanceNorm2d(filters, affine=True),
    )


def doubled(channels: int, filters: int) -> nn.Sequential:
    """Twice the width, by repetition of the pixels and a convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2), convolution(channels, filters, 3), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions and a shortcut; 128 channels stay 128."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(convolution(128, 128, 3), nn.ReLU(), convolution(128, 128, 3))

    def forward(self, images):
        return images + self.layers(images)


def style_transfer() -> nn.Sequential:
    """Images (N, 3, H, W) become images of the same size; H and W are multiples of 4."""
    return nn.Sequential(
        convolution(3, 32, 9), nn.ReLU(),
        convolution(32, 64, 3, stride=2), nn.ReLU(),
        convolution(64, 128, 3, stride=2), nn.ReLU(),
        *(Residual() for _ in range(5)),
        doubled(128, 64),
        doubled(64, 32),
        nn.Conv2d(32, 3, 9, padding=4, padding_mode="reflect"),
    )  # fmt: skip
