// SPDX-License-Identifier: Apache-2.0
// CPU binding of mixed_cell: allocation, steps of parallel phases, registration.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/mixed_cell_dispatch.h"
#include "cpu/workspace.h"
#include "cpu/zeros.h"
#include "mixed_cell_gradients.h"
#include "mixed_cell_pointers.h"
#include "pointers.h"

namespace darts_fast::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// Elements of a state, in which the grain of parallel regions is measured.
int64_t state_work(const CellShape& s) { return s.height * s.width * s.channels; }

// Whether a node is summed in memory of its own: no op leaves it and it is not the output itself.
bool node_passes(const MixedCellPlan& plan) {
  const CellShape& s = plan.shape;
  const int64_t others = s.nodes - (s.multiplier == 1 ? 1 : 0);
  return std::find(plan.node_map.begin(), plan.node_map.begin() + others, -1) !=
         plan.node_map.begin() + others;
}

// What a last-level cache that others use too can be trusted to keep: of maps that one phase writes
// and the next reads.
constexpr int64_t kCached = 8 << 20;

// The row of zeros behind those of the norms.
template <typename T, typename M>
void clear_center(const MixedCellKernels<T, M>& kernel, const CellForward<T, M>& p) {
  const int64_t period = kernel.period(p.plan.shape.channels);
  std::fill_n(p.center + p.plan.shape.groups * p.plan.shape.norms * period, period, T(0));
}

template <typename T, typename M>
void run_forward(const MixedCellKernels<T, M>& kernel, const CellForward<T, M>& p) {
  const CellShape& s = p.plan.shape;
  const int64_t images = s.groups * s.images;
  const int64_t norm_work = s.images * s.channels * 4;
  for (int64_t index = 0; index < p.plan.part_count; ++index) {
    const CellPart& part = p.plan.parts[index];
    const int64_t entering = part.end - part.begin;
    const int64_t chains = part.chains_end - part.chains_begin;
    CellStep<CellForward<T, M>> step = {&p, index, false};
    run_phase(kernel.first, step, images, state_work(s) * (entering + 1));
    run_phase(kernel.norms, step, s.groups * entering, norm_work);
    if (chains == 0) continue;
    run_phase(kernel.second, step, images * chains, state_work(s) * 4);
    step.chains = true;
    run_phase(kernel.norms, step, s.groups * chains, norm_work);
  }
  const CellStep<CellForward<T, M>> last = {&p, p.plan.part_count, false};
  run_phase(kernel.first, last, images, state_work(s) * 4);
}

// The groups `at_once` by `at_once`, whose maps, moments and coefficients take each other's place.
template <typename T, typename M>
void run_groups(const MixedCellKernels<T, M>& kernel, const CellForward<T, M>& all,
                int64_t at_once) {
  const CellShape& s = all.plan.shape;
  run_phase(kernel.pack, all, s.blocks, all.packed_stride);
  std::vector<const T*> states(all.states, all.states + s.inputs);
  CellForward<T, M> p = all;
  p.states = states.data();
  for (int64_t group = 0; group < s.groups; group += at_once) {
    p.plan.shape.groups = std::min(at_once, s.groups - group);
    for (int64_t i = s.shared; i < s.inputs; ++i) {
      states[i] = all.states[i] + group * s.images * state_work(s);
    }
    p.weights = all.weights + group * s.ops;
    p.active = all.active + group * s.ops;
    p.mean = all.mean + group * s.norms * s.channels;
    p.var = all.var + group * s.norms * s.channels;
    const int64_t node = s.node_height * s.node_width * s.channels;
    p.output = all.output + group * s.images * node * s.multiplier;
    clear_center(kernel, p);
    run_forward(kernel, p);
  }
}

// Without statistics of the batch there is nothing to wait for: an image goes through the cell.
template <typename T, typename M>
void run_running(const MixedCellKernels<T, M>& kernel, const CellForward<T, M>& p) {
  const CellShape& s = p.plan.shape;
  clear_center(kernel, p);
  run_phase(kernel.running_norms, p, s.groups * s.ops, s.channels * 16);
  run_phase(kernel.running_constants, p, s.groups * s.nodes, s.channels * s.ops);
  run_phase(kernel.running_pack, p, s.groups * s.blocks, p.packed_stride);
  run_phase(kernel.running, p, s.groups * s.images, state_work(s) * s.ops);
}

bool takes_batch_statistics(const MixedCellArguments& a) {
  return std::find(a.norms.begin(), a.norms.end(), Norm::kBatch) != a.norms.end();
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Forward mixed_cell(at::TensorList states, const Tensor& weights, at::TensorList convolutions,
                   at::TensorList gammas, at::TensorList betas, at::TensorList running_means,
                   at::TensorList running_vars, at::IntArrayRef ops, at::IntArrayRef norms,
                   at::ArrayRef<double> eps, int64_t nodes, int64_t multiplier, int64_t stride,
                   int64_t groups, int64_t shared, const OptionalTensor& active, int64_t precision,
                   bool save) {
  static constexpr char op[] = "mixed_cell";
  const MixedCellArguments a =
      check_mixed_cell(op,
                       {states, weights, convolutions, gammas, betas, ops, norms, eps, nodes,
                        multiplier, stride, groups, shared, active, precision},
                       save, {kCached, 1, true});
  const CellShape& s = a.plan.shape;
  const auto means = check_per_norm(op, "running_means", running_means, a.plan, states[0]);
  const auto variances = check_per_norm(op, "running_vars", running_vars, a.plan, states[0]);
  for (int64_t b = 0; b < s.norms; ++b) {
    TORCH_CHECK_VALUE(
        a.norms[b] != Norm::kRunning || (means[b].defined() && variances[b].defined()), op,
        ": a running norm needs running_means and running_vars, got none for norm ", b);
  }
  const auto options = a.states[0].options().memory_format(std::nullopt);
  const int64_t images = s.groups * s.images;
  Tensor output =
      arena_maps({images, s.multiplier * s.channels, s.node_height, s.node_width}, options);
  const bool whole = !save && !takes_batch_statistics(a);
  // Where no map is stored, none is rounded.
  const Precision rounding = whole ? Precision::kFull : a.precision;
  const int64_t kept = whole ? 0 : buffer_elements(a.plan);
  Tensor maps = save ? arena_empty(kept, options) : arena_transient(kept, options);
  Tensor mean = at::empty({groups, s.norms, s.channels}, options);
  Tensor var = at::empty({groups, s.norms, s.channels}, options);
  dispatch_cell(a, rounding, [&]<typename scalar_t, typename map_t>() {
    const MixedCellKernels<scalar_t, map_t>& kernel = cell_kernels<scalar_t, map_t>(rounding);
    const MixedCellPointers<scalar_t> pointers(a);
    const auto running_mean = read_pointers<scalar_t>(means);
    const auto running_var = read_pointers<scalar_t>(variances);
    CellForward<scalar_t, map_t> p;
    set_cell_arguments(p, a, pointers, write_pointer<scalar_t>(maps));
    const int64_t period = kernel.period(s.channels);
    p.packed_stride = kernel.packed_size(p.plan);
    p.scratch_stride = whole ? kernel.running_scratch(p.plan) : kernel.forward_scratch(p.plan);
    Workspace work;
    const int64_t packed =
        work.reserve<scalar_t>((whole ? groups : 1) * s.blocks * p.packed_stride);
    const int64_t scratch = work.reserve<scalar_t>(at::get_num_threads() * p.scratch_stride);
    const int64_t at_once = whole ? groups : a.plan.groups_at_once;
    const int64_t moments = whole ? 0 : (s.blocks + s.pools) * at_once * s.images * s.channels;
    const int64_t partial = work.reserve<double>(2 * moments);
    const int64_t rows = at_once * s.norms;
    const int64_t patterns =
        work.reserve<scalar_t>((3 * rows + 1 + at_once * (s.ops + s.nodes)) * period);
    const int64_t saved = s.blocks * p.slot * static_cast<int64_t>(sizeof(map_t));
    const bool staged = !whole && (!save || saved > kCached);
    const int64_t stage = work.reserve<map_t>(staged ? a.plan.stage_slots * p.slot : 0);
    const int64_t passing = work.reserve<scalar_t>(!whole && node_passes(a.plan) ? p.slot : 0);
    work.allocate();
    p.passing = work.get<scalar_t>(passing);
    p.stage = staged ? work.get<map_t>(stage) : nullptr;
    p.save = save;
    p.packed = work.get<scalar_t>(packed);
    p.scratch = work.get<scalar_t>(scratch);
    p.partial_mean = work.get<double>(partial);
    p.partial_square = p.partial_mean + moments;
    p.center = work.get<scalar_t>(patterns);
    p.scale = p.center + (rows + 1) * period;
    p.shift = p.scale + rows * period;
    p.term_scale = p.shift + rows * period;
    p.constants = p.term_scale + at_once * s.ops * period;
    p.mean = write_pointer<scalar_t>(mean);
    p.var = write_pointer<scalar_t>(var);
    p.running_mean = running_mean.data();
    p.running_var = running_var.data();
    p.output = write_pointer<scalar_t>(output);
    if (whole) {
      run_running(kernel, p);
    } else {
      run_groups(kernel, p, at_once);
    }
  });
  if (!save) maps = at::empty({0}, options);
  return {output, maps, mean, var};
}

template <typename T, typename M>
void run_backward(const MixedCellKernels<T, M>& kernel, const CellBackward<T, M>& p) {
  const CellShape& s = p.plan.shape;
  const int64_t chunks = s.groups * ((s.images + p.chunk_images - 1) / p.chunk_images);
  const int64_t work = state_work(s) * p.chunk_images;
  const int64_t norm_work = s.images * s.channels * 4;
  run_phase(kernel.grad_pack, p, s.blocks, p.packed_stride);
  run_phase(kernel.prepare, p, s.groups * s.norms, s.channels * 8);
  for (int64_t index = p.plan.part_count; index >= 0; --index) {
    const CellStep<CellBackward<T, M>> step = {&p, index, false};
    run_phase(kernel.grad_first, step, chunks, work * 8);
    if (index == 0) break;
    const CellStep<CellBackward<T, M>> next = {&p, index - 1, false};
    const CellPart& part = p.plan.parts[index - 1];
    const int64_t chains = part.chains_end - part.chains_begin;
    run_phase(kernel.node_norms, next, s.groups * (part.end - part.begin), norm_work);
    if (chains == 0) continue;
    run_phase(kernel.grad_second, next, chunks * chains, work * 4);
    run_phase(kernel.inner_norms, next, s.groups * chains, norm_work);
  }
  if (p.partial_weights != nullptr) {
    run_phase(kernel.weights, p, s.blocks, chunks * p.partial_stride);
  }
  run_phase(kernel.parameters, p, s.norms, s.groups * s.channels);
}

MixedCellBackward mixed_cell_backward(const Tensor& grad_output, const Tensor& saved,
                                      const Tensor& mean, const Tensor& var, at::TensorList states,
                                      const Tensor& weights, at::TensorList convolutions,
                                      at::TensorList gammas, at::TensorList betas,
                                      at::IntArrayRef ops, at::IntArrayRef norms,
                                      at::ArrayRef<double> eps, int64_t nodes, int64_t multiplier,
                                      int64_t stride, int64_t groups, const OptionalTensor& active,
                                      int64_t precision, c10::List<bool> output_mask) {
  static constexpr char op[] = "mixed_cell_backward";
  const MixedCellArguments a =
      check_mixed_cell(op,
                       {states, weights, convolutions, gammas, betas, ops, norms, eps, nodes,
                        multiplier, stride, groups, 0, active, precision},
                       true, {kCached, 3, true});
  const CellShape& s = a.plan.shape;
  const int64_t images = s.groups * s.images;
  check_mixed_cell_backward(op, a, grad_output, saved, mean, var);
  const Tensor g = grad_output.contiguous(kChannelsLast);
  const Tensor given_mean = mean.contiguous(), given_var = var.contiguous();
  const MixedCellGradients grads = allocate_mixed_cell_gradients(
      op, a, convolutions, gammas, betas, output_mask, arena_maps, zeros_together);
  // Without images the gradients are the zeros that they began as.
  if (images == 0) return grads.result();
  dispatch_cell(a, a.precision, [&]<typename scalar_t, typename map_t>() {
    const MixedCellKernels<scalar_t, map_t>& kernel = cell_kernels<scalar_t, map_t>(a.precision);
    const MixedCellPointers<scalar_t> pointers(a);
    CellBackward<scalar_t, map_t> p;
    set_cell_arguments(p, a, pointers, const_cast<scalar_t*>(saved.const_data_ptr<scalar_t>()));
    const int64_t period = kernel.period(s.channels);
    p.packed_stride = kernel.packed_size(p.plan);
    p.scratch_stride = kernel.backward_scratch(p.plan);
    p.partial_stride = kernel.partial_size(p.plan);
    p.chunk_images = chunk_images(s.images);
    const int64_t chunks = groups * ((s.images + p.chunk_images - 1) / p.chunk_images);
    const int64_t rows = groups * s.norms;
    Workspace work;
    const int64_t packed = work.reserve<scalar_t>(s.blocks * p.packed_stride);
    const int64_t scratch = work.reserve<scalar_t>(at::get_num_threads() * p.scratch_stride);
    const int64_t partial =
        work.reserve<scalar_t>(grads.any_convolution ? s.blocks * chunks * p.partial_stride : 0);
    const int64_t patterns = work.reserve<scalar_t>((6 * rows + 1) * period);
    const int64_t partial_sums = work.reserve<double>((s.ops + s.nodes) * images * s.channels);
    const int64_t inner_sums = work.reserve<double>(s.ops * images * 2 * s.channels);
    const int64_t term_sums = work.reserve<double>(s.ops * groups * s.channels);
    const int64_t norm_sums = work.reserve<double>(rows * 2 * s.channels);
    const int64_t op_sums = work.reserve<double>(s.ops * groups);
    const int64_t grad_inner = work.reserve<scalar_t>(a.plan.most_chains() * p.slot);
    const int64_t grad_nodes = work.reserve<scalar_t>(s.nodes * p.slot);
    work.allocate();
    p.grad_output = g.const_data_ptr<scalar_t>();
    p.mean = const_cast<scalar_t*>(given_mean.const_data_ptr<scalar_t>());
    p.var = const_cast<scalar_t*>(given_var.const_data_ptr<scalar_t>());
    p.packed = work.get<scalar_t>(packed);
    p.scratch = work.get<scalar_t>(scratch);
    p.partial_weights = grads.any_convolution ? work.get<scalar_t>(partial) : nullptr;
    p.center = work.get<scalar_t>(patterns);
    p.inner_scale = p.center + (rows + 1) * period;
    p.inner_shift = p.inner_scale + rows * period;
    p.grad_scale = p.inner_shift + rows * period;
    p.grad_mean = p.grad_scale + rows * period;
    p.grad_slope = p.grad_mean + rows * period;
    std::fill_n(p.center + rows * period, period, scalar_t(0));
    p.partial_sums = work.get<double>(partial_sums);
    p.inner_sums = work.get<double>(inner_sums);
    p.term_sums = work.get<double>(term_sums);
    p.norm_sums = work.get<double>(norm_sums);
    p.op_sums = work.get<double>(op_sums);
    p.grad_inner = work.get<scalar_t>(grad_inner);
    p.grad_nodes = work.get<scalar_t>(grad_nodes);
    const auto gx = write_pointers<scalar_t>(grads.states);
    const auto g1 = write_pointers<scalar_t>(grads.first),
               g2 = write_pointers<scalar_t>(grads.second);
    auto gg = write_pointers<scalar_t>(grads.gammas), gb = write_pointers<scalar_t>(grads.betas);
    gg.resize(s.norms, nullptr);
    gb.resize(s.norms, nullptr);
    p.grad_states = gx.data();
    p.grad_first = g1.data();
    p.grad_second = g2.data();
    p.grad_gamma = gg.data();
    p.grad_beta = gb.data();
    run_backward(kernel, p);
    if (grads.weights.numel() > 0) {
      scalar_t* out = grads.weights.mutable_data_ptr<scalar_t>();
      for (int64_t group = 0; group < groups; ++group) {
        for (int64_t k = 0; k < s.ops; ++k) {
          out[group * s.ops + k] = static_cast<scalar_t>(p.op_sums[k * groups + group]);
        }
      }
    }
  });
  return grads.result();
}

TORCH_LIBRARY_IMPL(darts_fast, CPU, m) {
  m.impl("mixed_cell", mixed_cell);
  m.impl("mixed_cell_backward", mixed_cell_backward);
}

}  // namespace
}  // namespace darts_fast::cpu
