"""The CUDA library without a GPU: its build, its kernels run on the CPU, its twins."""

import ctypes
import re

import numpy as np
import pytest
import torch
from native_build import CSRC, arithmetic, once, run, tools, with_cmake
from native_checks import (
    LOSSES,
    OnDevice,
    assert_is,
    poison,
    random_run,
)  # fmt: skip

from liftcore.config import LiftConfig
from liftcore.kernels import adamw, native
from liftcore.kernels import segment_batch as segmenting
from liftcore.objectives.sample import IGNORE
from liftcore.objectives.segments import Segments
from liftcore.segments import cut
from liftcore.training.batch import make

needs_cuda = pytest.mark.skipif(
    tools("nvcc", "cmake") is not None, reason=str(tools("nvcc", "cmake"))
)
needs_gxx = pytest.mark.skipif(tools("g++") is not None, reason=str(tools("g++")))
needs_both = pytest.mark.skipif(tools("nvcc", "g++") is not None, reason=str(tools("nvcc", "g++")))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return once(tmp_path_factory, "cuda-library", with_cmake)


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    return ctypes.CDLL(str(once(tmp_path_factory, "segments-shim", arithmetic) / "shim.so"))


@needs_cuda
def test_the_library_builds_and_loads_without_a_gpu(built):
    library = native.load(built / native.NAME)
    for name in native.SIGNATURES:
        assert getattr(library, name)
    if not torch.cuda.is_available():
        code = library.liftcore_probe(0)
        assert code and library.liftcore_error(code)
    # The CUDA runtime is inside, so that torch's own version does not matter.
    assert not re.search(rb"libcudart\.so", (built / native.NAME).read_bytes())


@needs_cuda
def test_no_kernel_spills_and_all_architectures_are_there(built):
    log = (built / "log.txt").read_text()
    pattern = (
        r"Compiling entry function '(\S+)' for '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes "
        r"spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    compiled = re.findall(pattern, log, flags=re.S)
    kernels = {
        (re.search(r"segment_batch|lora_norm|lora_update", k)[0], a) for k, a, *_ in compiled
    }
    names = ("segment_batch", "lora_norm", "lora_update")
    architectures = ("sm_80", "sm_90", "sm_100")
    assert kernels == {(name, arch) for name in names for arch in architectures}
    assert len(compiled) == 3 * (1 + 3 + 5)
    for kernel, arch, stack, stores, loads, registers in sorted(compiled):
        print(f"{arch:<7} {registers:>3} registers  {kernel}")
        assert (stack, stores, loads) == ("0", "0", "0"), kernel
        # 64 registers a thread let a whole SM of 2048 threads run half full or better.
        assert int(registers) <= 64, kernel
    assert "arch=compute_100,code=compute_100" in log, "no PTX for newer GPUs"


@needs_cuda
def test_memory_is_read_and_written_16_bytes_at_a_time(tmp_path):
    ptx = tmp_path / "update.ptx"
    run(["nvcc", "-ptx", "-arch=compute_90", "-std=c++17", CSRC / "lora_update.cu", "-o", ptx])
    text = ptx.read_text()
    # p, m, v, gradient and shadow: 14 words of 8 fp32 + 2 of bf16 at least in each of 5 kernels.
    assert len(re.findall(r"ld\.global\.cg\.v4", text)) >= 5 * 7
    assert len(re.findall(r"st\.global\.cg\.v4", text)) >= 5 * 8


KINDS = {"int64_t": ctypes.c_int64, "int": ctypes.c_int, "double": ctypes.c_double}


def test_python_and_c_agree_on_the_interface():
    header = (CSRC / "library.h").read_text()
    assert int(re.search(r"LIFTCORE_INTERFACE (\d+)", header)[1]) == native.INTERFACE
    declared = {}
    for name, parameters in re.findall(r"LIFTCORE_API int (\w+)\((.*?)\);", header, flags=re.S):
        types = [p.strip().rsplit(" ", 1)[0] for p in parameters.split(",") if p.strip()]
        declared[name] = [
            ctypes.c_void_p if "*" in t or t == "cudaStream_t" else KINDS[t] for t in types
        ]
    del declared["liftcore_interface"]
    assert declared == native.SIGNATURES
    header = (CSRC / "lora_adamw.h").read_text()
    assert int(re.search(r"CHUNK = (\d+)", header)[1]) == adamw.CHUNK
    scratch = re.search(r"struct Scratch \{(.*?)\n\};", header, flags=re.S)[1]
    assert len(re.findall(r"^    (?:float|int|unsigned) \w+;", scratch, flags=re.M)) == 6
    assert "float unused[2];" in scratch and adamw.SCRATCH == 6 + 2


@needs_gxx
def test_a_library_of_another_version_is_refused(tmp_path, monkeypatch):
    def make(name, text):
        (tmp_path / f"{name}.cpp").write_text(text)
        file = tmp_path / f"{name}.so"
        run(["g++", "-shared", "-fPIC", tmp_path / f"{name}.cpp", "-o", file])
        return file

    old = make("old", 'extern "C" int liftcore_interface() { return 0; }')
    with pytest.raises(OSError, match="rebuild"):
        native.load(old)
    with pytest.raises(OSError, match="not a library of liftcore"):
        native.load(make("other", "int f() { return 0; }"))
    monkeypatch.setenv("LIFTCORE_CUDA_LIBRARY", str(old))
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)
    ok, why = native.status()
    assert not ok and "rebuild" in why


def test_without_a_library_the_status_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("LIFTCORE_CUDA_LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)
    ok, why = native.status()
    assert not ok and "none.so" in why


# segments.h against the definition


@needs_gxx
def test_the_arithmetic_is_that_of_segments_and_batch(rng, shim):
    for _ in range(300):
        tokens, config, prefix = random_run(rng)
        size, step, length = config.segment_length, config.start_distance, len(tokens)
        segments = cut(length, config, epoch=1)
        first = int(segments.stop[0]) if config.schedule == "jitter" else size
        n = len(segments)
        numbers = [ctypes.c_int64(v) for v in (length, size, step, first)]
        shim.count.restype = ctypes.c_int64
        assert shim.count(*numbers) == n
        start, stop = np.empty((2, n), dtype=np.int64)
        shim.bounds(*numbers, ctypes.c_int64(n), start.ctypes, stop.ctypes)
        assert (start == segments.start).all() and (stop == segments.stop).all()

        head, width = np.array(prefix, dtype=np.int64), len(prefix) + size
        for i in {0, 1, n // 2, n - 2, n - 1} & set(range(n)):
            weights = np.full(stop[i] - start[i], np.nan, dtype=np.float32)
            ids, labels = np.full((2, width), -7, dtype=np.int64)
            row, scored = np.full(width, np.nan, dtype=np.float32), np.empty(2, dtype=np.int64)
            shim.one(
                *numbers, LOSSES.index(config.overlap_loss), ctypes.c_int64(i), tokens.ctypes,
                head.ctypes, ctypes.c_int64(len(prefix)), weights.ctypes, ids.ctypes,
                labels.ctypes, row.ctypes, scored.ctypes,
            )  # fmt: skip
            assert (weights == segments.weights[i]).all(), config
            made = make([Segments(tokens, config, prefix).samples(1)[i]])
            used = made.input_ids.shape[1]
            assert (ids[:used] == made.input_ids[0].numpy()).all() and not ids[used:].any()
            assert (labels[:used] == made.labels.numpy()).all()
            assert (labels[used:] == IGNORE).all()
            assert (row[:used] == made.weights.numpy()).all() and not row[used:].any()
            assert np.array_equal(np.arange(*scored), made.hard_rows.numpy())


# segment_batch


def test_segment_batch_makes_every_batch_of_a_run(rng, path):
    for _ in range(40):
        tokens, config, prefix = random_run(rng, longest=150)
        run = OnDevice(tokens, config, prefix)
        for n, samples in enumerate(run.samples):
            assert int(run.counter[0]) == n
            poison(run.buffers)
            assert_is(run.next(), samples, len(prefix) + run.size)
        # A step too many: nothing is scored and the counter stands still.
        poison(run.buffers)
        out = run.next()
        assert not out.count.any() and not out.weights.any() and not out.input_ids.any()
        assert (out.labels == IGNORE).all() and not out.weights.flatten()[out.row_index].any()
        assert run.counter.tolist() == [len(run.samples), 0]


def test_segment_batch_goes_on_where_the_counter_says(rng, path):
    config = LiftConfig(segment_length=16, batch_size=3, epochs=3)
    tokens = rng.integers(0, 99, size=200)
    run = OnDevice(tokens, config, [1])
    n = int(rng.integers(1, len(run.samples)))
    run.counter[0] = n
    assert_is(run.next(), run.samples[n], 17)
    run.counter[0] = -1
    assert not run.next().count.any() and int(run.counter[0]) == -1


def test_segment_batch_writes_no_more_rows_than_there_is_place_for(rng, path):
    config = LiftConfig(segment_length=32, batch_size=2)
    tokens = rng.integers(0, 99, size=200)
    run = OnDevice(tokens, config, [1])
    around_it = torch.full((200,), -5)
    few = run.buffers._replace(row_index=around_it[10:30])
    segmenting.segment_batch(run.tables, run.counter, few, size=32, stride=32)
    assert_is(few, run.samples[0], 33)
    assert (around_it[:10] == -5).all() and (around_it[30:] == -5).all()


def small_run(**changes):
    run = OnDevice(np.arange(50), LiftConfig(segment_length=8, batch_size=2), [1])
    tables, out, step = run.tables, run.buffers, run.counter
    for name, value in changes.items():
        if name == "step":
            step = value
        elif name in tables._fields:
            tables = tables._replace(**{name: value})
        else:
            out = out._replace(**{name: value})
    return tables, step, out


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (dict(tokens=torch.zeros(50)), {}, "tokens is torch.float32"),
        (dict(tokens=torch.zeros(0, dtype=torch.int64)), {}, "tokens"),
        (dict(tokens=torch.zeros(100, dtype=torch.int64)[::2]), {}, "not contiguous"),
        (dict(prefix=torch.zeros(1)), {}, "prefix"),
        (dict(segments=torch.zeros(3, 2)), {}, "segments"),
        (dict(segments=torch.zeros(6, dtype=torch.int32)), {}, "segments"),
        (dict(first=torch.zeros(1, dtype=torch.int32)), {}, "first"),
        (dict(step=torch.zeros(1, dtype=torch.int64)), {}, "step"),
        (dict(labels=torch.zeros(2, 8, dtype=torch.int64)), {}, "labels"),
        (dict(weights=torch.zeros(2, 9, dtype=torch.float64)), {}, "weights"),
        (dict(row_index=torch.zeros(19, dtype=torch.int64)), {}, "row_index"),
        (dict(row_index=torch.zeros(4, dtype=torch.int32)), {}, "row_index"),
        (dict(count=torch.zeros(1)), {}, "count"),
        (dict(input_ids=torch.zeros(2, 9, dtype=torch.int64, device="meta")), {}, "is on meta"),
        ({}, dict(loss="some"), "unknown loss"),
        ({}, dict(stride=9), "stride"),
        ({}, dict(stride=0), "stride"),
    ],
)
def test_segment_batch_refuses_what_does_not_fit(change, options, message):
    with pytest.raises(ValueError, match=message):
        segmenting.segment_batch(*small_run(**change), **{"size": 8, "stride": 8, **options})
