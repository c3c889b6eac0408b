"""ResNet50 in mlx.nn, layer for layer torchvision's, except that images are NHWC.

He et al., "Deep Residual Learning for Image Recognition", 2016; a block's stride is in its 3x3
convolution, as in torchvision. The layers have torchvision's names.
"""

import math

import mlx.core as mx
import mlx.nn as nn

EXPANSION = 4  # channels that a block puts out, for each one that its 3x3 convolution has


class BatchNorm(nn.BatchNorm):
    """The statistics in float32, whatever the weights' type: sums over a batch overflow fp16."""

    def __call__(self, x):
        return super().__call__(x.astype(mx.float32)).astype(x.dtype)


class Bottleneck(nn.Module):
    """(N, H, W, inputs) become (N, H / stride, W / stride, EXPANSION * width)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = BatchNorm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = [
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                BatchNorm(outputs),
            ]

    def __call__(self, x):
        shortcut = x
        for layer in self.downsample or []:
            shortcut = layer(shortcut)
        x = nn.relu(self.bn1(self.conv1(x)))
        x = nn.relu(self.bn2(self.conv2(x)))
        return nn.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet50(nn.Module):
    """Images (N, H, W, 3) become logits (N, num_classes).

    Args:
        blocks: of each of the four stages; others than ResNet50's make a test fast.
    """

    def __init__(self, num_classes: int, blocks: tuple[int, ...] = (3, 4, 6, 3)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(blocks[0], 64, 64, stride=1)
        self.layer2 = stage(blocks[1], 256, 128, stride=2)
        self.layer3 = stage(blocks[2], 512, 256, stride=2)
        self.layer4 = stage(blocks[3], 1024, 512, stride=2)
        self.fc = nn.Linear(2048, num_classes)
        self.apply_to_modules(initialize)

    def __call__(self, images):
        # In the weights' type, or else MLX computes in the wider one of the two.
        x = images.astype(self.conv1.weight.dtype)
        x = self.maxpool(nn.relu(self.bn1(self.conv1(x))))
        for block in self.layer1 + self.layer2 + self.layer3 + self.layer4:
            x = block(x)
        return self.fc(x.mean(axis=(1, 2)))


def stage(blocks: int, inputs: int, width: int, stride: int) -> list[Bottleneck]:
    """The first block makes the images smaller and has more channels."""
    rest = [Bottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1)]
    return [Bottleneck(inputs, width, stride), *rest]


def initialize(_, module) -> None:
    """He's normal initialization of convolutions by their outputs, as torchvision has it."""
    if isinstance(module, nn.Conv2d):
        normal = nn.init.he_normal()
        module.weight = normal(module.weight, mode="fan_out", gain=math.sqrt(2))
