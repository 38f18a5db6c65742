# SPDX-License-Identifier: Apache-2.0
"""The build: objects per capability, the CUDA decision, what an import says when it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

import darts_fast

ROOT = Path(__file__).resolve().parent.parent
KERNELS = sorted((ROOT / "csrc/cpu/kernels").glob("*.cpp"))

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="needs the checkout, not only the installed package"
)


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("darts_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def compile_kernel(compiler: str, source: Path, capability: str, out: Path, *extra: str) -> Path:
    setup = load_setup()
    flags = [*setup.CXX_FLAGS, *setup.WARNINGS, "-Werror", "-fPIC", "-Icsrc"]
    if compiler.startswith("clang"):
        flags.remove("-fopenmp")  # kernels have no parallel region of their own
    flags += setup.CPU_CAPABILITIES[capability]
    target = out / f"{source.stem}_{capability}.o"
    done = run(
        *(compiler, *flags, *extra, f"-DDARTS_CPU_CAPABILITY={capability}"),
        *("-c", source, "-o", target),
    )
    assert done.returncode == 0, done.stderr
    return target


def compile_all(calls: Iterable[tuple[str, Path, str, Path]]) -> list[Path]:
    """`compile_kernel` of every call, on all processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [call.result() for call in [pool.submit(compile_kernel, *c) for c in calls]]


@pytest.mark.parametrize("compiler", ["g++", pytest.param("clang++", marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_objects_keep_to_their_capability(tmp_path, compiler, source):
    if shutil.which(compiler) is None or shutil.which("objdump") is None:
        pytest.skip(f"{compiler} or objdump is not installed")
    widest = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2, "AVX512BF16": 2}
    setup = load_setup()
    capabilities = [
        capability
        for capability in setup.CPU_CAPABILITIES
        if not (own := setup.CPU_KERNELS.get(capability)) or source in [ROOT / path for path in own]
    ]
    builds = compile_all((compiler, source, capability, tmp_path) for capability in capabilities)
    for capability, built in zip(capabilities, builds, strict=True):
        # A weak symbol may be the copy that the linker keeps for callers on older machines.
        symbols = run("nm", built).stdout
        assert not re.findall(r" [WVu] (\S+)", symbols)
        assembly = run("objdump", "-d", "--no-show-raw-insn", built).stdout
        used = 2 if "%zmm" in assembly else 1 if "%ymm" in assembly else 0
        assert used == widest[capability], f"{capability} of {source.name}"
        products = bool(re.search(r"\b(vdpbf16ps|vcvtneps2bf16|vcvtne2ps2bf16)\b", assembly))
        assert products == (capability == "AVX512BF16"), f"{capability} of {source.name}"


def included_by(source: Path, seen: set[Path]) -> None:
    """Adds a source of csrc and all headers of csrc that it includes."""
    if source in seen:
        return
    seen.add(source)
    for name in re.findall(r'#include "(.*?)"', source.read_text()):
        included_by(ROOT / "csrc" / name, seen)


def test_kernels_include_neither_torch_nor_containers():
    free_of_torch: set[Path] = set()
    for source in [*KERNELS, *(ROOT / "csrc/cpu/kernels").glob("*.h")]:
        included_by(source, free_of_torch)
    assert {"mixed_cell.h", "node_sum.h", "vec.h"} <= {path.name for path in free_of_torch}
    for path in free_of_torch:
        included = re.findall(r"#include <(.*?)>", path.read_text())
        # Instructions that no operator of the compiler's vectors stands for are in one header.
        intrinsics = {"immintrin.h"} if path.name == "map_elements.h" else set()
        plain = {"cmath", "cstdint", "cstring", "limits", "type_traits", "utility"}
        assert set(included) <= plain | intrinsics, path.name


def test_baseline_builds_for_another_architecture(tmp_path):
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    compile_all((compiler, source, "DEFAULT", tmp_path) for source in KERNELS)
    capability = ROOT / "csrc/cpu/capability.cpp"
    done = run(
        *(compiler, "-std=c++20", "-Wall", "-Werror", "-Icsrc", "-c", capability),
        *("-o", tmp_path / "capability.o"),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("choice", "torch_cuda", "home", "expected"),
    [
        ("auto", None, None, False),
        ("auto", "13.0", None, False),
        ("auto", None, "/cuda", False),
        ("auto", "13.0", "/cuda", True),
        ("0", "13.0", "/cuda", False),
        ("1", "13.0", "/cuda", True),
    ],
)
def test_cuda_is_built_where_torch_and_toolkit_have_it(choice, torch_cuda, home, expected):
    assert load_setup().want_cuda(choice, torch_cuda, home) is expected


@pytest.mark.parametrize(
    ("choice", "torch_cuda", "home", "message"),
    [
        ("1", None, "/cuda", r"DARTS_FAST_CUDA=1: needs .*torch.version.cuda=None"),
        ("1", "13.0", None, r"DARTS_FAST_CUDA=1: needs .*CUDA_HOME=None"),
        ("yes", "13.0", "/cuda", r"DARTS_FAST_CUDA: must be 0, 1 or auto, got 'yes'"),
    ],
)
def test_cuda_that_cannot_be_built_fails_loudly(choice, torch_cuda, home, message):
    with pytest.raises(SystemExit, match=message):
        load_setup().want_cuda(choice, torch_cuda, home)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_setup_refuses_cuda_without_cuda():
    done = run(sys.executable, "setup.py", "build_ext", DARTS_FAST_CUDA="1")
    assert done.returncode != 0
    assert "DARTS_FAST_CUDA=1: needs a torch built with CUDA" in done.stderr


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, **environment)


def test_environment_caps_the_capability():
    code = "import darts_fast; print(darts_fast.cpu_capability())"
    for capability in darts_fast.available_cpu_capabilities():
        done = python(code, DARTS_FAST_CPU_CAPABILITY=capability)
        assert done.stdout.strip() == capability


def test_unknown_capability_lists_the_choices():
    done = python("import darts_fast", DARTS_FAST_CPU_CAPABILITY="AVX3")
    choices = ", ".join(darts_fast.available_cpu_capabilities())
    assert done.returncode != 0
    assert "DARTS_FAST_CPU_CAPABILITY: must be one of" in done.stderr
    assert f"({choices}), got 'AVX3'" in done.stderr
    with pytest.raises(ValueError, match=f"set_cpu_capability: .*{choices}.*got 'avx2'"):
        darts_fast.set_cpu_capability("avx2")


def test_unknown_backend_lists_the_choices():
    done = python("import darts_fast.backend", DARTS_FAST_BACKEND="quick")
    assert "DARTS_FAST_BACKEND: must be one of fused, reference, got 'quick'" in done.stderr


def test_build_info_names_what_was_built():
    facts = darts_fast.build_info()
    assert facts["torch"] == torch.__version__
    assert "DEFAULT" in facts["cpu_capabilities"]
    assert set(darts_fast.available_cpu_capabilities()) <= set(facts["cpu_capabilities"])


def copy_python_files(target: Path) -> Path:
    package = target / "darts_fast"
    package.mkdir()
    for name in ("__init__.py", "_extension.py"):
        shutil.copy(ROOT / "darts_fast" / name, package)
    return package


# An editable install of the checkout must not lend its extension to the copy under test.
IMPORT_ONLY_HERE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path.insert(0, {folder!r})
import darts_fast
"""


def import_from(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ONLY_HERE.format(folder=str(folder))],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_import_without_a_build_says_how_to_build(tmp_path):
    copy_python_files(tmp_path)
    message = import_from(tmp_path)
    assert "its extension was never built here" in message
    assert f"torch {torch.__version__}" in message
    assert "pip install --no-build-isolation" in message


def test_import_of_a_broken_build_says_what_was_built_and_found(tmp_path):
    package = copy_python_files(tmp_path)
    facts = {**darts_fast.build_info(), "torch": "2.99.0", "python": "3.99.1"}
    (package / "_build_info.json").write_text(json.dumps(facts))
    suffix = Path(darts_fast._extension._C.__file__).name.removeprefix("_C")
    (package / f"_C{suffix}").write_bytes(b"not an object file")
    message = import_from(tmp_path)
    assert "Built for torch 2.99.0, Python 3.99.1" in message
    assert f"found: torch {torch.__version__}" in message


@pytest.mark.slow
def test_source_distribution_is_complete(tmp_path):
    done = run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.split("/", 1)[1] for name in content.getnames() if "/" in name}
    tracked = run("git", "ls-files", "csrc", "darts_fast").stdout.split()
    assert tracked
    assert set(tracked) <= names


PROBE = """
import torch, darts_fast
from darts_fast.functional import node_sum
y = torch.arange(64.0).reshape(1, 4, 4, 4)
out = node_sum([y, y * y], torch.tensor([1.0, 2.0])).node
expected = sum(w * torch.nn.functional.batch_norm(m, None, None, training=True)
               for w, m in ((1.0, y), (2.0, y * y)))
torch.testing.assert_close(out, expected)
print(darts_fast.build_info()["cpu_capabilities"])
"""


@pytest.mark.slow
def test_wheel_works_away_from_the_checkout(tmp_path):
    wheel, site = tmp_path / "wheel", tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "-q")
    done = run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", wheel, ROOT)
    assert done.returncode == 0, done.stderr
    (built,) = wheel.glob("*.whl")
    assert run(*pip, "install", "--no-deps", "--target", site, built).returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ONLY_HERE.format(folder=str(site)) + PROBE],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(list(load_setup().CPU_CAPABILITIES))


def build_copy(source: Path, before: str = "", **environment: str) -> str:
    """Builds a copy of the checkout in place, after the Python code `before`; runs the probe."""
    shutil.copytree(ROOT / "csrc", source / "csrc")
    without_builds = shutil.ignore_patterns("*.so")
    shutil.copytree(ROOT / "darts_fast", source / "darts_fast", ignore=without_builds)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    start = "import runpy, sys; sys.argv[0] = 'setup.py'; "
    build = start + before + "runpy.run_path('setup.py', run_name='__main__')"
    for arguments in ([build, "-q", "build_ext", "--inplace"], [PROBE]):
        done = subprocess.run(
            [sys.executable, "-c", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=source,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_baseline_only_build_where_there_is_no_x86(tmp_path):
    pretend = "import platform; platform.machine = lambda: 'riscv64'; "
    assert build_copy(tmp_path / "source", pretend) == "['DEFAULT']"


@pytest.mark.slow
def test_the_whole_extension_builds_with_clang(tmp_path):
    if shutil.which("clang++") is None:
        pytest.skip("clang++ is not installed")
    source = tmp_path / "source"
    printed = build_copy(source, CC="clang", CXX="clang++", DARTS_FAST_WERROR="1")
    assert printed == str(list(load_setup().CPU_CAPABILITIES))
    facts = json.loads((source / "darts_fast/_build_info.json").read_text())
    assert "clang" in facts["compiler"]
