"""Train a small convolutional net on scikit-learn's digits with PyTorch, batch norm by fastbn.

python examples/torch_digits.py
"""

import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from fastbn.adapters.torch import convert

TRAIN, BATCH, EPOCHS = 1437, 64, 8

torch.manual_seed(0)
data = load_digits()
order = torch.randperm(len(data.target))
x = torch.tensor(data.images / 16, dtype=torch.float32)[order].unsqueeze(1)
target = torch.tensor(data.target)[order]

model = convert(
    nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

started = time.perf_counter()
for epoch in range(1, EPOCHS + 1):
    model.train()
    for batch in torch.randperm(TRAIN).split(BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[batch]), target[batch])
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(x[TRAIN:]).argmax(1) == target[TRAIN:]).float().mean().item()
    print(f"epoch {epoch}: test accuracy {accuracy:.4f}, {time.perf_counter() - started:.1f} s")
assert accuracy > 0.97, accuracy
