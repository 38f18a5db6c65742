// SPDX-License-Identifier: Apache-2.0
// A cell, or its preprocessing, as one call: from modules to their output and running statistics.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "module_state.h"
#include "operators.h"

namespace darts_fast {

// The fields of a CellPlan (nn/plan.py) that stay. Its modules are given to every call, the same
// ones again: to keep them here would hide them from the garbage collector.
class CellCall {
 public:
  CellCall(std::vector<int64_t> ops, std::vector<int64_t> convolution_ops,
           std::vector<int64_t> norm_ops, int64_t inputs, int64_t nodes, int64_t multiplier,
           int64_t stride);

  // active: whether each operation is computed, all of them without. Those that are not computed,
  // or do not reach the output, have no gradient at all, and their statistics stay.
  // half_maps: save maps in bfloat16; cuda: move statistics on a CUDA device by its kernels.
  //
  // The output; and None or, where running statistics have no native form and are still to be
  // moved, (mean, var) of the norms.
  pybind11::tuple run(const pybind11::list& convolutions, const pybind11::list& norms,
                      std::vector<at::Tensor> states, at::Tensor weights,
                      const std::optional<std::vector<bool>>& active, bool half_maps, bool cuda);

 private:
  int64_t width() const { return static_cast<int64_t>(ops_.size()) / 5; }

  // Which states and operations reach the output if only `active` operations run.
  void reach(const std::vector<bool>& active, std::vector<bool>& states,
             std::vector<bool>& operations) const;

  std::vector<int64_t> ops_, convolution_ops_, norm_ops_;
  int64_t inputs_, nodes_, multiplier_, stride_;
  std::vector<int64_t> by_node_;  // operations, those into the last node first
  std::vector<WeightSeen> weights_;
  std::vector<NormSeen> norms_;
};

// ReLU, convolution and batch norm, as cells preprocess their inputs; with two convolutions the
// factorized reduce; without the ReLU a stem.
class ReluConvNormCall {
 public:
  ReluConvNormCall(size_t convolutions, int64_t stride, bool relu)
      : weights_(convolutions), stride_(stride), relu_(relu) {}

  // Output, mean and var [groups, C]. Running statistics stay.
  pybind11::tuple run(const pybind11::tuple& convolutions, const pybind11::object& norm,
                      const at::Tensor& input, int64_t groups);

  // Of one group, and with its running statistics: see CellCall::run.
  pybind11::tuple run_and_move(const pybind11::tuple& convolutions, const pybind11::object& norm,
                               const at::Tensor& input, bool cuda);

 private:
  ReluConvNormResult call(const pybind11::tuple& convolutions, const NormState& state,
                          const at::Tensor& input, int64_t groups);

  std::vector<WeightSeen> weights_;
  NormSeen norm_;
  int64_t stride_;
  bool relu_;
};

}  // namespace darts_fast
