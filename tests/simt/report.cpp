// SPDX-License-Identifier: Apache-2.0
// What the scheduler says when a block cannot go on.
#include <map>
#include <numeric>
#include <sstream>
#include <utility>

#include "scheduler.h"

namespace simt {

std::string text(Site site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

std::vector<Fiber*> fibers_of(const std::vector<int>& indices) {
  std::vector<Fiber*> fibers;
  for (const int i : indices) fibers.push_back(&scheduler().threads[i].fiber);
  return fibers;
}

std::vector<int> everyone() {
  std::vector<int> indices(scheduler().count);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

void fail(const std::string& what) {
  Scheduler& s = scheduler();
  end(s.main, fibers_of(everyone()).data(), s.count);
  std::ostringstream message;
  message << "simt: " << function_name(s.kernel) << ", block (" << blockIdx.x << ", " << blockIdx.y
          << ", " << blockIdx.z << "): " << what;
  throw Error(message.str());
}

void fail_stuck() {
  const Scheduler& s = scheduler();
  std::map<std::pair<std::string, unsigned>, int> waiting;
  int returned = 0;
  for (int i = 0; i < s.count; ++i) {
    const Thread& thread = s.threads[i];
    if (thread.state == State::kDone) ++returned;
    if (thread.state == State::kBarrier) ++waiting[{"__syncthreads, " + text(thread.wait.site), 0}];
    if (thread.state == State::kWarp) {
      ++waiting[{"a warp operation, " + text(thread.wait.site), thread.wait.mask}];
    }
  }
  std::ostringstream what;
  what << "is stuck:";
  for (const auto& [where, threads] : waiting) {
    what << " " << threads << " thread(s) wait at " << where.first;
    if (where.second != 0) what << ", mask 0x" << std::hex << where.second << std::dec;
    what << ";";
  }
  what << " " << returned << " have returned";
  fail(what.str());
}

}  // namespace simt
