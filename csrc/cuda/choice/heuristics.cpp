// Every plan that may be the best for a problem gets an estimate of its time (step_model.h), and
// the least is taken. docs/cuda.md shows some of the choices.
#include "heuristics.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "step_model.h"

namespace fastlstm {
namespace cuda {
namespace {

Choice stepwise(const Problem& p, const DeviceProperties& device) {
  return {Method::kStepwise, {}, 0, stepwise_us(p, device)};
}

// What a word asks for beside a method.
struct WantedPlan {
  Method method;
  GroupPlan plan;
};

// "cluster:UNITSxBLOCKSxROWS" or "grid:UNITSxBLOCKSxROWSxGROUPS".
std::optional<WantedPlan> wanted_plan(const char* wanted) {
  GroupPlan plan = {};
  int end = 0;
  const auto is_whole = [&] { return end > 0 && wanted[end] == '\0'; };
  std::sscanf(wanted, "cluster:%dx%dx%d%n", &plan.units, &plan.blocks, &plan.rows, &end);
  if (is_whole()) return WantedPlan{Method::kCluster, plan};
  std::sscanf(wanted, "grid:%dx%dx%dx%d%n", &plan.units, &plan.blocks, &plan.rows, &plan.groups,
              &end);
  if (is_whole()) return WantedPlan{Method::kGrid, plan};
  return std::nullopt;
}

// Remembers the best plan of those that are possible, the first of equal ones.
class Search {
 public:
  Search(const Problem& problem, const DeviceProperties& device, Operands operands)
      : p_(problem), device_(device), operands_(operands) {}

  void consider(const Choice& choice) {
    if (!best_ || choice.step_us < best_->step_us) best_ = choice;
  }

  void consider_block() {
    if (p_.block_shared_bytes == 0 || p_.block_shared_bytes > device_.shared_bytes) return;
    const int64_t jobs = job_count(p_.N, p_.directions, kRowTile);
    if (jobs > kMostBlocks) return;
    const GroupPlan plan = {static_cast<int>(p_.H), 1, kRowTile, static_cast<int>(jobs)};
    consider({Method::kBlock, plan, p_.block_shared_bytes, block_us(p_, device_, jobs)});
  }

  // The smallest cluster that holds the units: a larger one has blocks without any.
  void consider_clusters() {
    if (p_.H > kMostUnits) return;
    for (const int units : kUnitsChoices) {
      int blocks = 2;
      while (blocks <= 16 && int64_t{blocks} * units < p_.H) blocks *= 2;
      for_each_rows([&](int rows) { consider_cluster(units, blocks, rows); });
    }
  }

  void consider_grids() {
    if (p_.H > kMostUnits) return;
    for (const int units : kUnitsChoices) {
      const int blocks = ceil_div(static_cast<int>(p_.H), units);
      const int most = device_.multiprocessors / blocks;
      if (most == 0) continue;
      for_each_rows([&](int rows) {
        // As few groups as need no more waves than the most do.
        const int64_t jobs = job_count(p_.N, p_.directions, rows),
                      waves = ceil_div<int64_t>(jobs, most);
        consider_grid({units, blocks, rows, static_cast<int>(ceil_div(jobs, waves))});
      });
    }
  }

  // One that was asked for.
  void consider(const WantedPlan& wanted) {
    const GroupPlan& plan = wanted.plan;
    const bool has_kernel =
        std::count(std::begin(kUnitsChoices), std::end(kUnitsChoices), plan.units) == 1;
    if (!has_kernel || plan.blocks <= 0 || int64_t{plan.units} * plan.blocks < p_.H) return;
    if (plan.rows <= 0 || plan.rows > kMostRows || plan.rows % kRowTile != 0) return;
    if (wanted.method == Method::kCluster) {
      consider_cluster(plan.units, plan.blocks, plan.rows);
    } else if (plan.groups > 0 && int64_t{plan.groups} * plan.blocks <= device_.multiprocessors) {
      consider_grid(plan);
    }
  }

  const std::optional<Choice>& best() const { return best_; }

 private:
  static constexpr int kMostRows = 64;
  static constexpr int64_t kMostBlocks = std::numeric_limits<int>::max();  // of a launch

  // 0: there are none.
  int clusters_at_once(int blocks) const {
    if (operands_ == Operands::kTf32x3) return 0;
    if (device_.compiled_for < 90 || blocks < 2 || (blocks & (blocks - 1)) != 0) return 0;
    if (blocks <= 8) return device_.clusters_of_8 * (8 / blocks);
    return blocks == 16 ? device_.clusters_of_16 : 0;
  }

  void consider_cluster(int units, int blocks, int rows) {
    const int at_once = clusters_at_once(blocks);
    const int64_t jobs = job_count(p_.N, p_.directions, rows);
    if (at_once == 0 || jobs > kMostBlocks / blocks) return;
    consider_group(Exchange::kCluster, {units, blocks, rows, static_cast<int>(jobs)},
                   ceil_div<int64_t>(jobs, at_once));
  }
  void consider_grid(const GroupPlan& plan) {
    consider_group(Exchange::kGrid, plan,
                   ceil_div<int64_t>(job_count(p_.N, p_.directions, plan.rows), plan.groups));
  }

  template <class F>
  void for_each_rows(F&& f) const {
    const int64_t most = std::min<int64_t>(kMostRows, ceil_div<int64_t>(p_.N, kRowTile) * kRowTile);
    for (int rows = kRowTile; rows <= most; rows += kRowTile) f(rows);
  }

  void consider_group(Exchange exchange, const GroupPlan& plan, int64_t waves) {
    const CellTraits& cell = kCellTraits[p_.cell];
    const int H = static_cast<int>(p_.H);
    const size_t shared_bytes = p_.backward ? bwd_layout(cell, operands_, exchange, plan).end
                                            : fwd_layout(cell, operands_, exchange, H, plan).end;
    if (shared_bytes > device_.shared_bytes) return;
    consider({exchange == Exchange::kGrid ? Method::kGrid : Method::kCluster, plan, shared_bytes,
              group_us(p_, device_, exchange, plan, waves)});
  }

  const Problem& p_;
  const DeviceProperties& device_;
  const Operands operands_;
  std::optional<Choice> best_;
};

}  // namespace

const char* name_of(Method method) {
  constexpr const char* kNames[] = {"stepwise", "block", "cluster", "grid"};
  return kNames[static_cast<int>(method)];
}

Choice choose(const Problem& problem, const DeviceProperties& device, const char* wanted) {
  const auto is = [&](const char* word) { return std::strcmp(wanted, word) == 0; };
  const bool any = is("auto");
  const std::optional<WantedPlan> plan = wanted_plan(wanted);
  if (!any && !is("stepwise") && !is("block") && !is("cluster") && !is("grid") && !plan) {
    throw std::invalid_argument(
        std::string("FASTLSTM_CUDA_KERNEL must be auto, stepwise, block, cluster, grid, "
                    "cluster:UNITSxBLOCKSxROWS or grid:UNITSxBLOCKSxROWSxGROUPS, got ") +
        wanted);
  }
  const bool empty = problem.T == 0 || problem.N == 0 || problem.H == 0;
  const std::optional<Operands> operands = operands_of(problem, device);
  if (empty || problem.projected || !operands) return stepwise(problem, device);
  Search search(problem, device, *operands);
  if (any) search.consider(stepwise(problem, device));
  if (any || is("block")) search.consider_block();
  if (any || is("cluster")) search.consider_clusters();
  if (any || is("grid")) search.consider_grids();
  if (plan) search.consider(*plan);
  return search.best() ? *search.best() : stepwise(problem, device);
}

const char* wanted_kernel() {
  const char* wanted = std::getenv("FASTLSTM_CUDA_KERNEL");
  return wanted && *wanted ? wanted : "auto";
}

}  // namespace cuda
}  // namespace fastlstm
