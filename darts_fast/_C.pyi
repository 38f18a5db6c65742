from typing import Any

import torch
from torch import Tensor, nn

with_cuda: bool

def cpu_capability() -> str: ...
def set_cpu_capability(name: str) -> None: ...
def available_cpu_capabilities() -> list[str]: ...
def same_modules(
    modules: list[nn.Module],
    types: list[type[nn.Module]],
    children: list[list[nn.Module | None] | None],
) -> bool: ...
def type_versions(types: list[type]) -> list[int]: ...
def same_types(types: list[type], versions: list[int]) -> bool: ...
def same_entries(
    tables: list[dict[str, Any]],
    keys: list[tuple[str, ...]],
    values: list[tuple[object, ...]],
    missing: object,
) -> bool: ...
def same_shapes(modules: list[nn.Module], shapes: list[tuple[torch.Size, ...]]) -> bool: ...
def norm_arguments(
    norms: list[nn.BatchNorm2d | None], empty: Tensor
) -> tuple[
    list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[int], list[float], bool
]: ...
def running_statistics(
    norms: list[nn.BatchNorm2d | None], empty: Tensor, all: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[float]]: ...

class WrittenTables:
    def __init__(self, tables: list[dict[str, Any]]) -> None: ...
    def written(self) -> list[int]: ...
    def take(self, tables: list[dict[str, Any]], places: list[int]) -> None: ...
    def forget(self, places: list[int]) -> None: ...

class WrittenModules:
    def __init__(self, modules: list[nn.Module]) -> None: ...
    def written(self, modules: list[nn.Module]) -> list[int]: ...
    def take(self, modules: list[nn.Module], places: list[int]) -> None: ...
    def forget(self, places: list[int]) -> None: ...
    def untouched(self, modules: list[nn.Module], replaced: tuple[type, ...]) -> bool: ...

class CellCall:
    def __init__(
        self,
        ops: list[int],
        convolution_ops: list[int],
        norm_ops: list[int],
        inputs: int,
        nodes: int,
        multiplier: int,
        stride: int,
    ) -> None: ...
    def run(
        self,
        convolutions: list[nn.Conv2d],
        norms: list[nn.BatchNorm2d | None],
        states: list[Tensor],
        weights: Tensor,
        active: list[bool] | None,
        half_maps: bool,
        cuda: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]: ...

class ReluConvNormCall:
    def __init__(self, convolutions: int, stride: int, relu: bool) -> None: ...
    def run(
        self,
        convolutions: tuple[nn.Conv2d, ...],
        norm: nn.BatchNorm2d,
        input: Tensor,
        groups: int,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def run_and_move(
        self,
        convolutions: tuple[nn.Conv2d, ...],
        norm: nn.BatchNorm2d,
        input: Tensor,
        cuda: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]: ...
