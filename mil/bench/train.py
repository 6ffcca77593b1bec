"""How fast a method trains on this machine: against the published loops, and against the limit.

Three sides take turns, a pass over the same bags each: histomil's training pass from features in
memory; the plain loop of mil.bench.plain from CLAM's files; and the bare matrix products of
mil.bench.products. Features are 1024 wide and exact in float16, so that all sides read the same
numbers; weights are float32. Ratios are medians over the turns.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mil.bags import CohortFeatures, TileOrigin
from mil.bench.plain import (
    ClamFiles,
    PlainAcmil,
    PlainMethod,
    PlainMhim,
    plain_step,
    write_clam_file,
)
from mil.bench.products import Widths, bare_products, flops
from mil.config import TrainConfig
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MethodConfig, MhimConfig
from mil.tasks.build import fit_task
from mil.tasks.config import ClassificationConfig
from mil.training.history import History
from mil.training.parts import Part, placed
from mil.training.sampling import Sampler
from mil.training.train import Stage, pick_device

DIM, OUTPUTS = 1024, 2
SIZES = {"": (10_000, 4, 1), "_1k": (1_000, 32, 8)}
"""Suffix of the field: tiles of a bag, bags of a pass, bags of one of histomil's steps."""
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Contest:
    """A method, its published counterpart, and the widths of its products.

    `kept`: the share of a bag that the student of a teacher reads; None without a teacher.
    """

    config: MethodConfig
    plain: Callable[[], PlainMethod]
    widths: Widths
    kept: float | None = None


def contests() -> dict[str, Contest]:
    """Each at its published settings; MHIM at those for Camelyon16, where half a bag is masked."""
    mhim = MhimConfig()
    hidden, attention = 512, 128
    return {
        "abmil": Contest(
            AbmilConfig(),
            lambda: PlainAcmil(DIM, OUTPUTS, branches=1, top_k=0, drop=0.0),
            Widths(DIM, hidden, attention, gates=2, branches=1),
        ),
        "acmil": Contest(
            AcmilConfig(),
            lambda: PlainAcmil(DIM, OUTPUTS, branches=5, top_k=10, drop=0.6),
            Widths(DIM, hidden, attention, gates=2, branches=5),
        ),
        "mhim": Contest(
            mhim,
            lambda: PlainMhim(
                DIM,
                OUTPUTS,
                random=mhim.mask_random,
                high=mhim.mask_high,
                share=mhim.high_share,
                dropout=mhim.dropout,
            ),
            Widths(DIM, hidden, attention, gates=1, branches=1),
            kept=1 - mhim.mask_random,
        ),
    }


@dataclass(frozen=True)
class Measured:
    """`seconds` a bag of each side, turn by turn; `reading` is the plain loop's without steps.

    Ratios are taken within a turn, whose sides ran right after each other, before their median.
    """

    method: str
    tiles: int
    seconds: Mapping[str, Sequence[float]]
    gflop: float

    @property
    def faster(self) -> float:
        """Bags a second over the plain loop's."""
        return self._ratio("plain", "ours")

    @property
    def over_products(self) -> float:
        return self._ratio("ours", "products")

    def row(self) -> dict[str, object]:
        seconds = {side: statistics.median(turns) for side, turns in self.seconds.items()}
        return {
            "method": self.method,
            "tiles": self.tiles,
            "bags/s": round(1 / seconds["ours"], 2),
            "plain loop": round(1 / seconds["plain"], 2),
            "of which reading": f"{self._ratio('reading', 'plain'):.0%}",
            "ratio": round(self.faster, 2),
            "products alone": round(1 / seconds["products"], 2),
            "step / products": round(self.over_products, 2),
            "GFLOP/s": round(self.gflop / seconds["products"]),
        }

    def _ratio(self, one: str, other: str) -> float:
        pairs = zip(self.seconds[one], self.seconds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def bench_training(*, device: str = "auto", repeats: int = 7) -> list[Measured]:
    """All contests at all sizes; some minutes on a CPU."""
    turns = [(name, suffix) for name in contests() for suffix in SIZES]
    return [
        measure(name, *SIZES[suffix], device=device, repeats=repeats)
        for name, suffix in tqdm(turns, unit="contest", mininterval=0)
    ]


def measure(
    name: str, tiles: int, bags: int, bags_per_step: int, *, device: str, repeats: int
) -> Measured:
    contest = contests()[name]
    config = TrainConfig(
        bags_per_step=bags_per_step,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        device=device,  # pyright: ignore[reportArgumentType]
    )
    on = pick_device(config)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(tiles, DIM, generator=generator).half() for _ in range(bags)]
    kept = None if contest.kept is None else round(tiles * contest.kept)
    products = bare_products(tiles, kept, contest.widths, on)
    with tempfile.TemporaryDirectory() as folder:
        files = _clam_files(features, Path(folder))
        sides = {
            "ours": _our_pass(contest.config, features, config, Path(folder)),
            "plain": _plain_pass(contest.plain(), files, on),
            "reading": lambda: [None for _ in DataLoader(files, batch_size=1)],
            "products": lambda: [products() for _ in range(bags)],
        }
        seconds = _take_turns(sides, repeats, on)
    return Measured(
        method=name,
        tiles=tiles,
        seconds={side: [turn / bags for turn in turns] for side, turns in seconds.items()},
        gflop=flops(tiles, kept, contest.widths) / 1e9,
    )


def as_record(measured: list[Measured]) -> dict[str, float]:
    """`<method>_ratio`, `<method>_ratio_1k` and `<method>_vs_gemm` (at the larger bags)."""
    suffixes = {tiles: suffix for suffix, (tiles, *_) in SIZES.items()}
    record = {}
    for each in measured:
        suffix = suffixes[each.tiles]
        record[f"{each.method}_ratio{suffix}"] = round(each.faster, 3)
        record[f"{each.method}_vs_gemm{suffix}"] = round(each.over_products, 3)
    return record


def as_table(measured: list[Measured]) -> str:
    return pd.DataFrame([each.row() for each in measured]).to_string(index=False)


def _our_pass(
    method: MethodConfig, features: list[torch.Tensor], config: TrainConfig, folder: Path
) -> Callable[[], object]:
    slides = [f"s{i}" for i in range(len(features))]
    table = pd.DataFrame(
        {
            "slide_ids": [(s,) for s in slides],
            "label": [str(i % OUTPUTS) for i in range(len(slides))],
        },
        index=slides,
    )
    task = fit_task(ClassificationConfig(label="label"), table)
    cohort = CohortFeatures(
        dict(zip(slides, features, strict=True)),
        {slide: slide for slide in slides},
        TileOrigin("bench", "0", "none", 0.5, 224),
    )
    device = pick_device(config)
    (part,) = placed([Part(table, task.encode(table), cohort)], device)
    model = build_method(method, DIM, OUTPUTS).to(device)
    sampler = Sampler.of(task, part, config)
    history = History(folder, shown=False)
    return Stage(model, task, (part, part), config, sampler, history).training_pass


def _clam_files(features: list[torch.Tensor], folder: Path) -> ClamFiles:
    paths = [folder / f"{i}.h5" for i in range(len(features))]
    for path, bag in zip(paths, features, strict=True):
        write_clam_file(bag.float().numpy(), path)
    return ClamFiles(paths, [i % OUTPUTS for i in range(len(paths))])


def _plain_pass(model: PlainMethod, files: ClamFiles, device: torch.device) -> Callable[[], object]:
    model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=1e-5)

    def run() -> None:
        for features, label in DataLoader(files, batch_size=1, shuffle=True):
            plain_step(model, optimizer, (features.to(device), label.to(device)))

    return run


def _take_turns(
    sides: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """The seconds of each side's passes, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds
