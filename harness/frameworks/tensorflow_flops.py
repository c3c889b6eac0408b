"""Floating-point operations of a training step with TensorFlow, counted on its graph."""

import math

import tensorflow as tf


def count_flops(model, features, labels) -> int:
    """Operations of a forward and backward pass: matrix products and convolutions, from shapes.

    A multiplication and an addition are two operations. The pass is traced, not run; what no
    gradient depends on (such as the gradient of the first convolution's input) is not counted.
    """

    @tf.function
    def gradients(features, labels):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(features, labels, model(features, training=True))
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    graph = gradients.get_concrete_function(features, labels).graph
    total, seen = 0, set()
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name not in seen:
            seen.add(operation.name)
            total += flops(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return total


def flops(operation) -> int:
    """Operations of one node of a graph whose shapes are known; 0 if it multiplies nothing."""
    shapes = [tensor.shape for tensor in operation.inputs]
    if operation.type in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        # All three multiply every element of the convolution's result with a filter's patch.
        kernel, result = {
            "Conv2D": (shapes[1], operation.outputs[0].shape),
            "Conv2DBackpropInput": (shapes[1], shapes[-1]),
            "Conv2DBackpropFilter": (operation.outputs[0].shape, shapes[-1]),
        }[operation.type]
        return 2 * math.prod(result) * math.prod(kernel[:3])
    if operation.type == "MatMul":
        shared = shapes[0][0 if operation.get_attr("transpose_a") else 1]
        return 2 * math.prod(operation.outputs[0].shape) * shared
    if operation.type.startswith("BatchMatMul"):
        shared = shapes[0][-2 if operation.get_attr("adj_x") else -1]
        return 2 * math.prod(operation.outputs[0].shape) * shared
    if operation.type == "Einsum" and len(shapes) == 2:
        terms = operation.get_attr("equation").decode().partition("->")[0].split(",")
        sizes = {}
        for term, shape in zip(terms, shapes, strict=True):
            sizes |= zip(term, shape, strict=True)
        return 2 * math.prod(sizes.values())
    return 0
