// What a step is expected to take by each way to compute it, in microseconds: of all jobs, with its
// share of what a launch costs once. For heuristics.cpp to compare; how it was made:
// step_model.cpp.
#pragma once

#include <optional>

#include "heuristics.h"

namespace fastlstm {
namespace cuda {

// How numbers would enter the products of tensor cores; none where the device has none for them.
std::optional<Operands> operands_of(const Problem& p, const DeviceProperties& device);

double stepwise_us(const Problem& p, const DeviceProperties& device);
double block_us(const Problem& p, const DeviceProperties& device, int64_t jobs);
// waves: how often as many jobs are computed as run at once.
double group_us(const Problem& p, const DeviceProperties& device, Exchange exchange,
                const GroupPlan& plan, int64_t waves);

}  // namespace cuda
}  // namespace fastlstm
