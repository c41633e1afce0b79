// The kernels of a single step: a thread computes one unit of one row. The maths is that of
// csrc/cells/; here is only where things lie.
#pragma once

#include "../../cells/cells.h"
#include "../device/device.cuh"
#include "../device/lane.cuh"
#include "step.h"

namespace fastlstm {
namespace cuda {

using device::BFloat16;
using device::Half;

template <class S>
FASTLSTM_DEVICE Lane<Accumulator<S>> load(const S* p) {
  return {static_cast<Accumulator<S>>(*p)};
}
template <class S>
FASTLSTM_DEVICE void store(S* p, Lane<Accumulator<S>> x) {
  *p = static_cast<S>(x.v);
}

// Rows of a step and units of a row, over the threads of the grid: blocks are [rows, units], and
// walk on where the grid ends.
template <class F>
FASTLSTM_DEVICE void for_each_unit(int64_t rows, int64_t units, F&& f) {
  for (int64_t n = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; n < rows;
       n += int64_t{gridDim.y} * blockDim.y) {
    for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; j < units;
         j += int64_t{gridDim.x} * blockDim.x)
      f(n, j);
  }
}

struct Grid {
  dim3 grid, block;
};

// kThreads a block, as many units as fit in one row of it. An estimate: no other was measured.
inline Grid grid_of(int64_t rows, int64_t units, int directions) {
  constexpr int kThreads = 128;
  constexpr int64_t kMostBlocks = 65535;
  unsigned width = 32;
  while (width < kThreads && width < units) width *= 2;
  const unsigned height = kThreads / width;
  auto blocks = [&](int64_t count, unsigned size) {
    const int64_t needed = (count + size - 1) / size;
    return static_cast<unsigned>(needed < kMostBlocks ? needed : kMostBlocks);
  };
  return {dim3(blocks(units, width), blocks(rows, height), directions), dim3(width, height, 1)};
}

template <template <class> class Cell, class S>
FASTLSTM_KERNEL void step_fwd_kernel(const StepFwd<S> p) {
  using V = Lane<Accumulator<S>>;
  using C = Cell<V>;
  constexpr int kGates = C::kGates, kBiases = kGates + C::kTraits.separate;
  constexpr int kReserve = C::kTraits.reserve;
  const StepFwdDirection<S>& d = p.direction[blockIdx.z];
  for_each_unit(d.rows, p.H, [&](int64_t n, int64_t j) {
    const int64_t b = p.batch_row ? p.batch_row[n] : n;
    int64_t igates_row = n;
    if (d.tokens) {
      igates_row = d.tokens[b];
      if (igates_row < 0 || igates_row >= p.V) device::trap("token out of range");
    }
    V igates[kGates], hgates[kGates], bias[kBiases], reserve[kReserve ? kReserve : 1];
    for (int g = 0; g < kGates; ++g) {
      igates[g] = {d.igates[(igates_row * kGates + g) * p.H + j]};
      hgates[g] = {d.hgates[(n * kGates + g) * p.H + j]};
    }
    for (int g = 0; g < kBiases; ++g) bias[g] = {d.bias ? d.bias[g * p.H + j] : 0};
    V state = {d.state ? d.state[n * p.H + j] : 0};
    const V h = C::fwd(igates, hgates, bias, state, reserve);
    if (!C::kTraits.has_c) state = h;

    if (d.reserve)
      for (int g = 0; g < kReserve; ++g)
        store(d.reserve + n * p.reserve_stride + g * p.H + j, reserve[g]);
    if (d.c) d.c[b * p.c_stride + j] = state.v;
    const bool cut = d.cut && n < d.continuing && d.cut[b];
    if (d.state) d.state[n * p.H + j] = cut ? 0 : state.v;
    if (d.h_out) {
      store(d.h_out + n * p.h_out_stride + j, h);
    } else {
      store(d.h + b * p.h_stride + j, h);
      store(d.h_operand + n * p.P + j, cut ? V::broadcast(0) : h);
    }
  });
}

template <class S>
FASTLSTM_KERNEL void project_fwd_kernel(const ProjectFwd<S> p) {
  for_each_unit(p.rows, p.P, [&](int64_t n, int64_t j) {
    const int64_t b = p.batch_row ? p.batch_row[n] : n;
    const Lane<Accumulator<S>> h = {p.projected[n * p.P + j]};
    const bool cut = p.cut && n < p.continuing && p.cut[b];
    store(p.h + b * p.h_stride + j, h);
    store(p.h_operand + n * p.P + j, cut ? h.broadcast(0) : h);
  });
}

template <template <class> class Cell, class S>
FASTLSTM_KERNEL void step_bwd_kernel(const StepBwd<S> p) {
  using V = Lane<Accumulator<S>>;
  using C = Cell<V>;
  constexpr int kReserve = C::kTraits.reserve, kDgates = C::kTraits.dgates;
  constexpr bool kHasC = C::kTraits.has_c;
  const StepBwdDirection<S>& d = p.direction[blockIdx.z];
  const V zero = V::broadcast(0);
  for_each_unit(d.rows, p.H, [&](int64_t n, int64_t j) {
    const int64_t b = p.batch_row ? p.batch_row[n] : n;
    const bool is_initial = n >= d.rows_before;
    const bool cut_before = d.cut_before && (!is_initial || d.cut_initial) && d.cut_before[b];
    const bool cut_after = d.cut_after && n < d.continuing && d.cut_after[b];

    // P and H are the same unless h is projected, and then only c is a state of the cell.
    const bool in_h = j < p.P;
    V h = zero, h_before = zero, state = zero, state_before = zero;
    if (!kHasC && C::kTraits.bwd_reads_state) h = load(d.h + b * p.h_stride + j);
    if (!cut_before && in_h && (!kHasC || d.h_operand))
      h_before = load((is_initial ? d.h_initial : d.h_before) + b * p.h_stride + j);
    if (kHasC) {
      state = {d.c[b * p.c_stride + j]};
      if (!cut_before) state_before = {(is_initial ? d.c_initial : d.c_before)[b * p.c_stride + j]};
    } else {
      state = h;
      state_before = h_before;
    }
    if (d.h_operand && in_h) store(d.h_operand + n * p.P + j, h_before);

    V dh = zero;
    if (d.dh && (p.dh_is_whole || !cut_after)) dh = {d.dh[n * p.H + j]};
    if (d.dy) dh = dh + load(d.dy + b * p.dy_stride + j);
    V carry = zero;
    if (d.carry && !cut_after) carry = {d.carry[n * p.H + j]};
    if (d.dc_seq) carry = carry + V{d.dc_seq[b * p.dc_seq_stride + j]};

    V reserve[kReserve ? kReserve : 1], dgates[kDgates];
    for (int g = 0; g < kReserve; ++g)
      reserve[g] = load(d.reserve + n * p.reserve_stride + g * p.H + j);
    C::bwd(reserve, state, state_before, dh, dgates, carry);
    for (int g = 0; g < kDgates; ++g) store(d.dgates + (n * kDgates + g) * p.H + j, dgates[g]);
    if (d.carry) d.carry[n * p.H + j] = carry.v;
  });
}

template <class S>
FASTLSTM_KERNEL void project_bwd_kernel(const ProjectBwd<S> p) {
  for_each_unit(p.rows, p.P, [&](int64_t n, int64_t j) {
    const int64_t b = p.batch_row ? p.batch_row[n] : n;
    const bool cut = p.cut_after && n < p.continuing && p.cut_after[b];
    Lane<Accumulator<S>> dh = {cut ? 0 : p.dh[n * p.P + j]};
    if (p.dy) dh = dh + load(p.dy + b * p.dy_stride + j);
    store(p.dh_whole + n * p.P + j, dh);
  });
}

template <class P>
int64_t most_rows(const P& p) {
  int64_t rows = 0;
  for (int i = 0; i < p.directions; ++i)
    rows = p.direction[i].rows > rows ? p.direction[i].rows : rows;
  return rows;
}

template <class P>
using StepKernel = void (*)(const P);
template <class S, template <class> class... Cells>
StepKernel<StepFwd<S>> fwd_kernel(CellList<Cells...>, CellKind cell) {
  static constexpr StepKernel<StepFwd<S>> kKernels[] = {&step_fwd_kernel<Cells, S>...};
  return kKernels[cell];
}
template <class S, template <class> class... Cells>
StepKernel<StepBwd<S>> bwd_kernel(CellList<Cells...>, CellKind cell) {
  static constexpr StepKernel<StepBwd<S>> kKernels[] = {&step_bwd_kernel<Cells, S>...};
  return kKernels[cell];
}

template <class S>
void step_fwd(CellKind cell, const StepFwd<S>& p, cudaStream_t stream) {
  const Grid g = grid_of(most_rows(p), p.H, p.directions);
  device::launch(fwd_kernel<S>(AllCells{}, cell), g.grid, g.block, 0, stream, p);
}

template <class S>
void step_bwd(CellKind cell, const StepBwd<S>& p, cudaStream_t stream) {
  const Grid g = grid_of(most_rows(p), p.H, p.directions);
  device::launch(bwd_kernel<S>(AllCells{}, cell), g.grid, g.block, 0, stream, p);
}

template <class S>
void project_fwd(const ProjectFwd<S>& p, cudaStream_t stream) {
  const Grid g = grid_of(p.rows, p.P, 1);
  device::launch(&project_fwd_kernel<S>, g.grid, g.block, 0, stream, p);
}

template <class S>
void project_bwd(const ProjectBwd<S>& p, cudaStream_t stream) {
  const Grid g = grid_of(p.rows, p.P, 1);
  device::launch(&project_bwd_kernel<S>, g.grid, g.block, 0, stream, p);
}

#define FASTLSTM_INSTANTIATE_STEPS(S)                                   \
  template void step_fwd<S>(CellKind, const StepFwd<S>&, cudaStream_t); \
  template void step_bwd<S>(CellKind, const StepBwd<S>&, cudaStream_t); \
  template void project_fwd<S>(const ProjectFwd<S>&, cudaStream_t);     \
  template void project_bwd<S>(const ProjectBwd<S>&, cudaStream_t);

}  // namespace cuda
}  // namespace fastlstm
