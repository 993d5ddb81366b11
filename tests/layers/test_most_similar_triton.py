"""The kernels run on a GPU where there is one, and here in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, so the tests that run kernels without a GPU are
those of this file and of test_most_similar.py, in a process of their own: test_in_interpreter
starts it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import formulas
import numpy as np
import pytest
import torch

from clab_d2.layers.most_similar import MostSimilar
from clab_d2.layers.most_similar import triton as backend
from clab_d2.layers.most_similar.triton import Blocks, is_available, per_reference, search_padded
from clab_d2.layers.roi_pooling import BinInterpolation, bin_interpolation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
# Several tiles and blocks even of small maps; None: the blocks that a GPU takes.
SMALL = {"direct": Blocks(32, 32, 16, 4, 2), "interpolated": Blocks(32, 32, None, 1, 1)}


@pytest.fixture
def device() -> torch.device:
    """Where kernels can run in this process."""
    name = "cpu" if INTERPRETED else "cuda"
    if not is_available(name):
        pytest.skip("no GPU here (test_in_interpreter runs this test without one)")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_interpreter():
    triton = pytest.importorskip("triton")
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 2) and int(np.__version__.split(".")[0]) >= 2:
        pytest.skip("the interpreter of Triton before 3.2 stores nothing with NumPy 2")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    files = [__file__, str(Path(__file__).with_name("test_most_similar.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "test_kernel or test_equals_the_formula and triton", *files]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in run.stdout:
        pytest.skip("the interpreter of this Triton cannot loop with NumPy 2.4 or later")
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^\d+ passed", run.stdout.splitlines()[-1]), run.stdout
    assert "skipped" not in run.stdout, run.stdout


def make_input(lengths, channels, dtype, device, num_rois=1, seed=0):
    """Bins of random RoIs, some of them partly outside the 5 x 14 key map, and reference maps."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num_rois, 2, 2, generator=generator) * torch.tensor([280.0, 110.0]) - 20
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    key_rows = torch.randn(5 * 14, channels, generator=generator).to(dtype)
    references = [torch.randn(length, channels, generator=generator) for length in lengths]
    interpolation = bin_interpolation(boxes, 7, 1 / 16, 2, 5, 14)
    bins = interpolation.of(key_rows.float()).to(dtype)
    return (
        bins.to(device),
        key_rows.to(device),
        BinInterpolation(*(tensor.to(device) for tensor in interpolation)),
        [reference.to(device, dtype) for reference in references],
    )


def assert_most_similar(found, bins, references, k, tolerance):
    assert found.positions.shape == found.cosines.shape == (len(bins), len(references), k)
    assert_each_most_similar(per_reference(found, references), bins, references, k, tolerance)


def assert_each_most_similar(found, bins, references, k, tolerance):
    for one, reference in zip(found, references, strict=True):
        expected = formulas.cosines(bins, reference)
        best = expected.topk(min(k, len(reference)), dim=1)
        close = {"atol": tolerance, "rtol": 0.0}
        torch.testing.assert_close(one.cosines.double(), best.values, **close)
        torch.testing.assert_close(expected.gather(1, one.positions), best.values, **close)
        ascending = one.positions.sort(dim=1).values
        assert (ascending.diff(dim=1) > 0).all(), "a position was taken twice"
        if bins.dtype == torch.float32:
            assert torch.equal(one.positions, best.indices)


@pytest.mark.parametrize("route", ["direct", "interpolated"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_kernel_equals_plain_formula(device, route, k):
    given = make_input([70, 33], 40, torch.float32, device)
    found = search_padded(*given, k, route=route, blocks=SMALL[route])
    assert found.positions.dtype == torch.int64
    assert_most_similar(found, given[0], given[-1], k, 1e-5)


@pytest.mark.parametrize(
    ("route", "dtype"),
    [
        ("direct", torch.float16),
        # The interpreter multiplies bfloat16 matrices as if their bits were integers.
        *([] if INTERPRETED else [("direct", torch.bfloat16)]),
        ("interpolated", torch.float16),
        ("interpolated", torch.bfloat16),
    ],
)
def test_kernel_in_half_precision(device, route, dtype):
    given = make_input([50, 20], 48, dtype, device)
    found = search_padded(*given, 2, route=route, blocks=SMALL[route])
    assert_most_similar(found, given[0], given[-1], 2, TOLERANCE[dtype])


@pytest.mark.parametrize("route", ["direct", "interpolated"])
def test_kernel_of_products_beyond_half_precision(device, route):
    bins, key_rows, interpolation, references = make_input([50, 20], 48, torch.float16, device)
    # A product of two rows is 48 * 60 * 60 and more, and fp16 ends at 65504.
    references = [60 + reference for reference in references]
    key_rows = 60 + key_rows
    bins = interpolation.of(key_rows.float()).half()
    found = search_padded(
        bins, key_rows, interpolation, references, 2, route=route, blocks=SMALL[route]
    )
    assert_most_similar(found, bins, references, 2, TOLERANCE[torch.float16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_with_its_own_blocks(device, dtype):
    given = make_input([30], 32, dtype, device)
    found = backend.try_search(*given, 2)
    assert found is not None
    assert_each_most_similar(found, given[0], given[-1], 2, TOLERANCE[dtype])


@pytest.mark.parametrize("route", ["direct", "interpolated"])
def test_kernel_where_maps_are_smaller_than_k(device, route):
    bins, key_rows, interpolation, references = make_input([1, 40, 3], 16, torch.float32, device)
    found = search_padded(
        bins, key_rows, interpolation, references, 4, route=route, blocks=SMALL[route]
    )
    assert_most_similar(found, bins, references, 4, 1e-5)
    for index, length in ((0, 1), (2, 3)):
        assert (found.cosines[:, index, length:] == -torch.inf).all()
        assert (found.positions[:, index, length:] == 0).all()
    assert found.cosines.softmax(dim=2).isfinite().all()
    shapes = [tuple(one.positions.shape) for one in per_reference(found, references)]
    assert shapes == [(49, 1), (49, 4), (49, 3)]


@pytest.mark.parametrize("route", ["direct", "interpolated"])
def test_kernel_takes_the_lowest_of_equals(device, route):
    generator = torch.Generator().manual_seed(0)
    # Small whole numbers and weights of a quarter: every sum is exact, so equals are equal.
    key_rows = torch.randint(-3, 4, (20, 16), generator=generator).float().to(device)
    distinct = torch.randint(-3, 4, (9, 16), generator=generator).float().to(device)
    rows = torch.randint(20, (40, 4), generator=generator).to(device)
    interpolation = BinInterpolation(rows, torch.full_like(rows, 0.25, dtype=torch.float32))
    # Each of the nine rows nine times over, within a tile and across tiles.
    reference = distinct.repeat(9, 1)
    bins = interpolation.of(key_rows)
    found = search_padded(
        bins, key_rows, interpolation, [reference], 3, route=route, blocks=SMALL[route]
    )
    winner = formulas.cosines(bins, distinct).argmax(dim=1)
    expected = winner[:, None] + torch.tensor([0, 9, 18], device=device)
    assert torch.equal(found.positions[:, 0], expected)


def test_kernel_of_an_all_zero_map_and_bin(device):
    bins, key_rows, interpolation, references = make_input([40], 16, torch.float32, device)
    weights = interpolation.weights.clone()
    weights[5] = 0
    interpolation = BinInterpolation(interpolation.positions, weights)
    bins = interpolation.of(key_rows)
    references = [*references, torch.zeros_like(references[0])]
    for route, blocks in SMALL.items():
        found = search_padded(
            bins, key_rows, interpolation, references, 2, route=route, blocks=blocks
        )
        for cosines, positions in (
            (found.cosines[5], found.positions[5]),
            (found.cosines[:, 1], found.positions[:, 1]),
        ):
            assert (cosines == 0).all()
            assert torch.equal(positions, torch.tensor([0, 1], device=device).expand_as(positions))


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_kernel_keeps_positions_valid_where_features_are_not_numbers(device):
    bins, key_rows, interpolation, references = make_input([40], 16, torch.float32, device)
    bins[3], key_rows[:] = torch.nan, torch.nan
    for route, blocks in SMALL.items():
        found = search_padded(
            bins, key_rows, interpolation, references, 2, route=route, blocks=blocks
        )
        assert ((found.positions >= 0) & (found.positions < 40)).all()


def test_kernel_by_groups_of_references(device, monkeypatch):
    lengths = [20, 12, 25, 50, 10]
    given = make_input(lengths, 16, torch.float32, device)
    options = {"route": "interpolated", "blocks": SMALL["interpolated"]}
    expected = search_padded(*given, 2, **options)
    # Room for 35 positions: two small maps together, and one by itself that is too large.
    monkeypatch.setattr(backend, "CORRELATION_BYTES", 4 * 70 * 35)
    groups = list(backend._groups(lengths, 4 * 70))
    assert groups == [(0, 2), (2, 3), (3, 4), (4, 5)]
    found = search_padded(*given, 2, **options)
    assert torch.equal(found.positions, expected.positions)
    torch.testing.assert_close(found.cosines, expected.cosines)


def test_kernel_needs_no_contiguous_input(device):
    bins, key_rows, interpolation, references = make_input([40], 16, torch.float32, device)
    options = {"route": "interpolated", "blocks": SMALL["interpolated"]}
    expected = search_padded(bins, key_rows, interpolation, references, 2, **options)
    columns = [tensor.T.contiguous().T for tensor in (bins, key_rows, *references, *interpolation)]
    assert not any(tensor.is_contiguous() for tensor in columns)
    interpolation = BinInterpolation(*columns[3:])
    found = search_padded(columns[0], columns[1], interpolation, [columns[2]], 2, **options)
    assert torch.equal(found.positions, expected.positions)
    torch.testing.assert_close(found.cosines, expected.cosines)


def test_kernel_is_not_needed_without_bins(device):
    bins, key_rows, interpolation, references = make_input([40], 16, torch.float32, device)
    interpolation = BinInterpolation(*(tensor[:0] for tensor in interpolation))
    found = search_padded(bins[:0], key_rows, interpolation, references, 2)
    assert found.positions.shape == found.cosines.shape == (0, 1, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("dtype", "route", "blocks"),
    [
        (torch.float32, "interpolated", backend.INTERPOLATED[0]),
        (torch.float32, "direct", backend.DIRECT_SINGLE[0]),
        *((torch.bfloat16, "direct", blocks) for blocks in backend.DIRECT_HALF),
        (torch.float16, "direct", None),
        (torch.bfloat16, "interpolated", None),
    ],
)
def test_full_size_on_gpu(dtype, route, blocks):
    """300 RoIs and 15 maps of 38 x 63, one of another size."""
    if not is_available("cuda"):
        pytest.skip("Triton does not run on this GPU")
    generator = torch.Generator("cuda").manual_seed(0)
    corners = torch.rand(300, 2, 2, device="cuda", generator=generator) * 600
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    interpolation = bin_interpolation(boxes, 7, 1 / 16, 2, 38, 63)
    maps = [
        torch.randn(length, 512, device="cuda", generator=generator).to(dtype)
        for length in [2394] * 15 + [1800]
    ]
    bins = interpolation.of(maps[0].float()).to(dtype)
    try:
        found = search_padded(bins, maps[0], interpolation, maps[1:], 2, route=route, blocks=blocks)
    except Exception as error:
        if type(error).__name__ == "OutOfResources" and blocks is not None:
            pytest.skip(f"this GPU is too small for {blocks}")
        raise
    for one, reference in zip(per_reference(found, maps[1:]), maps[1:], strict=True):
        best = formulas.cosines(bins, reference).topk(2, dim=1)
        close = {"atol": TOLERANCE[dtype], "rtol": 0.0}
        torch.testing.assert_close(one.cosines.double(), best.values, **close)
        cosines = formulas.cosines(bins, reference).gather(1, one.positions)
        torch.testing.assert_close(cosines, best.values, **close)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
@pytest.mark.parametrize(
    ("kernel", "capability", "dtype", "blocks", "instruction"),
    [
        ("direct_kernel", 90, "bf16", backend.DIRECT_HALF[0], "wgmma"),
        ("direct_kernel", 80, "fp16", backend.DIRECT_HALF[1], "mma.sync"),
        ("direct_kernel", 80, "fp32", backend.DIRECT_SINGLE[0], "fma.rn.f32"),
        ("interpolated_kernel", 90, "fp32", backend.INTERPOLATED[0], "fma.rn.f32"),
    ],
)
def test_compiles_for_gpus_that_are_not_here(
    kernel, capability, dtype, blocks, instruction, tmp_path, monkeypatch
):
    """The instructions show which units do the arithmetic, and that fp32 stays exact (no tf32)."""
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(backend._kernels(), kernel)
    constants = {"K": 2, "SLOTS": 2, "BLOCK_N": blocks.bins, "BLOCK_P": blocks.positions}
    if blocks.channels is None:
        constants |= {"NUM_SAMPLES": 16}
    else:
        constants |= {"CHANNELS": 512, "BLOCK_C": blocks.channels}
    types = dict.fromkeys(("bins", "table", "correlation"), f"*{dtype}")
    types |= {"sample_positions": "*i64", "sample_weights": "*fp32", "offsets": "*i32"}
    types |= {"inverse_norms": "*fp32", "bin_norms": "*fp32"}
    types |= {"found_positions": "*i64", "found_cosines": "*fp32"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32")
        for name in function.arg_names
    }
    pointers = [i for i, name in enumerate(function.arg_names) if signature[name][0] == "*"]
    aligned = {(index,): [["tt.divisibility", 16]] for index in pointers}
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    if blocks.registers is not None:
        options["maxnreg"] = blocks.registers
    compiled = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert compiled.asm["cubin"]
    assert instruction in compiled.asm["ptx"]
    assert "tf32" not in compiled.asm["ptx"]
    # Of an A100 and of an H100 or H200: 164 and 228 KB, of which two programs share.
    assert compiled.metadata.shared <= (82 if capability == 80 else 114) * 1024


class TestAvailability:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch):
        """Neither the import's result nor a failure is kept from, or for, another test."""
        backend._kernels.cache_clear()
        monkeypatch.setattr(backend, "_failed", set())
        yield
        backend._kernels.cache_clear()

    @pytest.fixture
    def given(self):
        return make_input([40, 30], 16, torch.float32, torch.device("cpu"))

    @pytest.fixture
    def without_triton(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(
            sys.modules, "clab_d2.layers.most_similar.triton_kernels", raising=False
        )

    def test_not_on_a_cpu_and_triton_is_not_even_imported(self, given, monkeypatch):
        def imported():
            raise AssertionError("imports Triton")

        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(backend, "_kernels", imported)
        assert not is_available("cpu")
        assert not is_available(torch.device("meta"))
        assert backend.try_search(*given, 2) is None
        monkeypatch.undo()

    def test_not_without_triton(self, given, monkeypatch, without_triton):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert not is_available("cpu")
        assert backend.try_search(*given, 2) is None
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert not is_available("cuda")

    def test_on_gpus_with_usable_tensor_cores(self, monkeypatch):
        monkeypatch.setattr(backend, "_kernels", lambda: pytest)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert is_available("cuda")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not is_available("cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert not is_available("cuda")
        monkeypatch.undo()

    def test_a_kernel_that_fails_is_reported_once(self, given, monkeypatch, caplog):
        calls = []

        def fails(*arguments):
            calls.append(arguments)
            raise RuntimeError("PTX was compiled\nwith an unsupported toolchain")

        monkeypatch.setattr(backend, "is_available", lambda device: True)
        monkeypatch.setattr(backend, "search", fails)
        for _ in range(3):
            assert backend.try_search(*given, 2) is None
        assert len(calls) == 1
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "on cpu (RuntimeError: PTX was compiled)" in record.getMessage()

    def test_out_of_memory_is_no_reason_to_search_another_way(self, given, monkeypatch):
        def fails(*arguments):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(backend, "is_available", lambda device: True)
        monkeypatch.setattr(backend, "search", fails)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            backend.try_search(*given, 2)

    def test_none_for_what_no_kernel_takes(self, given, monkeypatch):
        monkeypatch.setattr(backend, "is_available", lambda device: True)
        bins, key_rows, interpolation, references = given
        double = [reference.double() for reference in references]
        arguments = (bins.double(), key_rows.double(), interpolation, double)
        assert backend.try_search(*arguments, 2) is None
        assert backend.try_search(*given, backend.MAX_K + 1) is None

    def test_a_gpu_too_small_for_one_choice_of_blocks_takes_the_next(self):
        triton = pytest.importorskip("triton")
        taken = []

        class Kernel:
            """Fits where a program has four warps at most."""

            def __getitem__(self, grid):
                def launch(*arguments, num_warps, **options):
                    if num_warps > 4:
                        raise triton.OutOfResources(232_448, 101_376, "shared memory")
                    taken.append((grid, num_warps, options))

                return launch

        large, medium, small = Blocks(64, 32, 16, 8, 3), Blocks(32, 32, 16, 4, 2), SMALL["direct"]
        backend._launch(Kernel(), 100, 3, (), {"K": 2}, (large, medium, small))
        sizes = {"BLOCK_N": 32, "BLOCK_P": 32, "BLOCK_C": 16}
        assert taken == [((4, 3), 4, {"K": 2, "num_stages": 2, **sizes})]
        with pytest.raises(triton.OutOfResources):
            backend._launch(Kernel(), 100, 3, (), {"K": 2}, (large,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "1 to 8 positions, not 0"),
        ({"k": 9}, "1 to 8 positions, not 9"),
        ({"references": []}, "no kernel for maps of no type"),
        ({"references": [torch.zeros(3, 16, dtype=torch.float64)]}, "torch.float64"),
        ({"references": [torch.zeros(3, 16), torch.zeros(0, 16)]}, "without positions"),
        ({"references": [torch.zeros(3, 8)]}, "differ in channels"),
        ({"bins": torch.zeros(48, 16)}, "48 bins do not fit an interpolation of 49"),
    ],
)
def test_refuses_what_does_not_fit_together(change, message):
    names = ("bins", "key_rows", "interpolation", "references")
    given = make_input([40], 16, torch.float32, torch.device("cpu"))
    arguments = dict(zip(names, given, strict=True), k=2)
    with pytest.raises(ValueError, match=message):
        search_padded(**{**arguments, **change})


def test_per_reference_drops_what_a_small_map_has_not():
    positions = torch.tensor([[[4, 1], [0, 0]], [[2, 3], [0, 0]]])
    cosines = torch.tensor([[[0.9, 0.1], [0.5, -torch.inf]], [[0.8, 0.2], [0.4, -torch.inf]]])
    large, small = per_reference(
        MostSimilar(positions, cosines), [torch.zeros(5, 16), torch.zeros(1, 16)]
    )
    assert large.positions.tolist() == [[4, 1], [2, 3]]
    assert small.positions.tolist() == [[0], [0]]
    assert small.cosines.shape == (2, 1) and small.cosines.isfinite().all()
