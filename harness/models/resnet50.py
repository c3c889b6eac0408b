"""Keras' ResNet50 for images of 0 to 255."""

import keras


def resnet50(image_size: int, num_classes: int) -> keras.Model:
    """An untrained model from uint8 images (N, size, size, 3) to probabilities (N, num_classes).

    The images are scaled within the model, so that the device does it.
    """
    images = keras.Input((image_size, image_size, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    network = keras.applications.ResNet50(
        weights=None, input_shape=scaled.shape[1:], classes=num_classes
    )
    return keras.Model(images, network(scaled))
