// The contract between the layer and the kernels: plain structs of pointers, sizes and strides.
//
// No torch include here: these structs are all that device code ever sees. S is the scalar type;
// strides are in elements. T, N, I, H: time, batch, input size, hidden size. G: gates of the cell
// (4 for LSTM). D: directions.
#pragma once

#include <stdint.h>

namespace fastlstm {

// The rows of a matrix that lie in memory as an [outer, inner] grid: row k starts at
// ptr + (k / inner) * outer_stride + (k % inner) * inner_stride, and its elements are adjacent.
// A [T, N, I] tensor of any strides is T * N such rows, in time-major order, without a copy.
template <class S>
struct Rows {
  S* ptr;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
};

// Part of the recurrence that one thread computes: rows of the batch, and blocks of hidden units
// ("vectors" of as many units as the kernel has lanes). Threads of one group share their rows,
// hence need each other's h before the next step.
struct Share {
  int direction;
  int64_t row_begin, row_end;
  int64_t vector_begin, vector_end;
  int group;
  int group_size;
};

// One barrier a group of threads, zero before use. A cache line for each counter: they are written
// by all threads of the group while the others spin.
struct Barrier {
  alignas(64) int arrived;
  alignas(64) int epoch;
};

constexpr int kMaxDirections = 2;

template <class S>
struct FwdDirection {
  bool reverse;
  int64_t t_begin, t_end;  // the steps of this call, t_begin first unless reverse
  const S* w_hh_packed;    // [ceil(H / lanes)][H][G][lanes]
  const S* bias_packed;    // [ceil(H / lanes)][G][lanes], b_ih + b_hh
  const S* igates;         // [t_end - t_begin, N, G * H], or with tokens a table [V, G * H]
  const int64_t* tokens;   // [t_end - t_begin, N] row of the table for each step, or null
  S* gates;  // [t_end - t_begin, N, G * H] activated gates for backward, may be igates itself;
             // null: not kept
  S* h;      // h of step 0: [T, N, H], strides below. Step -1 (reverse: step T) holds h0
  S* c;      // as h. With c_t_stride 0 there is one slot, c0 on entry and c_n on return
};

template <class S>
struct RecurrenceFwd {
  int64_t N, H;
  int64_t h_t_stride, h_n_stride;
  int64_t c_t_stride, c_n_stride;
  FwdDirection<S> direction[kMaxDirections];
};

template <class S>
struct BwdDirection {
  bool reverse;
  int64_t t_begin, t_end;  // the steps of this call, t_end - 1 first unless reverse
  const S* w_hh_packed;    // panels of [G * H, H], PackPanels
  const S* gates;          // [t_end - t_begin, N, G * H] from forward
  const S* c;              // c of step 0, strides below; c of the step before step 0 holds c0
  const S* dy;             // gradient of h, step 0: [T, N, H], strides below; null: zero
  const S* dc_seq;         // gradient of every c, step 0: [T, N, H], strides below; null: zero
  bool first_call;         // of a sequence: there is no step after the last
  const S* dh_n;           // [N, H] gradient of h_n, read if first_call; null: zero
  S* dc_inout;  // [N, H]: gradient of c after the last step -> gradient of c before the first step
  S* dgates;    // of step t_begin: [t_end - t_begin, N, G * H], rows dgates_stride apart; unless
              // first_call, the step after the last (reverse: before the first) holds the dgates of
              // the call before
};

template <class S>
struct RecurrenceBwd {
  int64_t N, H;
  int64_t c_t_stride, c_n_stride;
  int64_t dy_t_stride, dy_n_stride;
  int64_t dc_seq_t_stride, dc_seq_n_stride;
  int64_t dgates_stride;
  BwdDirection<S> direction[kMaxDirections];
};

}  // namespace fastlstm
