"""The gradient of a step as one graph over all bags: what the trainer's ways are measured by."""

import torch


def one_graph(forward, packs, loss):
    """As mil.training.steps.accumulate, but all activations live until one backward pass."""
    outputs = [forward(pack()) for pack in packs]
    heads = torch.cat([out.heads for out in outputs], dim=1)
    penalty = torch.cat([out.penalty for out in outputs]).mean()
    total = loss.of(outputs[0].weights, heads) + penalty
    loss.scaled(total).backward()
    return total.detach()
