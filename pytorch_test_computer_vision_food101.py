# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#   "torch>=2.11", "torchvision", "torchcodec", "datasets", "huggingface_hub", "pillow",
#   "filelock", "nvidia-ml-py>=12.535", "packaging", "pandas", "psutil", "py-cpuinfo", "scipy",
#   "tqdm",
# ]
# ///
"""How fast does this machine train a ResNet50 on Food101 with PyTorch?

Inside the clock: reading JPEG files, decoding and resizing them to 224x224 in worker processes (one
per CPU core, at most 16), moving a batch to the device, forward and backward pass, Adam's update.
Outside: imports, download, building the model, evaluation (there is none).
Model: torchvision's ResNet50 with 101 classes, untrained. Data: 75,750 photographs of up to 512x512
pixels, 3.8 GB to download and twice that on disk once unpacked. The synthetic twin repeats 512
pictures that cost the same to decode, and reads them from memory.

    python pytorch_test_computer_vision_food101.py --epochs=1 --batch_sizes="32"
"""

import utils
from harness import food101
from harness.clock import WARMUP_STEPS

EXPERIMENT = utils.Experiment(
    title="PyTorch, ResNet50, Food101",
    place=20,
    chart="pytorch_cv_resnet50_food101",
    description=__doc__,
    backend="pytorch",
    task="cv",
    dataset="food101",
    model="resnet50",
    input_size=food101.SIDE,
    epochs=3,
    varied=utils.batch_sizes("32, 64, 128"),
    samples=food101.SAMPLES,
    classes=food101.NUM_CLASSES,
    quick={"batch_sizes": "4"},
    model_flags={"channels_last": False},  # images in NHWC memory order
    extra_columns=("loader_workers",),
)


def prepare(options) -> dict:
    """Settle device and data once per sweep; returns the columns that all rows share."""
    from harness.frameworks import pytorch

    food101.require_shared_memory(max(options.batch_sizes))
    return pytorch.prepare(options, food101.fetch)


def measure(batch_size: int, options) -> dict:
    """Train ResNet50 at one batch size; returns the measured columns of its row."""
    import torch
    from torchvision.models import resnet50

    from harness.frameworks import pytorch
    from harness.frameworks.training import measure_training

    device = pytorch.start(options)
    dataset = food101.load_data(options)
    loader = food101.make_loader(dataset, batch_size, pin_memory=device.type == "cuda")
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    model = resnet50(num_classes=EXPERIMENT.classes).to(device, memory_format=memory_format)
    fused = pytorch.has_fused_adam(device, options.precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)

    def loss_function(model, images, labels):
        scaled = images.to(torch.float32, memory_format=memory_format).div_(127.5).sub_(1)
        return torch.nn.functional.cross_entropy(model(scaled), labels)

    # Starts the workers: they import PyTorch outside the clock, as this process did.
    next(iter(loader), None)
    # The workers fill a queue while the first step compiles; it has to drain before rates count.
    queue = loader.num_workers * loader.prefetch_factor
    training = pytorch.Training(model, loader, loss_function, optimizer, device, options)
    row = measure_training(
        training, len(dataset), batch_size, options, warmup_steps=max(WARMUP_STEPS, queue)
    )
    return row | {"loader_workers": loader.num_workers}


if __name__ == "__main__":
    utils.sweep(EXPERIMENT, prepare, measure)
