// SPDX-License-Identifier: Apache-2.0
#include "cpu/capability.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace darts_fast::cpu {
namespace {

const std::vector<std::string> kNames = {"DEFAULT", "AVX2", "AVX512", "AVX512BF16"};

Capability detect() {
#if defined(DARTS_X86_CAPABILITIES)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? Capability::kAvx512Bf16 : Capability::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::kAvx2;
#endif
  return Capability::kDefault;
}

Capability from_name(const std::string& name, const std::string& source) {
  const std::vector<std::string> available = available_capabilities();
  std::string choices;
  for (size_t i = 0; i < available.size(); ++i) {
    if (available[i] == name) return static_cast<Capability>(i);
    choices += (i == 0 ? "" : ", ") + available[i];
  }
  throw std::invalid_argument(source + ": must be one of the capabilities of this build and CPU (" +
                              choices + "), got '" + name + "'");
}

Capability from_environment() {
  const char* name = std::getenv("DARTS_FAST_CPU_CAPABILITY");
  return name == nullptr ? detect() : from_name(name, "DARTS_FAST_CPU_CAPABILITY");
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> value{from_environment()};
  return value;
}

}  // namespace

std::vector<std::string> available_capabilities() {
  const auto count = static_cast<std::ptrdiff_t>(detect()) + 1;
  return {kNames.begin(), kNames.begin() + count};
}

Capability capability() { return current().load(std::memory_order_relaxed); }

std::string capability_name() { return kNames[static_cast<size_t>(capability())]; }

void set_capability(const std::string& name) {
  current().store(from_name(name, "set_cpu_capability"), std::memory_order_relaxed);
}

}  // namespace darts_fast::cpu
