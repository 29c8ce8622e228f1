"""Layers in plain NumPy, and the two nets of the demo, each with and without batch norm.

Every layer has the interface of `fastbn.BatchNorm`: ``layer(x)`` runs it and keeps what the way back needs,
``layer.backward(dy)`` returns dx and sets `dweight` and `dbias`, which belong to `weight` and `bias`. Layers work in
the dtype of their weights: the demo trains in float32, the tests check gradients in float64.

Images are channels-last, (N, H, W, C), because the matrix product of a convolution comes out so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import fastbn

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Layer(Protocol):
    """What a net is made of."""

    def __call__(self, x: Array) -> Array:
        """Return y."""

    def backward(self, dy: Array) -> Array:
        """Return dx of the last call, and set the gradients of the parameters."""


class Linear:
    """``y = x @ weight + bias``; x is (N, I), or anything that flattens to it, y is (N, O).

    Parameters
    ----------
    weight : array, shape (I, O)
    use_bias : bool
        Before batch norm a bias has no effect: the subtraction of the mean removes it.
    """

    def __init__(self, weight: Array, use_bias: bool = True) -> None:
        self.weight = weight
        self.bias = np.zeros(weight.shape[-1], weight.dtype) if use_bias else None
        self.dweight: Array | None = None
        self.dbias: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y."""
        self._shape = x.shape
        self._x = x.reshape(x.shape[0], -1)
        y: Array = self._x @ self.weight
        if self.bias is not None:
            y += self.bias
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx; set `dweight`, `dbias`."""
        self.dweight = self._x.T @ dy
        self.dbias = None if self.bias is None else dy.sum(0)
        dx: Array = dy @ self.weight.T
        return dx.reshape(self._shape)


class Conv2d:
    """Convolution with zero padding that keeps the image's size at stride 1: windows as rows, then one product.

    Parameters
    ----------
    weight : array, shape (K, K, I, O)
        K is odd.
    stride : int
    use_bias : bool
        As in `Linear`.
    """

    def __init__(self, weight: Array, stride: int = 1, use_bias: bool = True) -> None:
        self.weight = weight
        self.stride = stride
        self.bias = np.zeros(weight.shape[-1], weight.dtype) if use_bias else None
        self.dweight: Array | None = None
        self.dbias: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y."""
        kernel, _, _, outputs = self.weight.shape
        margin = kernel // 2
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        self._padded_shape: tuple[int, ...] = padded.shape
        windows = _windows(padded, kernel)[:, :: self.stride, :: self.stride]
        self._images = windows.shape[:3]
        # The one copy: of nine numbers a pixel and channel, for a 3 x 3 kernel.
        self._rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, self.weight[..., 0].size)
        y: Array = self._rows @ self.weight.reshape(-1, outputs)
        if self.bias is not None:
            y += self.bias
        return y.reshape(*self._images, outputs)

    def backward(self, dy: Array) -> Array:
        """Return dx; set `dweight`, `dbias`."""
        kernel, _, inputs, outputs = self.weight.shape
        rows = dy.reshape(-1, outputs)
        self.dweight = (self._rows.T @ rows).reshape(self.weight.shape)
        self.dbias = None if self.bias is None else rows.sum(0)
        windows = (rows @ self.weight.reshape(-1, outputs).T).reshape(*self._images, kernel, kernel, inputs)
        padded = np.zeros(self._padded_shape, dy.dtype)
        height, width = (n * self.stride for n in self._images[1:])
        for i in range(kernel):
            for j in range(kernel):
                padded[:, i : i + height : self.stride, j : j + width : self.stride] += windows[..., i, j, :]
        margin = kernel // 2
        return padded[:, margin : padded.shape[1] - margin, margin : padded.shape[2] - margin]


def _windows(images: Array, size: int) -> Array:
    """Return (N, H, W, I, size, size), a view of every window of (N, H, W, I)."""
    return sliding_window_view(images, (size, size), axis=(1, 2))


class Sigmoid:
    """``1 / (1 + exp(-x))``, written with tanh, which cannot overflow."""

    def __call__(self, x: Array) -> Array:
        """Return y."""
        self._y: Array = 0.5 * np.tanh(0.5 * x) + 0.5
        return self._y

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        dx: Array = dy * self._y * (1 - self._y)
        return dx


class ReLU:
    """``max(x, 0)``."""

    def __call__(self, x: Array) -> Array:
        """Return y."""
        y: Array = np.maximum(x, 0)
        self._active = x > 0
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        dx: Array = dy * self._active
        return dx


class Net:
    """Layers in a row.

    Parameters
    ----------
    layers : sequence of Layer
        The input of the last activation among them is kept in `preactivation` at every call.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.preactivation: Array | None = None
        self._watched = max(i for i, layer in enumerate(self.layers) if isinstance(layer, Sigmoid | ReLU))

    def __call__(self, x: Array) -> Array:
        """Return the logits."""
        for i, layer in enumerate(self.layers):
            if i == self._watched:
                self.preactivation = x
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Return the gradient by the net's input; set the gradients of all parameters."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def train(self, mode: bool = True) -> None:
        """Let batch norm use the statistics of the batch, or with ``mode=False`` the running ones."""
        for layer in self.layers:
            if isinstance(layer, fastbn.BatchNorm):
                layer.train(mode)

    def parameters(self) -> list[tuple[Layer, str]]:
        """Return layer and name of every parameter; its gradient has the name with a d in front."""
        names = ("weight", "bias")
        return [(layer, name) for layer in self.layers for name in names if getattr(layer, name, None) is not None]


class SGD:
    """Stochastic gradient descent with momentum, ``v = momentum * v - rate * gradient; parameter += v``."""

    def __init__(self, net: Net, rate: float, momentum: float = 0.9) -> None:
        self.rate = rate
        self.momentum = momentum
        self._parameters = [(layer, "d" + name, getattr(layer, name)) for layer, name in net.parameters()]
        self._velocities = [np.zeros_like(parameter) for _, _, parameter in self._parameters]

    def step(self) -> None:
        """Move every parameter, in place."""
        for (layer, gradient, parameter), velocity in zip(self._parameters, self._velocities, strict=True):
            velocity *= self.momentum
            velocity -= self.rate * getattr(layer, gradient)
            parameter += velocity


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of softmax(logits), and its gradient by the logits.

    Parameters
    ----------
    logits : array, shape (N, classes)
    labels : array of int, shape (N,)
    """
    shifted = logits - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(labels.size)
    gradient: Array = np.exp(log_softmax)
    gradient[rows, labels] -= 1
    gradient /= labels.size
    return float(-log_softmax[rows, labels].mean()), gradient


def mlp(rng: np.random.Generator, batch_norm: bool, dtype: Any = np.float32) -> Net:
    """Return 64 inputs, three hidden layers of 100 sigmoids, 10 classes: the net of the paper's section 4.1.

    Weights are drawn as Glorot and Bengio (2010) propose. Batch norm stands before each sigmoid and draws nothing, so
    that the nets with and without it begin with the same weights.
    """
    sizes = [64, 100, 100, 100]
    layers: list[Layer] = []
    for inputs, outputs in pairwise(sizes):
        weight = rng.normal(0, np.sqrt(2 / (inputs + outputs)), (inputs, outputs)).astype(dtype)
        layers.append(Linear(weight, use_bias=not batch_norm))
        if batch_norm:
            layers.append(fastbn.BatchNorm(outputs, dtype=dtype))
        layers.append(Sigmoid())
    return Net([*layers, _classifier(rng, sizes[-1], dtype)])


def convnet(rng: np.random.Generator, batch_norm: bool, dtype: Any = np.float32) -> Net:
    """Return 8 x 8 images, three 3 x 3 convolutions with ReLU, 10 classes.

    The convolutions have 16, 32 and 64 channels; the second and the third halve the image with stride 2. Weights are
    drawn as He et al. (2015) propose. Batch norm stands before each ReLU, as in `mlp`.
    """
    layers: list[Layer] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        weight = rng.normal(0, np.sqrt(2 / (9 * inputs)), (3, 3, inputs, outputs)).astype(dtype)
        layers.append(Conv2d(weight, stride, use_bias=not batch_norm))
        if batch_norm:
            layers.append(fastbn.BatchNorm(outputs, axis=-1, dtype=dtype))
        layers.append(ReLU())
    return Net([*layers, _classifier(rng, 64 * 2 * 2, dtype)])


def _classifier(rng: np.random.Generator, inputs: int, dtype: Any) -> Linear:
    return Linear(rng.normal(0, np.sqrt(1 / inputs), (inputs, 10)).astype(dtype))


Builder: TypeAlias = Callable[[np.random.Generator, bool], Net]
