"""The networks whose inference is measured: domains, inputs and sizes. Imports no ML framework.

The domains are those of Geekbench ML's closed table. Parameters and GFLOP are facts of the
published architectures: of the exported part only, and a multiplication with its addition counts
as two operations, in convolutions and matrix products (as torch.utils.flop_counter counts).
"""

from typing import NamedTuple


class Input(NamedTuple):
    """A tensor of one sample: standard normal floats, or whole numbers from 0 to below `tokens`."""

    shape: tuple[int, ...]
    tokens: int | None = None


class Network(NamedTuple):
    """What is measured, without its batch dimension, and how it becomes int8.

    `convolutional` ones are quantized statically, the others dynamically, as ONNX Runtime's
    documentation advises: https://onnxruntime.ai/docs/performance/model-optimizations/quantization
    """

    domain: str
    inputs: dict[str, Input]
    parameters: int
    gflop: float
    convolutional: bool


PHOTOGRAPH = {"pixels": Input((3, 224, 224))}
NETWORKS = {
    # Howard et al., "Searching for MobileNetV3", 2019, large.
    "mobilenetv3": Network("image classification", PHOTOGRAPH, 5_483_032, 0.433, True),
    # He et al., "Deep residual learning for image recognition", 2016.
    "resnet50": Network("image classification", PHOTOGRAPH, 25_557_032, 8.178, True),
    # Chen et al., "Rethinking atrous convolution", 2017, on MobileNetV3: 21 classes per pixel.
    "deeplabv3": Network("segmentation", {"pixels": Input((3, 520, 520))}, 11_025_477, 20.87, True),
    # SSDLite of MobileNetV3's paper: scores and boxes of 3,234 anchors, before any is suppressed.
    "ssdlite320": Network(
        "object detection", {"pixels": Input((3, 320, 320))}, 3_440_060, 1.166, True
    ),
    # Xu et al., "ViTPose", 2022, base with the simple decoder: 17 heat maps.
    "vitpose": Network("pose", {"pixels": Input((3, 256, 192))}, 85_912_337, 34.92, False),
    # Yang et al., "Depth Anything", 2024, small.
    "depth_anything": Network("depth", {"pixels": Input((3, 518, 518))}, 24_785_089, 115.3, False),
    # Johnson et al., "Perceptual losses for real-time style transfer", 2016.
    "style_transfer": Network(
        "style transfer", {"pixels": Input((3, 256, 256))}, 1_679_235, 20.16, True
    ),
    # Sanh et al., "DistilBERT", 2019, two classes; texts fill their length, so there is no mask.
    "distilbert_128": Network(
        "text classification", {"tokens": Input((128,), 30522)}, 66_955_010, 11.17, False
    ),
    "distilbert_384": Network(
        "text classification", {"tokens": Input((384,), 30522)}, 66_955_010, 35.33, False
    ),
    # Junczys-Dowmunt et al., "Marian", 2018, in the shape of opus-mt-en-de: scores of the token
    # after 16, given the encoder's output for 64. No earlier keys and values are kept.
    "marian_step": Network(
        "translation",
        {"tokens": Input((16,), 58101), "encoded": Input((64, 512))},
        55_234_048,
        1.183,
        False,
    ),
    # Radford et al., "Robust speech recognition", 2022: Whisper tiny's encoder, 30 s of sound.
    "whisper_encoder": Network("speech", {"mel": Input((80, 3000))}, 8_208_384, 36.94, False),
}
