// SPDX-License-Identifier: Apache-2.0
#include "mixed_cell_checks.h"

#include <algorithm>

#include "checks.h"

namespace darts_fast {
namespace {

using at::Tensor;

bool is_pool(CellOpKind kind) {
  return kind == CellOpKind::kMaxPool || kind == CellOpKind::kAvgPool;
}

int64_t reach(const ConvBlock& block) {
  return block.kind == ConvKind::kReduce ? 0 : block.dilation * (block.kernel - 1) / 2;
}

void check_sizes(const char* op, const MixedCellInputs& in, CellShape& s) {
  TORCH_CHECK_VALUE(!in.states.empty(), op, ": needs at least one state, got none");
  const int64_t inputs = static_cast<int64_t>(in.states.size());
  TORCH_CHECK_VALUE(in.shared >= 0 && in.shared <= inputs, op,
                    ": shared must be 0 to the number of states, got ", in.shared, " for ", inputs,
                    " states");
  // The first that every group has for its own, if there is one.
  const bool all_shared = in.shared == inputs;
  const Tensor& first = in.states[all_shared ? 0 : in.shared];
  TORCH_CHECK_VALUE(first.dim() == 4, op, ": states must have 4 dimensions [N, C, H, W], got ",
                    first.sizes());
  check_map_type(op, "states", first, in.takes_halves);
  TORCH_CHECK_VALUE(in.stride == 1 || in.stride == 2, op, ": stride must be 1 or 2, got ",
                    in.stride);
  TORCH_CHECK_VALUE(in.groups >= 1 && (all_shared || first.size(0) % in.groups == 0), op,
                    ": groups must divide the batch, got ", in.groups, " groups for a batch of ",
                    first.size(0));
  TORCH_CHECK_VALUE(in.nodes >= 1 && in.multiplier >= 1 && in.multiplier <= in.nodes, op,
                    ": multiplier must be 1 to nodes, got ", in.multiplier, " for ", in.nodes,
                    " nodes");
  TORCH_CHECK_VALUE(!in.ops.empty() && in.ops.size() % 5 == 0, op,
                    ": ops must have 5 numbers per operation, got ", in.ops.size());
  s.groups = in.groups;
  s.images = all_shared ? first.size(0) : first.size(0) / in.groups;
  s.inputs = inputs;
  s.shared = in.shared;
  s.nodes = in.nodes;
  s.ops = static_cast<int64_t>(in.ops.size()) / 5;
  s.channels = first.size(1);
  s.height = first.size(2);
  s.width = first.size(3);
  s.stride = in.stride;
  s.multiplier = in.multiplier;
  s.node_height = (s.height + s.stride - 1) / s.stride;
  s.node_width = (s.width + s.stride - 1) / s.stride;
  TORCH_CHECK_VALUE(s.channels >= 1 && s.height >= 1 && s.width >= 1, op,
                    ": states must have channels, rows and columns, got ", first.sizes());
  std::vector<int64_t> shape = first.sizes().vec();
  for (int64_t i = 0; i < s.inputs; ++i) {
    shape[0] = i < s.shared ? s.images : s.groups * s.images;
    check_like(op, i < s.shared ? "every shared state" : "every state", in.states[i], shape, first);
  }
}

// The blocks of an op and their weights, taken from the list in order.
void add_blocks(const char* op, const MixedCellInputs& in, MixedCellArguments& a, int64_t index,
                int64_t kernel, int64_t dilation, size_t& next) {
  const CellShape& s = a.plan.shape;
  const CellOp& cell_op = a.plan.ops[index];
  const Tensor& like = in.states[0];
  const auto take = [&](const char* name, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(next < in.convolutions.size(), op, ": op ", index, " needs ", name,
                      ", got only ", in.convolutions.size(), " convolutions");
    check_beside(op, name, in.convolutions[next], shape, like);
    return in.convolutions[next++].contiguous();
  };
  const auto add = [&](ConvKind kind) {
    a.plan.blocks.push_back({kind, kernel, dilation});
    a.plan.block_op.push_back(index);
  };
  const int64_t c = s.channels;
  switch (cell_op.kind) {
    case CellOpKind::kSeparable:
    case CellOpKind::kSeparableTwice:
      TORCH_CHECK_VALUE(kernel == 3 || kernel == 5 || kernel == 7, op,
                        ": kernel of a separable convolution must be 3, 5 or 7, got ", kernel);
      TORCH_CHECK_VALUE(dilation >= 1, op, ": dilation must be at least 1, got ", dilation);
      TORCH_CHECK_VALUE(dilation == 1 || cell_op.kind == CellOpKind::kSeparable, op,
                        ": dilation of separable_twice must be 1, got ", dilation);
      for (int64_t i = 0; i < (cell_op.kind == CellOpKind::kSeparable ? 1 : 2); ++i) {
        add(ConvKind::kSeparable);
        a.first.push_back(take("a depthwise weight", {c, 1, kernel, kernel}));
        a.second.push_back(take("a pointwise weight", {c, c, 1, 1}));
      }
      break;
    case CellOpKind::kDense:
      TORCH_CHECK_VALUE(kernel == 1 || kernel == 3, op,
                        ": kernel of a dense convolution must be 1 or 3, got ", kernel);
      add(ConvKind::kDense);
      a.plan.blocks.back().dilation = 1;
      a.first.push_back(take("a dense weight", {c, c, kernel, kernel}));
      a.second.emplace_back();
      break;
    case CellOpKind::kFactorizedReduce:
      TORCH_CHECK_VALUE(s.stride == 2 && cell_op.source < s.inputs && s.height % 2 == 0 &&
                            s.width % 2 == 0 && c % 2 == 0,
                        op, ": factorized_reduce needs stride 2 and even sizes, got stride ",
                        cell_op.source < s.inputs ? s.stride : 1, " for ", in.states[0].sizes());
      add(ConvKind::kReduce);
      a.first.push_back(take("conv_1", {c / 2, c, 1, 1}));
      a.second.push_back(take("conv_2", {c / 2, c, 1, 1}));
      break;
    default:
      break;
  }
}

void add_ops(const char* op, const MixedCellInputs& in, MixedCellArguments& a) {
  MixedCellPlan& plan = a.plan;
  CellShape& s = plan.shape;
  size_t next = 0;
  s.norms = 0;
  for (int64_t k = 0; k < s.ops; ++k) {
    const int64_t* row = in.ops.data() + 5 * k;
    TORCH_CHECK_VALUE(
        row[0] >= 0 && row[0] < row[1] && row[1] >= s.inputs && row[1] < s.inputs + s.nodes, op,
        ": every op must lead from an earlier state to a node, got ", row[0], " to ", row[1],
        " with ", s.inputs, " inputs and ", s.nodes, " nodes");
    TORCH_CHECK_VALUE(row[2] >= 0 && row[2] <= 7, op, ": kind must be 0 to 7, got ", row[2]);
    CellOp cell_op = {row[0], row[1], static_cast<CellOpKind>(row[2]), -1, -1, -1, -1, -1, -1};
    TORCH_CHECK_VALUE(
        cell_op.kind != CellOpKind::kIdentity || s.stride == 1 || cell_op.source >= s.inputs, op,
        ": identity needs stride 1, got ", s.stride);
    s.norms += norms_of(cell_op.kind);
    if (norms_of(cell_op.kind) > 0) cell_op.norm = s.norms - 1;
    plan.ops.push_back(cell_op);
    const int64_t blocks = static_cast<int64_t>(plan.blocks.size());
    add_blocks(op, in, a, k, row[3], row[4], next);
    if (static_cast<int64_t>(plan.blocks.size()) > blocks) plan.ops[k].block = blocks;
    if (is_pool(cell_op.kind)) {
      const auto same = [&](const CellPool& pool) {
        return pool.source == cell_op.source && pool.kind == cell_op.kind;
      };
      const auto found = std::find_if(plan.pools.begin(), plan.pools.end(), same);
      plan.ops[k].pool = found - plan.pools.begin();
      if (found == plan.pools.end()) plan.pools.push_back({cell_op.source, cell_op.kind, -1});
    }
  }
  TORCH_CHECK_VALUE(next == in.convolutions.size(), op, ": convolutions must have ", next,
                    " entries for these ops, got ", in.convolutions.size());
  s.blocks = static_cast<int64_t>(plan.blocks.size());
  s.pools = static_cast<int64_t>(plan.pools.size());
}

template <typename Belongs>
void fill_list(int64_t states, int64_t count, Belongs belongs, std::vector<int64_t>& entries,
               std::vector<int64_t>& at) {
  for (int64_t state = 0; state < states; ++state) {
    at.push_back(static_cast<int64_t>(entries.size()));
    for (int64_t i = 0; i < count; ++i) {
      if (belongs(i, state)) entries.push_back(i);
    }
  }
  at.push_back(static_cast<int64_t>(entries.size()));
}

void add_lists(MixedCellPlan& plan) {
  const CellShape& s = plan.shape;
  const int64_t states = s.inputs + s.nodes;
  const auto& ops = plan.ops;
  const auto by_source = [&](int64_t a, int64_t b) { return ops[a].source < ops[b].source; };
  fill_list(
      states, s.ops, [&](int64_t k, int64_t state) { return ops[k].source == state; }, plan.leaving,
      plan.leaving_at);
  fill_list(
      states, s.ops, [&](int64_t k, int64_t state) { return ops[k].node == state; }, plan.entering,
      plan.entering_at);
  for (int64_t state = 0; state < states; ++state) {
    std::stable_sort(plan.entering.begin() + plan.entering_at[state],
                     plan.entering.begin() + plan.entering_at[state + 1], by_source);
  }
  for (int64_t state = 0; state < states; ++state) {
    plan.chains_at.push_back(static_cast<int64_t>(plan.chains.size()));
    for (int64_t i = plan.entering_at[state]; i < plan.entering_at[state + 1]; ++i) {
      if (ops[plan.entering[i]].kind == CellOpKind::kSeparableTwice) {
        plan.chains.push_back(plan.entering[i]);
      }
    }
  }
  plan.chains_at.push_back(static_cast<int64_t>(plan.chains.size()));
  fill_list(
      states, s.pools, [&](int64_t i, int64_t state) { return plan.pools[i].source == state; },
      plan.state_pools, plan.state_pools_at);
  for (const CellOp& op : ops) {
    if (op.block < 0) continue;
    int64_t& pad = op.source < s.inputs ? plan.input_pad : plan.node_pad;
    pad = std::max(pad, reach(plan.blocks[op.block]));
    if (op.kind == CellOpKind::kSeparableTwice) {
      plan.chain_pad = std::max(plan.chain_pad, reach(plan.blocks[op.block + 1]));
    }
  }
}

}  // namespace

int64_t norms_of(CellOpKind kind) {
  if (kind == CellOpKind::kNone || kind == CellOpKind::kIdentity) return 0;
  return kind == CellOpKind::kSeparableTwice ? 2 : 1;
}

int64_t convolutions_of(CellOpKind kind) {
  if (kind == CellOpKind::kSeparableTwice) return 4;
  if (kind == CellOpKind::kSeparable || kind == CellOpKind::kFactorizedReduce) return 2;
  return kind == CellOpKind::kDense ? 1 : 0;
}

CellPlan MixedCellPlan::view() const {
  return {shape,
          ops.data(),
          pools.data(),
          blocks.data(),
          block_op.data(),
          node_map.data(),
          input_pad,
          node_pad,
          chain_pad,
          {leaving.data(), leaving_at.data()},
          {entering.data(), entering_at.data()},
          {chains.data(), chains_at.data()},
          {state_pools.data(), state_pools_at.data()},
          parts.data(),
          static_cast<int64_t>(parts.size())};
}

std::vector<Tensor> check_per_norm(const char* op, const char* name, at::TensorList values,
                                   const MixedCellPlan& plan, const Tensor& like) {
  const CellShape& s = plan.shape;
  std::vector<Tensor> checked(s.norms);
  if (values.empty()) return checked;
  TORCH_CHECK_VALUE(static_cast<int64_t>(values.size()) == s.norms, op, ": ", name,
                    " must have no entry or one per norm, got ", values.size(), " for ", s.norms,
                    " norms");
  for (int64_t b = 0; b < s.norms; ++b) {
    if (values[b].numel() == 0) continue;
    check_beside(op, name, values[b], {s.channels}, like);
    checked[b] = values[b].contiguous();
  }
  return checked;
}

MixedCellArguments check_mixed_cell(const char* op, const MixedCellInputs& in, bool save,
                                    const CellStaging& staging) {
  MixedCellArguments a;
  CellShape& s = a.plan.shape;
  TORCH_CHECK_NOT_IMPLEMENTED(!save || in.shared == 0, op,
                              ": shared states have no gradient, got shared=", in.shared,
                              " with save=True");
  check_sizes(op, in, s);
  add_ops(op, in, a);
  for (const Tensor& state : in.states) {
    a.states.push_back(state.contiguous(at::MemoryFormat::ChannelsLast));
  }
  check_beside(op, "weights", in.weights, {s.groups, s.ops}, in.states[0]);
  a.weights = in.weights.contiguous();
  TORCH_CHECK_VALUE(static_cast<int64_t>(in.norms.size()) == s.norms &&
                        static_cast<int64_t>(in.eps.size()) == s.norms,
                    op, ": norms and eps must have one entry per norm, got ", in.norms.size(),
                    " and ", in.eps.size(), " for ", s.norms, " norms");
  std::vector<bool> pool_norm(s.norms, false);
  for (const CellOp& cell_op : a.plan.ops) {
    if (cell_op.pool >= 0) pool_norm[cell_op.norm] = true;
  }
  const bool one_value = s.images * s.node_height * s.node_width == 1;
  for (int64_t b = 0; b < s.norms; ++b) {
    TORCH_CHECK_VALUE(in.norms[b] >= (pool_norm[b] ? 0 : 1) && in.norms[b] <= 2, op,
                      ": norms must be 1 or 2, or 0 for a pool, got ", in.norms[b]);
    TORCH_CHECK_VALUE(in.norms[b] != static_cast<int64_t>(Norm::kBatch) || !one_value, op,
                      ": expected more than 1 value per channel when training, got states of ",
                      in.states[0].sizes(), " in ", s.groups, " groups");
    a.norms.push_back(static_cast<Norm>(in.norms[b]));
  }
  a.eps = in.eps.vec();
  a.gammas = check_per_norm(op, "gammas", in.gammas, a.plan, in.states[0]);
  a.betas = check_per_norm(op, "betas", in.betas, a.plan, in.states[0]);
  a.active = check_active(op, in.active, s.groups, s.ops);
  add_lists(a.plan);
  TORCH_CHECK_VALUE(in.precision >= 0 && in.precision <= 2, op,
                    ": precision must be 0, 1 or 2, got ", in.precision);
  a.precision = static_cast<Precision>(in.precision);
  TORCH_CHECK_NOT_IMPLEMENTED(
      a.precision == Precision::kFull || in.states[0].scalar_type() == at::kFloat, op,
      ": a precision below the full one needs float32 states, got ", in.states[0].scalar_type());
  const int64_t element = static_cast<int64_t>(in.states[0].element_size());
  a.plan.groups_at_once = save || !staging.staged ? s.groups : staging.groups(s, element);
  assign_parts(a.plan, staging, slot_elements(a.plan) * element);
  assign_slots(a.plan, save, a.precision != Precision::kFull, staging.staged);
  return a;
}

}  // namespace darts_fast
