// SPDX-License-Identifier: Apache-2.0
// Which of the compiled CPU capabilities runs. Detected once; DARTS_FAST_CPU_CAPABILITY caps it.
#pragma once

#include <string>
#include <vector>

namespace darts_fast::cpu {

enum class Capability { kDefault = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The capabilities this build contains and this machine can run, weakest first.
std::vector<std::string> available_capabilities();

// The one in use. The first call reads DARTS_FAST_CPU_CAPABILITY; a name that is unknown, or not
// available here, throws std::invalid_argument that lists the choices.
Capability capability();

std::string capability_name();

// Uses another one from now on; same error.
void set_capability(const std::string& name);

}  // namespace darts_fast::cpu
