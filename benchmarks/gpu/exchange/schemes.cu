#include "cluster.cuh"
#include "grid.cuh"
#include "run.h"

namespace fastlstm {
namespace exchange {
namespace {

const Scheme kSchemes[] = {
    {"empty", run_steps<Empty<true>>, Kind::kNormal, false, false},
    {"empty_block", run_steps<Empty<false>>, Kind::kNormal, false, false},
    {"counter", run_steps<ThroughBarrier<CounterBarrier>>, Kind::kCooperative, false, false},
    {"flag", run_steps<FlagInData<>>, Kind::kCooperative, false, true},
    {"cluster_barrier", run_steps<ClusterBarrier<AnyLanes>>, Kind::kCluster, true, false},
    {"cluster_async", run_steps<ClusterAsync<>>, Kind::kCluster, true, false},
    {"block", run_steps<OneBlock<>>, Kind::kNormal, true, false},
};

}  // namespace

FASTLSTM_SCHEMES(exchange_run, kSchemes)

}  // namespace exchange
}  // namespace fastlstm
