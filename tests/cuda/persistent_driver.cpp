// Persistent kernels on the emulator, without torch: for launches that a layer does not make and
// for sources with planted faults (persistent_driver.py). An LSTM of 40 units, 16 a block of a
// group, over five steps of nine rows and less, in tiles of eight; a tenth row has no steps, and
// some sequences begin anew.
#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <exception>

// Asked for by sources with faults. Which fault is on, 0 for none; and whether every bit of a NaN
// is set.
static int planted = 0;
static bool nan_is_all_ones = false;

#include "cuda/persistent/block/launch.cuh"
#include "cuda/persistent/group/launch.cuh"

namespace fastlstm {
namespace cuda {

// Every kernel of a type takes long to compile. These are those of the module.
extern template void group_fwd(CellKind, Exchange, const GroupFwd<device::Half>&, cudaStream_t);
extern template void group_bwd(CellKind, Exchange, const GroupBwd<device::Half>&, cudaStream_t);

namespace {

using device::BFloat16;

constexpr int kSteps = 5, kN = 10, kH = 40, kG = 4, kUnits = 16;
constexpr int64_t kStepBegin[kSteps + 1] = {0, 9, 18, 27, 34, 37}, kRows = kStepBegin[kSteps];

enum Family { kOfBlock, kOfCluster, kOfGrid };

// As in persistent_driver.py.
struct Run {
  uint64_t seed;
  int family;
  int rows;      // of a tile of a group
  int groups;    // of a grid
  int reverse;   // the direction; backward: 0
  int split;     // forward: so many steps in a launch of their own
  int with_nan;  // forward: in the initial h of rows 1 and 9, with every bit set
  int garbage;   // grid: what has to be filled before the launch is not
  int absent;    // grid: blocks that are not launched
};

// Between -0.5 and 0.5.
float number(int64_t name, int64_t i) {
  return static_cast<float>((i * 37 + name * 29 + 11) % 101) / 101 - 0.5f;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : size_(size), data_(static_cast<T*>(simt::guarded_alloc(size * sizeof(T)))) {}
  Buffer(int64_t size, int64_t name) : Buffer(size) {
    for (int64_t i = 0; i < size; ++i) data_[i] = T(number(name, i));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { simt::guarded_free(data_); }

  T* data() const { return data_; }
  void fill(T value) const { std::fill_n(data_, size_, value); }
  float* copy_to(float* out) const {
    for (int64_t i = 0; i < size_; ++i) *out++ = static_cast<float>(data_[i]);
    return out;
  }

 private:
  const int64_t size_;
  T* const data_;
};

bool* reset_flags() {
  static bool flags[kSteps * kN] = {};
  flags[1 * kN + 2] = flags[2 * kN + 0] = flags[3 * kN + 5] = true;
  return flags;
}

SequenceRows sequence_rows() {
  return {kSteps, kN, kH, kStepBegin, nullptr, reset_flags(), /*packed=*/false};
}

GroupPlan plan_of(const Run& r) {
  return r.family == kOfCluster ? GroupPlan{kUnits, 4, r.rows, ceil_div(kN, r.rows)}
                                : GroupPlan{kUnits, 3, r.rows, r.groups};
}

template <class P>
void launch(GroupKernel<P> kernel, const Run& r, int shared_bytes, const P& p) {
  if (r.absent == 0) {
    const auto exchange = r.family == kOfCluster ? Exchange::kCluster : Exchange::kGrid;
    return launch_group(kernel, exchange, shared_bytes, p, nullptr);
  }
  const unsigned blocks = p.plan.groups * p.plan.blocks - r.absent;
  device::launch_cooperative(kernel, dim3(blocks, 1, 1), dim3(kGroupThreads, 1, 1), shared_bytes,
                             nullptr, p);
}

template <class S>
void launch_forward(const Run& r, const SequenceFwd<S>& p) {
  if constexpr (Operand<S>::kPerWord == 2) {
    if (r.family == kOfBlock)
      return launch_block(launch_of<BlockFwd<LstmCell, S, 0>>(kH), p, nullptr);
  }
  const auto exchange = r.family == kOfCluster ? Exchange::kCluster : Exchange::kGrid;
  GroupFwd<S> g{p, plan_of(r), nullptr};
  const int64_t steps = p.direction[0].t_end - p.direction[0].t_begin;
  const Buffer<uint32_t> words(
      grid_fwd_exchange_bytes(job_count(kN, 1, g.plan.rows), steps, sizeof(S), g.plan) / 4);
  words.fill(r.garbage ? 0 : kNotSent);
  g.exchange = words.data();
  const FwdLayout layout =
      fwd_layout(LstmCell<Lane<float>>::kTraits, Operand<S>::kKind, exchange, kH, g.plan);
  launch(fwd_kernel<LstmCell, S, kUnits>(exchange), r, layout.end, g);
}

// out: h of every step [T, N, H], the last h and c [N, H], the activated gates [rows, G * H].
template <class S>
void run_forward(const Run& r, float* out) {
  const Buffer<float> igates(kRows * kG * kH, 1), bias(kG * kH, 2), c(kN * kH, 3);
  const Buffer<S> w(kG * kH * kH, 4), h(kSteps * kN * kH, 5), reserve(kRows * kG * kH, 6);
  const Buffer<S> h_begin(kN * kH, 7), h_end(kN * kH, 8);
  for (const int row : {1, 9})
    if (r.with_nan) memset(h_begin.data() + row * kH, 0xff, kH * sizeof(S));
  SequenceFwd<S> p{};
  p.rows = sequence_rows();
  p.w_hh_stride = p.h_stride = p.c_stride = kH;
  p.directions = 1;
  SequenceFwdDirection<S>& d = p.direction[0];
  d.reverse = r.reverse;
  d.w_hh = w.data();
  d.bias = bias.data();
  d.state = c.data();
  d.h_begin = h_begin.data();
  S* h_after = h_end.data();
  d.h = h.data();
  d.reserve = reserve.data();
  const int ends[3] = {0, r.split, kSteps};
  for (int i = 0; i < 2; ++i) {
    d.t_begin = r.reverse ? kSteps - ends[i + 1] : ends[i];
    d.t_end = r.reverse ? kSteps - ends[i] : ends[i + 1];
    d.igates = igates.data() + kStepBegin[d.t_begin] * kG * kH;
    d.h_end = h_after;
    launch_forward(r, p);
    h_after = const_cast<S*>(d.h_begin);
    d.h_begin = d.h_end;
  }
  out = h.copy_to(out);
  out = std::transform(d.h_begin, d.h_begin + kN * kH, out,
                       [](S x) { return static_cast<float>(x); });
  out = c.copy_to(out);
  reserve.copy_to(out);
}

// out: gradients of the pre-activations [rows, G * H], of the initial h and c [N, H].
void run_backward(const Run& r, float* out) {
  using S = BFloat16;
  const Buffer<float> c(kSteps * kN * kH, 1), c_initial(kN * kH, 2), dh(kN * kH, 3), dc(kN * kH, 4);
  const Buffer<S> w(kH * kH * kG, 5), h(kSteps * kN * kH, 6), h_initial(kN * kH, 7);
  const Buffer<S> reserve(kRows * kG * kH, 8), dy(kSteps * kN * kH, 9), dgates(kRows * kG * kH, 10);
  const auto exchange = r.family == kOfCluster ? Exchange::kCluster : Exchange::kGrid;
  GroupBwd<S> g{{}, plan_of(r), nullptr, nullptr};
  SequenceBwd<S>& p = g.sequence;
  p.rows = sequence_rows();
  p.h_stride = p.c_stride = p.dy_n_stride = kH;
  p.dy_t_stride = kN * kH;
  p.directions = 1;
  SequenceBwdDirection<S>& d = p.direction[0];
  d.w_hh_t = w.data();
  d.reserve = reserve.data();
  d.h = h.data();
  d.h_initial = h_initial.data();
  d.c = c.data();
  d.c_initial = c_initial.data();
  d.dy = dy.data();
  d.dh = dh.data();
  d.carry = dc.data();
  d.dgates = dgates.data();
  const Buffer<float> parts(grid_bwd_exchange_bytes(g.plan) / 4);
  const Buffer<unsigned> counters(job_count(kN, 1, g.plan.rows) * kCounterStride);
  if (!r.garbage) counters.fill(0);
  g.exchange = parts.data();
  g.counters = counters.data();
  const BwdLayout layout =
      bwd_layout(LstmCell<Lane<float>>::kTraits, Operand<S>::kKind, exchange, g.plan);
  launch(bwd_kernel<LstmCell, S, kUnits>(exchange), r, layout.end, g);
  out = dgates.copy_to(out);
  out = dh.copy_to(out);
  dc.copy_to(out);
}

// 0, or 1 with the words of what f threw.
template <class F>
int caught(char* error, size_t size, F&& f) try {
  f();
  return 0;
} catch (const std::exception& e) {
  snprintf(error, size, "%s", e.what());
  return 1;
}

}  // namespace
}  // namespace cuda
}  // namespace fastlstm

using namespace fastlstm;
using namespace fastlstm::cuda;

// kind: 0 forward of bfloat16, 1 forward of float32, 2 backward of bfloat16. fault: 0 for none.
extern "C" int run_driver(const Run* run, int kind, int fault, float* out, char* error,
                          size_t error_size) {
  planted = fault;
  nan_is_all_ones = run->with_nan;
  simt::set_seed(run->seed);
  return caught(error, error_size, [&] {
    if (kind == 0) run_forward<BFloat16>(*run, out);
    if (kind == 1) run_forward<Float3x>(*run, out);
    if (kind == 2) run_backward(*run, out);
  });
}

// Of a layer of H units, which has no memory: for plans that are refused.
extern "C" int run_plan(bool backward, bool cluster, int H, const GroupPlan* plan, char* error,
                        size_t error_size) {
  const auto exchange = cluster ? Exchange::kCluster : Exchange::kGrid;
  return caught(error, error_size, [&] {
    GroupFwd<device::Half> fwd{{}, *plan, nullptr};
    GroupBwd<device::Half> bwd{{}, *plan, nullptr, nullptr};
    fwd.sequence.rows.N = bwd.sequence.rows.N = 1;
    fwd.sequence.rows.H = bwd.sequence.rows.H = H;
    fwd.sequence.directions = bwd.sequence.directions = 1;
    constexpr CellKind kLstm = kind_of("LSTM");
    backward ? group_bwd(kLstm, exchange, bwd, nullptr) : group_fwd(kLstm, exchange, fwd, nullptr);
  });
}

extern "C" void set_max_resident_blocks(int blocks) { simt::set_max_resident_blocks(blocks); }
extern "C" void set_spin_limit(int64_t looks) { simt::set_spin_limit(looks); }
