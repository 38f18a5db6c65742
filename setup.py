# SPDX-License-Identifier: Apache-2.0
"""Builds darts_fast._C: CPU kernels once per capability, CUDA kernels where there is a toolkit.

Environment: DARTS_FAST_CUDA=0|1|auto (auto: when this torch has CUDA and a toolkit is found),
TORCH_CUDA_ARCH_LIST, DARTS_FAST_WERROR=1 (warnings are errors), DEBUG=1 (-O0 -g), MAX_JOBS,
DARTS_FAST_SANITIZE=address,undefined or thread (what -fsanitize= takes; -O1 -g, the first undefined
behaviour ends the process; tests/test_sanitizers.py has what a process needs to load such a build).
"""

import json
import os
import platform
import subprocess
import sys
from glob import glob
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

X86 = platform.machine().lower() in ("x86_64", "amd64")
CPU_CAPABILITIES = {"DEFAULT": []}
if X86:
    CPU_CAPABILITIES["AVX2"] = ["-mavx2", "-mfma", "-mf16c"]
    CPU_CAPABILITIES["AVX512"] = [
        *CPU_CAPABILITIES["AVX2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ]
    CPU_CAPABILITIES["AVX512BF16"] = [*CPU_CAPABILITIES["AVX512"], "-mavx512bf16"]
# What a capability has kernels of its own for; of the others it runs those of the one before it.
CPU_KERNELS = {"AVX512BF16": ["csrc/cpu/kernels/mixed_cell_bf16.cpp"]}
# No GPU is needed to build; without a list torch asks the driver for one and fails.
CUDA_ARCH_LIST = "8.0;8.6;9.0+PTX"
# torch's own headers have unused parameters.
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
if os.environ.get("DARTS_FAST_WERROR") == "1":
    WARNINGS.append("-Werror")
OPTIMISE = ["-O0", "-g"] if os.environ.get("DEBUG") == "1" else ["-O3"]
SANITIZE = []  # for the compiler and the linker
if os.environ.get("DARTS_FAST_SANITIZE"):
    SANITIZE = [
        f"-fsanitize={os.environ['DARTS_FAST_SANITIZE']}",
        *("-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"),
    ]
    OPTIMISE = ["-O1", "-g"]
CXX_FLAGS = [
    *(*OPTIMISE, *SANITIZE, "-std=c++20", "-fopenmp"),
    *("-fvisibility=hidden", "-fno-math-errno"),
]


def want_cuda(choice: str, torch_cuda: str | None, cuda_home: str | None) -> bool:
    """Whether to build the CUDA half; raises where DARTS_FAST_CUDA=1 cannot be met."""
    if choice not in ("0", "1", "auto"):
        raise SystemExit(f"DARTS_FAST_CUDA: must be 0, 1 or auto, got {choice!r}")
    found = torch_cuda is not None and cuda_home is not None
    if choice == "1" and not found:
        raise SystemExit(
            "DARTS_FAST_CUDA=1: needs a torch built with CUDA and a CUDA toolkit, "
            f"got torch.version.cuda={torch_cuda} and CUDA_HOME={cuda_home}"
        )
    return found and choice != "0"


class BuildPerCapability(BuildExtension):
    """Compiles csrc/cpu/kernels once per capability, and writes what was built next to _C."""

    def build_extension(self, ext):
        for capability, flags in CPU_CAPABILITIES.items():
            ext.extra_objects += self.compiler.compile(
                CPU_KERNELS.get(capability, sorted(glob("csrc/cpu/kernels/*.cpp"))),
                output_dir=os.path.join(self.build_temp, capability),
                include_dirs=[os.path.abspath("csrc")],
                extra_postargs={
                    "cxx": [
                        *(*CXX_FLAGS, *WARNINGS, *flags, "-fPIC"),
                        f"-DDARTS_CPU_CAPABILITY={capability}",
                    ],
                    "nvcc": [],
                },
            )
        super().build_extension(ext)
        self.write_build_info(Path(self.get_ext_fullpath(ext.name)).parent)

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        self.write_build_info(Path("darts_fast"))

    def write_build_info(self, folder):
        (folder / "_build_info.json").write_text(json.dumps(build_facts(), indent=2) + "\n")


def build_facts() -> dict[str, object]:
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "compiler": version.stdout.split("\n")[0],
        "cpu_capabilities": list(CPU_CAPABILITIES),
        "cuda": torch.version.cuda if CUDA else None,
        "cuda_arch_list": os.environ.get("TORCH_CUDA_ARCH_LIST") if CUDA else None,
    }


def extension() -> CppExtension:
    sources = sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"))
    macros = [("DARTS_X86_CAPABILITIES", None)] if X86 else []
    if CUDA:
        sources += sorted(glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu"))
        macros.append(("DARTS_WITH_CUDA", None))
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCH_LIST)
    kind = CUDAExtension if CUDA else CppExtension
    return kind(
        "darts_fast._C",
        sources,
        # A source distribution carries all of them, whatever is built here.
        depends=sorted(
            glob("csrc/**/*.h", recursive=True)
            + glob("csrc/cpu/kernels/*.cpp")
            + glob("csrc/cuda/*")
        ),
        include_dirs=[os.path.abspath("csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": [*CXX_FLAGS, *WARNINGS], "nvcc": [*OPTIMISE, "-std=c++20"]},
        extra_link_args=["-fopenmp", *SANITIZE],
    )


CUDA = want_cuda(os.environ.get("DARTS_FAST_CUDA", "auto"), torch.version.cuda, CUDA_HOME)
if __name__ == "__main__":
    print(f"darts_fast: CPU {', '.join(CPU_CAPABILITIES)}; CUDA {CUDA}", file=sys.stderr)
    setup(ext_modules=[extension()], cmdclass={"build_ext": BuildPerCapability})
