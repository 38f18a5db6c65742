// SPDX-License-Identifier: Apache-2.0
#include "norm_lists.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "operators.h"

namespace darts_fast {

at::Tensor tensor_of(PyObject* value) {
  if (!THPVariable_Check(value)) {
    throw pybind11::type_error("modules must hold tensors, got " +
                               std::string(Py_TYPE(value)->tp_name));
  }
  return THPVariable_Unpack(value);
}

void TensorOrNone::add(PyObject* value) {
  some_ = some_ || value != nullptr;
  tensors_.push_back(value == nullptr ? empty_ : tensor_of(value));
}

void RunningStatistics::add(const NormState* state) {
  const bool moves = state != nullptr && state->moves && state->keeps();
  any = any || moves;
  means.add(moves ? state->mean : nullptr);
  variances.add(moves ? state->var : nullptr);
  counters.add(moves ? state->counter : nullptr);
  momenta.push_back(moves ? state->momentum : 0.0);
}

bool RunningStatistics::move(const at::Tensor& mean, const at::Tensor& var, int64_t count,
                             bool cuda) const {
  static const auto op = find_op<MoveRunningStatisticsOp>("darts_fast::move_running_statistics");
  const auto& running = means.whole();
  const bool native = (mean.is_cpu() || (mean.is_cuda() && cuda)) &&
                      (mean.scalar_type() == at::kFloat || mean.scalar_type() == at::kDouble) &&
                      std::all_of(running.begin(), running.end(), [&](const at::Tensor& x) {
                        return x.scalar_type() == mean.scalar_type();
                      });
  if (!native) return false;
  const at::AutoDispatchBelowADInplaceOrView below;
  op.call(running, variances.whole(), counters.whole(), mean, var, momenta, count);
  return true;
}

}  // namespace darts_fast
