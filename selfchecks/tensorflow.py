"""What the TensorFlow protocol costs: ratios of two things measured in one run.

    python -m selfchecks.tensorflow

Loop: `model.fit` under the clock against plain `model.fit` without callbacks, in interleaved pairs.
Pipelines alone, without a model: CIFAR100's against a plain copy of the same images in memory;
Food101's against what so many cores would do if each decoded at the rate of one thread.
"""

import argparse
import statistics

import numpy as np

import harness.machine
import tensorflow_test_computer_vision_food101 as food101
import tensorflow_test_nlp as nlp
from harness import cifar100
from harness.clock import Clock
from harness.frameworks import tensorflow
from harness.frameworks.fit import TimedFit
from harness.frameworks.tensorflow import tf
from selfchecks.pairs import in_words, interleaved_ratios, timed

OPTIONS = argparse.Namespace(
    device="cpu", precision="fp32", compile=False, data="synthetic", seed=1
)


def loop_ratios(pairs: int = 30, batch_size: int = 8, steps: int = 20) -> list[float]:
    """Of interleaved pairs, plain `fit`'s seconds divided by those under the clock.

    Model and batches are small, so that what the clock costs per step weighs more than in a
    benchmark.
    """
    device = tensorflow.start(OPTIONS)
    samples = batch_size * steps
    random = np.random.default_rng(OPTIONS.seed)
    options = argparse.Namespace(**vars(OPTIONS), **nlp.EXPERIMENT.model_flags)
    reviews = random.integers(options.vocab_size, size=(samples, options.maxlen), dtype=np.int32)
    labels = random.integers(2, size=samples)
    model = nlp.build_model(options)
    dataset = tensorflow.in_memory_batches(reviews, labels, batch_size)
    training = tensorflow.fit(model, dataset, device)

    def plain():
        model.fit(**training.data, verbose=0)

    def under_the_clock():
        clock = Clock(batch_size, samples, 1, training.synchronize)
        model.fit(**training.data, verbose=0, callbacks=TimedFit(model, clock))

    return interleaved_ratios(under_the_clock, plain, pairs)


def cifar100_share(batch_size: int = 32, rounds: int = 3) -> float:
    """Median over rounds of the pipeline's rate divided by that of a copy of all images at once."""
    images, labels = cifar100.load_data(OPTIONS)
    dataset = tensorflow.in_memory_batches(images, labels, batch_size)
    dataset = tensorflow.without_autotuning(dataset)
    return statistics.median(
        timed(images.copy) / timed(lambda: consume(dataset)) for _ in range(rounds)
    )


def food101_share(photographs: int = 1024, rounds: int = 3) -> float:
    """Median over rounds of the pipeline's rate divided by cores times that of one thread."""
    data = food101.load_data(OPTIONS).take(photographs)
    one_thread = tf.data.Options()
    one_thread.threading.private_threadpool_size = 1
    one_thread.autotune.enabled = False
    alone = data.take(photographs // 4).map(food101.decode).with_options(one_thread)
    batches = tensorflow.without_autotuning(food101.make_batches(data, 32))
    shares = []
    for _ in range(rounds):
        rate_of_one = photographs // 4 / timed(lambda: consume(alone))
        rate = photographs / timed(lambda: consume(batches))
        shares.append(rate / rate_of_one / harness.machine.usable_cores())
    return statistics.median(shares)


def consume(dataset) -> None:
    for _ in dataset:
        pass


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"training loop: {in_words(loop_ratios())} (target 0.98)", flush=True)
    for size in (32, 1024):
        print(f"CIFAR100 / memory copy, batch size {size}: {cifar100_share(size):.3f}", flush=True)
    print(f"Food101 / cores x one thread: {food101_share():.2f} (target 0.85)")
