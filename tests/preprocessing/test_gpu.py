import logging
import subprocess
import sys
import types

import pytest
import torch

from preprocessing.config import EncoderConfig
from preprocessing.encoders import gpu
from preprocessing.encoders.gpu import Uploader, choose_device, choose_precision
from preprocessing.encoders.gpu_claim import claim
from preprocessing.encoders.registry import REGISTRY, load_encoder
from preprocessing.errors import ConfigError

CLAIMING = """
import sys, time
from pathlib import Path
from preprocessing.encoders.gpu_claim import claim
print(claim(sys.argv[2:], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claimer(tmp_path):
    """Starts a process that claims one of some devices and holds it until it is told to end."""
    running = []

    def start(*devices):
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIMING, str(tmp_path), *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in running:
        process.kill()
        process.wait(timeout=30)
        process.stdin.close()
        process.stdout.close()


class TestClaim:
    def test_processes_spread_over_the_devices_and_then_share_them(self, claimer):
        found = [claimer("one", "two")[1] for _ in range(4)]
        assert found == [0, 1, 0, 1]

    def test_a_killed_process_holds_nothing(self, claimer):
        process, first = claimer("one", "two")
        process.kill()
        process.wait(timeout=30)
        assert (first, claimer("one", "two")[1]) == (0, 0)

    def test_locks_of_other_users_are_respected(self, tmp_path, claimer):
        """Their files can be opened for reading alone."""
        _, taken = claimer("one", "two")
        for lock in tmp_path.iterdir():
            lock.chmod(0o444)
        assert (taken, claim(["one", "two"], tmp_path)) == (0, 1)


class TestDevice:
    @pytest.fixture
    def four_gpus(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda number: types.SimpleNamespace(uuid=f"uuid-{number}"),
        )
        monkeypatch.setattr(gpu.tempfile, "gettempdir", lambda: str(tmp_path))
        gpu._claimed.cache_clear()
        yield
        gpu._claimed.cache_clear()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu(self):
        assert choose_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="no GPU; use 'auto' or 'cpu'"):
            load_encoder(EncoderConfig(device="cuda"))

    def test_one_gpu_needs_no_claim(self, four_gpus, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert (choose_device("auto"), choose_device("cuda")) == ("cuda", "cuda")
        assert choose_device("cpu") == "cpu"
        assert not list(tmp_path.iterdir())

    def test_one_of_several_is_claimed_once(self, four_gpus, claimer, caplog):
        claimer("uuid-0", "uuid-1")
        with caplog.at_level(logging.INFO, "preprocessing.encoders.gpu"):
            assert (choose_device("auto"), choose_device("auto")) == ("cuda:1", "cuda:1")
        assert caplog.messages == ["of 4 GPUs this process uses number 1 (uuid-1)"]


class TestPrecision:
    @pytest.mark.parametrize(
        ("wanted", "name", "on_cpu", "on_gpu"),
        [
            ("auto", "uni", "float32", "float16"),
            ("auto", "uni2-h", "float32", "bfloat16"),
            ("auto", "lite0", "float32", "float16"),
            ("float32", "uni", "float32", "float32"),
            ("bfloat16", "uni", "bfloat16", "bfloat16"),
        ],
    )
    def test_auto_follows_device_and_row(self, monkeypatch, wanted, name, on_cpu, on_gpu):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        found = [choose_precision(wanted, REGISTRY[name], gpu=gpu) for gpu in (False, True)]
        assert found == [on_cpu, on_gpu]

    def test_a_gpu_that_lacks_bfloat16(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        assert choose_precision("auto", REGISTRY["uni2-h"], gpu=True) == "float16"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_upload_is_ready_for_the_computation_that_follows():
    upload = Uploader(torch.device("cuda"))
    batches = [torch.full((64, 224, 224, 3), n, dtype=torch.uint8).pin_memory() for n in range(8)]
    sums = [upload(batch).float().mean() for batch in batches]
    assert torch.stack(sums).tolist() == list(range(8))
