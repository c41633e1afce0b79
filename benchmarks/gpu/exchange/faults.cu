// The schemes with one mistake each, which the checksum or the emulator has to find. Not for GPUs.
#include "cluster.cuh"
#include "grid.cuh"
#include "run.h"

namespace fastlstm {
namespace exchange {
namespace {

template <Fault kFault>
using Counter = ThroughBarrier<CounterBarrier, kFault>;

const Scheme kFaults[] = {
    {"counter_no_wait", run_steps<Counter<Fault::kNoWait>>, Kind::kCooperative, false, false},
    {"counter_one_buffer", run_steps<Counter<Fault::kOneBuffer>>, Kind::kCooperative, false, false},
    {"flag_no_wait", run_steps<FlagInData<Fault::kNoWait>>, Kind::kCooperative, false, true},
    {"flag_nothing_sent", run_steps<FlagInData<Fault::kNothingSent>>, Kind::kCooperative, false,
     true},
    {"cluster_barrier_no_wait", run_steps<ClusterBarrier<AnyLanes, Fault::kNoWait>>, Kind::kCluster,
     true, false},
    {"cluster_barrier_one_buffer", run_steps<ClusterBarrier<AnyLanes, Fault::kOneBuffer>>,
     Kind::kCluster, true, false},
    {"cluster_async_no_wait", run_steps<ClusterAsync<Fault::kNoWait>>, Kind::kCluster, true, false},
    {"cluster_async_one_buffer", run_steps<ClusterAsync<Fault::kOneBuffer>>, Kind::kCluster, true,
     false},
    {"block_no_wait", run_steps<OneBlock<Fault::kNoWait>>, Kind::kNormal, true, false},
    {"block_one_buffer", run_steps<OneBlock<Fault::kOneBuffer>>, Kind::kNormal, true, false},
};

}  // namespace

FASTLSTM_SCHEMES(exchange_fault, kFaults)

}  // namespace exchange
}  // namespace fastlstm
