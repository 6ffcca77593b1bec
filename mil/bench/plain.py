"""The training loops that the field publishes, as the opponent of `histomil bench train`.

One bag a step from a DataLoader without workers (what CLAM sets on a CPU); every step opens a file
as CLAM writes it: HDF5, float32, grown batch by batch in chunks of one row, coordinates beside the
features. The models compute what the published ones do, no more slowly than needed:

    ABMIL, ACMIL  embedding, gated attention of one or K branches (ACMIL's repository)
    MHIM          teacher and student embed every tile, then the student's are gathered; masks are
                  built from sorted ids as Python sets (MHIM-MIL's repository)

The computation equals histomil's: tests compare losses and gradients under the same masks.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

ROWS_PER_WRITE = 256
COORDINATE_STRIDE_PX0 = 256


def write_clam_file(features: NDArray[np.float32], path: Path) -> None:
    """Features (tiles, dim) and coordinates as CLAM's extraction leaves them."""
    places = np.arange(len(features))
    arrays = {
        "features": features,
        "coords": np.stack([places % 100, places // 100], axis=1) * COORDINATE_STRIDE_PX0,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            width = array.shape[1]
            data = file.create_dataset(
                name, (0, width), maxshape=(None, width), chunks=(1, width), dtype=array.dtype
            )
            for start in range(0, len(array), ROWS_PER_WRITE):
                rows = array[start : start + ROWS_PER_WRITE]
                data.resize(start + len(rows), axis=0)
                data[start:] = rows


class ClamFiles(Dataset):
    """(features, label) of one slide a file."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with h5py.File(self.paths[index], "r") as file:
            features = file["features"][:]  # pyright: ignore[reportIndexIssue]
            file["coords"][:]  # pyright: ignore[reportIndexIssue]
        return torch.from_numpy(features), self.labels[index]


class PlainAcmil(nn.Module):
    """ACMIL with gated attention; with one branch and no masking it is the repository's ABMIL."""

    def __init__(self, dim: int, outputs: int, *, branches: int, top_k: int, drop: float) -> None:
        super().__init__()
        self.embedding = nn.Linear(dim, 512, bias=False)
        self.V, self.U = nn.Linear(512, 128), nn.Linear(512, 128)
        self.w = nn.Linear(128, branches)
        self.branch_classifiers = nn.ModuleList(
            nn.Linear(512, outputs) for _ in range(branches if branches > 1 else 0)
        )
        self.slide_classifier = nn.Linear(512, outputs)
        self.top_k, self.drop = top_k, drop

    def loss(self, bag: Tensor, label: Tensor, draws: Tensor | None = None) -> Tensor:
        """`draws` (branches, k): given, or drawn."""
        embedded = functional.relu(self.embedding(bag))
        gate = torch.tanh(self.V(embedded)) * torch.sigmoid(self.U(embedded))
        scores = self.w(gate).transpose(0, 1)
        if self.top_k:
            scores = self._masked(scores, draws)
        attention = functional.softmax(scores, dim=1)
        vectors = attention @ embedded
        slide = self.slide_classifier(attention.mean(dim=0, keepdim=True) @ embedded)
        loss = functional.cross_entropy(slide, label)
        if not self.branch_classifiers:
            return loss
        heads = [head(vectors[i]) for i, head in enumerate(self.branch_classifiers)]
        loss = loss + functional.cross_entropy(torch.stack(heads), label.repeat(len(heads)))
        pairs = len(heads) * (len(heads) - 1) / 2
        for i in range(len(heads)):
            for j in range(i + 1, len(heads)):
                cosine = functional.cosine_similarity(attention[i], attention[j], dim=-1)
                loss = loss + cosine / pairs
        return loss

    def _masked(self, scores: Tensor, draws: Tensor | None) -> Tensor:
        k = min(self.top_k, scores.shape[1])
        best = scores.topk(k, dim=1).indices
        draws = torch.rand(best.shape) if draws is None else draws
        chosen = draws.argsort(dim=1)[:, : math.floor(k * self.drop)]
        keep = torch.ones_like(scores).scatter(1, best.gather(1, chosen), 0)
        return scores.masked_fill(keep == 0, -1e9)

    def after_update(self) -> None:
        pass


class PlainAttention(nn.Module):
    """MHIM's base: plain attention with ReLU, without biases in the attention."""

    def __init__(self, dim: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Linear(dim, 512)
        self.V, self.w = nn.Linear(512, 128, bias=False), nn.Linear(128, 1, bias=False)
        self.classifier = nn.Linear(512, outputs)
        self.dropout = dropout

    def embed(self, bag: Tensor) -> Tensor:
        return functional.dropout(functional.relu(self.embedding(bag)), self.dropout, self.training)

    def pool(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Bag vector (1, 512) and attention (1, tiles)."""
        scores = self.w(functional.relu(self.V(embedded))).transpose(0, 1)
        attention = functional.softmax(scores, dim=-1)
        return attention @ embedded, attention


class PlainMhim(nn.Module):
    """MHIM v1 with random and high masking, at its Camelyon16 settings unless told otherwise."""

    def __init__(
        self, dim: int, outputs: int, *, random: float, high: float, share: float, dropout: float
    ) -> None:
        super().__init__()
        self.student = PlainAttention(dim, outputs, dropout=dropout)
        self.teacher = PlainAttention(dim, outputs, dropout=dropout)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.random, self.high, self.share = random, high, share

    def loss(self, bag: Tensor, label: Tensor, masked: set[int] | None = None) -> Tensor:
        """`masked` ids: given, or drawn."""
        with torch.no_grad():
            self.teacher.eval()
            target, attention = self.teacher.pool(self.teacher.embed(bag))
        masked = self._masked(attention[0]) if masked is None else masked
        kept = list(set(range(len(bag))) - masked)
        vector, _ = self.student.pool(self.student.embed(bag)[torch.tensor(kept)])
        loss = functional.cross_entropy(self.student.classifier(vector), label)
        wanted = functional.softmax(target / 0.1, dim=-1)
        consistency = -(wanted * functional.log_softmax(vector, dim=-1)).sum(dim=-1).mean()
        return loss + 0.1 * consistency

    def _masked(self, attention: Tensor) -> set[int]:
        tiles = len(attention)
        lowest_first = attention.sort().indices
        at_random = lowest_first[torch.randperm(tiles)][: math.ceil(tiles * self.random)]
        candidates = math.ceil(tiles * min(self.high / self.share, 1))
        highest = attention.sort(descending=True).indices[:candidates]
        hard = highest[torch.randperm(candidates)][: math.ceil(self.share * candidates)]
        return set(at_random.tolist()) | set(hard.tolist())

    @torch.no_grad()
    def after_update(self) -> None:
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.mul_(0.9999).add_(student, alpha=0.0001)


PlainMethod = PlainAcmil | PlainMhim


def plain_step(
    model: PlainMethod, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> float:
    """One step on a batch (1, tiles, dim), (1,) of a DataLoader."""
    features, label = batch
    loss = model.loss(features[0], label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.after_update()
    return loss.item()
