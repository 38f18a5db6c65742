# SPDX-License-Identifier: Apache-2.0
"""The kernel tests on a build under AddressSanitizer and UndefinedBehaviorSanitizer.

Sanitizers see allocations, and the kernels cut theirs into parts. The copy that is built here has
an allocation of its own for every block of the arena, and red zones between the parts of a
workspace and of a thread's scratch memory. Fresh memory is filled with NaN, so that a value nobody
wrote changes a result.

ThreadSanitizer needs an OpenMP that tells it of barriers, which libgomp does not; it is run by hand
with clang's, which Archer (part of LLVM) speaks for:

    CC=clang CXX=clang++ DARTS_FAST_SANITIZE=thread python setup.py build_ext --inplace
    OMP_TOOL_LIBRARIES=<lib of LLVM>/libarcher.so ARCHER_OPTIONS=verbose=1 \\
    LD_PRELOAD="$(gcc -print-file-name=libtsan.so) libomp.so.5 libstdc++.so.6" \\
    TSAN_OPTIONS=ignore_noninstrumented_modules=1 OMP_NUM_THREADS=3 \\
        python -m pytest -s -k "not compiles and not opcheck" <the kernel tests>

With LLVM 14 and gcc 12: no report in 1061 tests, nor with four Python threads that call the ops at
once. 28 reports where the threads of relu_conv_norm were made to share a row of scratch memory;
over a thousand without Archer, at barriers. Accesses of more than 16 bytes are not instrumented, so
it is the baseline capability whose vector accesses are watched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CAPABILITIES

import darts_fast

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = (
    *("conv_blocks", "node_sum", "mixed_cell", "mixed_cell_*"),
    *("relu_conv_norm*", "running_statistics"),
)
KERNEL_TESTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in PATTERNS
    for path in ROOT.glob(f"tests/test_{pattern}.py")
)

# file, text, what stands there in the copy
GUARDS = [
    (
        "cpu/arena.cpp",
        "  if (elements == 0) return at::empty_strided(sizes, strides, options);\n",
        """  if (elements == 0) return at::empty_strided(sizes, strides, options);
  void* own = ::operator new(elements * options.dtype().itemsize(), kAlignment);
  return at::from_blob(
      own, sizes, strides, [](void* data) { ::operator delete(data, kAlignment); }, options);
""",
    ),
    (
        "cpu/workspace.h",
        "    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;\n",
        """    const int64_t end = at + count * static_cast<int64_t>(sizeof(T));
    bytes_ = (end + 63) / 64 * 64 + 64;
    zones_.emplace_back(end, bytes_ - end);
""",
    ),
    (
        "cpu/workspace.h",
        "at::TensorOptions().dtype(at::kByte)); }\n",
        """at::TensorOptions().dtype(at::kByte));
    for (const auto& [at, size] : zones_) __asan_poison_memory_region(get<char>(at), size);
  }
""",
    ),
    (
        "cpu/workspace.h",
        "  int64_t bytes_ = 0;\n",
        "  int64_t bytes_ = 0;\n  std::vector<std::pair<int64_t, int64_t>> zones_;\n",
    ),
    (
        "cpu/workspace.h",
        "#include <cstdint>\n",
        """#include <sanitizer/asan_interface.h>

#include <cstdint>
#include <utility>
#include <vector>
""",
    ),
    (
        "cpu/kernels/scratch.h",
        "    used += round_up(elements, 64 / static_cast<int64_t>(sizeof(T)));\n",
        """    const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    const int64_t size = round_up(elements, line) + line;
    used += size;
    if (part != nullptr) {
      __asan_unpoison_memory_region(part, elements * sizeof(T));
      __asan_poison_memory_region(part + elements, (size - elements) * sizeof(T));
    }
""",
    ),
    (
        "cpu/kernels/scratch.h",
        "#pragma once\n",
        "#pragma once\n#include <sanitizer/asan_interface.h>\n",
    ),
    # The compiler's own streaming stores are not instrumented.
    (
        "cpu/kernels/vec.h",
        "static inline void stream(T* to, Vec<T> value) {\n",
        "static inline void stream(T* to, Vec<T> value) {\n  store(to, value);\n",
    ),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not (ROOT / "setup.py").is_file(), reason="needs the checkout, not only the package"
    ),
]

Run = Callable[..., subprocess.CompletedProcess[str]]


def library(name: str) -> str:
    """Path of a runtime library of g++; skips where there is none."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    done = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = done.stdout.strip()
    if not os.path.isabs(path):
        pytest.skip(f"g++ has no {name}")
    return path


def copy_with_guards(target: Path) -> None:
    shutil.copytree(ROOT / "csrc", target)
    for name, old, new in GUARDS:
        text = (target / name).read_text()
        assert text.count(old) == 1, f"{name} has changed: {old!r}"
        (target / name).write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def run_sanitised(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Builds the copy; the result runs Python in it, with arguments as given."""
    preload = ":".join(library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so"))
    source = tmp_path_factory.mktemp("sanitised")
    copy_with_guards(source / "csrc")
    without_builds = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("darts_fast", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=without_builds)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(source), **environment},
        )

    done = run(
        *("setup.py", "-q", "build_ext", "--inplace"),
        CC="gcc",
        CXX="g++",
        DARTS_FAST_SANITIZE="address,undefined",
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr

    # Python links no libstdc++, whose exceptions the sanitizer must find when it starts.
    sanitised = {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": f"detect_leaks=0:max_malloc_fill_size={1 << 30}:malloc_fill_byte=255",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TORCHINDUCTOR_CACHE_DIR": str(source / "inductor"),
    }
    where = run("-c", "import darts_fast; print(darts_fast.__file__)", **sanitised)
    assert where.stdout.strip() == str(source / "darts_fast/__init__.py"), where.stderr
    return lambda *arguments: run(*arguments, **sanitised)


def test_kernel_tests_run_clean(run_sanitised):
    assert len(KERNEL_TESTS) >= 7
    # Without -s the report of a process that ends at once would be lost.
    done = run_sanitised("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *KERNEL_TESTS)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-20000:]
    assert "AddressSanitizer" not in printed
    assert "runtime error:" not in printed


PLANTED = {
    "a read of poisoned input": (
        """
asan = ctypes.CDLL(None)
asan.__asan_poison_memory_region(ctypes.c_void_p(x.data_ptr()), ctypes.c_size_t(x.nbytes))
node_sum([x], torch.ones(1))
""",
        "ERROR: AddressSanitizer: use-after-poison",
    ),
    "a write past a block of the arena": (
        """
saved = torch.ops.darts_fast.mixed_cell(
    [x], torch.ones(1, 1), [], [], [], [], [], [0, 1, 2, 0, 0], [1], [1e-5], 1, 1, 1, 1, 0, None,
    0, True
)[1]
ctypes.memset(saved.data_ptr() + saved.nbytes, 0, 1)
""",
        "ERROR: AddressSanitizer: heap-buffer-overflow",
    ),
    "a misaligned tensor": (
        """
weights = torch.frombuffer(bytearray(8), dtype=torch.float32, offset=1, count=1)
node_sum([x], weights)
""",
        "runtime error: load of misaligned address",
    ),
}

START = """
import ctypes, sys, torch, darts_fast
from darts_fast.functional import node_sum
darts_fast.set_cpu_capability(sys.argv[1])
x = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
assert torch.empty(1000).isnan().all()
node_sum([x], torch.ones(1))
print("until here", flush=True)
"""


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("planted", PLANTED)
def test_planted_errors_are_found(run_sanitised, planted, capability):
    if capability not in darts_fast.available_cpu_capabilities():
        pytest.skip(f"{capability} is not in this build or not on this CPU")
    code, message = PLANTED[planted]
    done = run_sanitised("-c", START + code, capability)
    assert "until here" in done.stdout, done.stderr
    assert done.returncode != 0
    assert message in done.stderr


SCRATCH = """
#include "cpu/kernels/scratch.h"
#include <vector>

using namespace darts_fast::cpu::DEFAULT;

int main(int count, char**) {
  Scratch<float> measure = {nullptr};
  measure.take(19);
  measure.take_doubles(3);
  std::vector<float> row(measure.used);
  Scratch<float> cut = {row.data()};
  float* first = cut.take(19);
  double* second = cut.take_doubles(3);
  for (int i = 0; i < 19; ++i) first[i] = 1;
  for (int i = 0; i < 2 + count; ++i) second[i] = 1;
}
"""


def test_parts_of_scratch_memory_have_red_zones(tmp_path):
    library("libasan.so")
    copy_with_guards(tmp_path / "csrc")
    (tmp_path / "scratch.cpp").write_text(SCRATCH)
    flags = ("-std=c++20", "-fsanitize=address", "-DDARTS_CPU_CAPABILITY=DEFAULT", "-Icsrc")
    built = subprocess.run(
        ["g++", *flags, "scratch.cpp", "-o", "scratch"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert built.returncode == 0, built.stderr
    clean, one_too_many = (
        subprocess.run([tmp_path / "scratch", *arguments], capture_output=True, text=True)
        for arguments in ([], ["more"])
    )
    assert clean.returncode == 0, clean.stderr
    assert "AddressSanitizer: use-after-poison" in one_too_many.stderr
