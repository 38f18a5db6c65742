// SPDX-License-Identifier: Apache-2.0
// Every operator schema, and the facts of the build that are not operators.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "cell_call.h"
#include "cpu/capability.h"
#include "modules.h"
#include "written.h"

TORCH_LIBRARY(darts_fast, m) {
  m.def(
      "node_sum(Tensor[] maps, Tensor weights, Tensor? gamma, Tensor? beta, Tensor? running_mean, "
      "Tensor? running_var, int[] norms, float[] eps, int groups, Tensor? active) "
      "-> (Tensor node, Tensor mean, Tensor var)");
  m.def(
      "node_sum_backward(Tensor grad_node, Tensor[] maps, Tensor weights, Tensor? gamma, "
      "Tensor? beta, Tensor mean, Tensor var, int[] norms, float[] eps, int groups, "
      "Tensor? active, bool[] output_mask) "
      "-> (Tensor[] grad_maps, Tensor grad_weights, Tensor grad_gamma, Tensor grad_beta)");
  m.def(
      "conv_blocks(Tensor[] inputs, Tensor? mean, Tensor? var, Tensor? gamma, Tensor? beta, "
      "int norm, float eps, int[] sources, Tensor[] depthwise, Tensor[] pointwise, "
      "int[] dilations, int stride, int groups, Tensor? active) "
      "-> (Tensor[] outputs, Tensor mean, Tensor var)");
  m.def(
      "conv_blocks_backward(Tensor[] grad_outputs, bool[] arrives, Tensor[] inputs, Tensor? mean, "
      "Tensor? var, Tensor? gamma, Tensor? beta, int norm, float eps, int[] sources, "
      "Tensor[] depthwise, Tensor[] pointwise, int[] dilations, int stride, int groups, "
      "Tensor? active, bool[] output_mask) "
      "-> (Tensor[] grad_inputs, Tensor grad_gamma, Tensor grad_beta, Tensor[] grad_depthwise, "
      "Tensor[] grad_pointwise)");
  m.def(
      "mixed_cell(Tensor[] states, Tensor weights, Tensor[] convolutions, Tensor[] gammas, "
      "Tensor[] betas, Tensor[] running_means, Tensor[] running_vars, int[] ops, int[] norms, "
      "float[] eps, int nodes, int multiplier, int stride, int groups, int shared, "
      "Tensor? active, int precision, bool save) "
      "-> (Tensor output, Tensor saved, Tensor mean, Tensor var)");
  m.def(
      "mixed_cell_backward(Tensor grad_output, Tensor saved, Tensor mean, Tensor var, "
      "Tensor[] states, Tensor weights, Tensor[] convolutions, Tensor[] gammas, Tensor[] betas, "
      "int[] ops, int[] norms, float[] eps, int nodes, int multiplier, int stride, int groups, "
      "Tensor? active, int precision, bool[] output_mask) "
      "-> (Tensor[] grad_states, Tensor grad_weights, Tensor[] grad_convolutions, "
      "Tensor[] grad_gammas, Tensor[] grad_betas)");
  m.def(
      "relu_conv_norm(Tensor input, Tensor[] weights, Tensor? gamma, Tensor? beta, "
      "Tensor? running_mean, Tensor? running_var, int norm, float eps, int stride, int groups, "
      "bool relu=True, bool save=True) -> (Tensor output, Tensor raw, Tensor mean, Tensor var)");
  m.def(
      "relu_conv_norm_backward(Tensor grad_output, Tensor input, Tensor raw, Tensor mean, "
      "Tensor var, Tensor[] weights, Tensor? gamma, Tensor? beta, int norm, float eps, int stride, "
      "int groups, bool relu, bool[] output_mask) "
      "-> (Tensor grad_input, Tensor[] grad_weights, Tensor grad_gamma, Tensor grad_beta)");
  m.def(
      "move_running_statistics(Tensor(a!)[] running_means, Tensor(b!)[] running_vars, "
      "Tensor(c!)[] tracked, Tensor mean, Tensor var, float[] momenta, int count) -> ()");
}

PYBIND11_MODULE(_C, m) {
  namespace cpu = darts_fast::cpu;
  m.def("cpu_capability", &cpu::capability_name);
  m.def("set_cpu_capability", &cpu::set_capability);
  m.def("available_cpu_capabilities", &cpu::available_capabilities);
  m.def("same_modules", &darts_fast::same_modules);
  m.def("type_versions", &darts_fast::type_versions);
  m.def("same_types", &darts_fast::same_types);
  m.def("same_entries", &darts_fast::same_entries);
  m.def("same_shapes", &darts_fast::same_shapes);
  m.def("norm_arguments", &darts_fast::norm_arguments);
  m.def("running_statistics", &darts_fast::running_statistics);
  using darts_fast::CellCall, darts_fast::ReluConvNormCall;
  pybind11::class_<CellCall>(m, "CellCall")
      .def(pybind11::init<std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>, int64_t,
                          int64_t, int64_t, int64_t>())
      .def("run", &CellCall::run);
  pybind11::class_<ReluConvNormCall>(m, "ReluConvNormCall")
      .def(pybind11::init<size_t, int64_t, bool>())
      .def("run", &ReluConvNormCall::run)
      .def("run_and_move", &ReluConvNormCall::run_and_move);
  using darts_fast::WrittenModules, darts_fast::WrittenTables;
  pybind11::class_<WrittenTables>(m, "WrittenTables")
      .def(pybind11::init<const pybind11::list&>())
      .def("written", &WrittenTables::written)
      .def("take", &WrittenTables::take)
      .def("forget", &WrittenTables::forget);
  pybind11::class_<WrittenModules>(m, "WrittenModules")
      .def(pybind11::init<const pybind11::list&>())
      .def("written", &WrittenModules::written)
      .def("take", &WrittenModules::take)
      .def("forget", &WrittenModules::forget)
      .def("untouched", &WrittenModules::untouched);
#if defined(DARTS_WITH_CUDA)
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
}
