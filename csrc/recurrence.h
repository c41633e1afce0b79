// The contract between the layer and the kernels: plain structs of pointers, sizes and strides.
//
// No torch include here: these structs are all that device code ever sees. S is the scalar type;
// strides are in elements. T, N, I, H: time, batch, input size, hidden size. P: width of h, H
// unless it is projected. D: directions. G, R, Q: gates, reserve and dgates of the cell
// (cells/traits.h).
//
// The rows of all steps are numbered through, step after step ("compact rows" k): row n of step t
// is k = step_begin[t] + n. Sequences stand in order of falling length, so that the rows of a step
// are the first ones. States h and c of every step lie in buffers that also hold the initial
// states; where, is said by tables (layer/row_plan.h), so that padding, packing and resets cost the
// kernels nothing.
#pragma once

#include <stdint.h>

namespace fastlstm {

// The rows of a matrix that lie in memory as an [outer, inner] grid: row k starts at
// ptr + (k / inner) * outer_stride + (k % inner) * inner_stride, and its elements are adjacent.
// A [T, N, I] tensor of any strides is T * N such rows, in time-major order, without a copy.
// With an index, row k starts at ptr + index[k] * inner_stride instead.
template <class S>
struct Rows {
  S* ptr;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
  const int64_t* index = nullptr;
};

// Part of the recurrence that one thread computes: rows of the batch, and blocks of hidden units
// ("vectors" of as many units as the kernel has lanes). Threads of one group share their rows,
// hence need each other's h before the next step.
struct Share {
  int thread;
  int direction;
  int64_t row_begin, row_end, row_step;  // every row_step-th row
  int64_t vector_begin, vector_end;
  int group;
  int group_size;
};

// One barrier a group of threads, zero before use. A cache line for each counter: they are written
// by all threads of the group while the others spin.
struct Barrier {
  alignas(64) int arrived;
  alignas(64) int epoch;
  // Nanoseconds that threads waited for one that did not run: the waits of 100 us and more.
  alignas(64) int64_t late;
};

constexpr int kMaxDirections = 2;

// What `next` says of a row without a successor: its sequence ends, or was cut by a reset.
enum NextRow : int64_t { kSequenceEnds = -1, kSequenceCut = -2 };

template <class S>
struct FwdDirection {
  bool reverse;
  int64_t t_begin, t_end;  // the steps of this call, t_begin first unless reverse
  const S* w_hh_packed;    // [unit panels][P][units of the panel][G][lanes]
  const S* bias_packed;    // [ceil(H / lanes)][G + separate][lanes]
  const S* igates;  // of step t_begin: [k, G * H], igates_stride apart; with tokens [V, G * H]
  const int64_t* tokens;  // [k] row of the table, from row 0 on, or null
  S* reserve;  // of step t_begin: [k, R * H] reserve_stride apart; null: not kept. May be
               // igates itself
  S* h;        // [rows of the buffer, P]
  S* h_out;    // null: h. Else h before its projection, of step t_begin: [k, H]
  S* c;        // [rows of the buffer, H]; with c_in_place [N, H], c0 -> c_n. Null: no c
  const int64_t* prev_row;  // [k]: row of the buffer that holds the states before the step
};

template <class S>
struct RecurrenceFwd {
  int64_t N, H, P;
  const int64_t* step_begin;   // [T + 1]
  const int64_t* row;          // [k]: row of the buffers that the states of the step go to
  const int64_t* batch_row;    // [N]: row of [N, ...] tensors
  int64_t zero_row;            // the row before a reset: read as zero
  const S* zeros;              // [H]
  int64_t h_stride, c_stride;  // of a row
  int64_t h_out_stride;
  bool c_in_place;
  int64_t igates_stride, reserve_stride;
  S* workspace;  // [threads][N, P], where products have operands of their own
                 // (cpu/kernels/tile.inl)
  FwdDirection<S> direction[kMaxDirections];
};

template <class S>
struct BwdDirection {
  bool reverse;
  int64_t t_begin, t_end;  // the steps of this call, t_end - 1 first unless reverse
  const S* w_hh_packed;    // panels of [K, H], PackPanels
  const S* reserve;        // of step t_begin: [k, R * H] from forward
  const S* state;          // c of the LSTM, h of the others: [rows of the buffer, H]
  const S* dy;             // gradient of h; strides below; null: zero
  const S* dc_seq;         // gradient of every c, likewise; null: zero
  const S* dh_n;           // [N, H] gradient of h_n; null: zero
  S* carry;   // [N, H]: gradient that goes from step to step beside W_hh; on entry that
              // of c_n (zero without c), on return that of the state before the first step
  S* dgates;  // of step t_begin: [k, Q * H]; the step after the last (reverse: before the
              // first) holds the dgates of the call before
  const int64_t* prev_row;  // [k]: as in forward
  const int64_t* next;      // [k]: compact row of the step after, or NextRow
};

template <class S>
struct RecurrenceBwd {
  int64_t N, H;
  int64_t K;  // leading columns of dgates that go through W_hh; 0: dy holds all that reaches h
  const int64_t* step_begin;
  const int64_t* row;
  const int64_t* batch_row;
  const S* zeros;  // [max(K, H)]
  int64_t zero_row;
  int64_t state_stride;
  bool dy_compact, dc_seq_compact;  // of step t_begin: [k, ...]; else of step 0: [T, N, ...]
  int64_t dy_t_stride, dy_n_stride;
  int64_t dc_seq_t_stride, dc_seq_n_stride;
  int64_t reserve_stride, dgates_stride;
  S* workspace;  // [threads][N, K], likewise
  BwdDirection<S> direction[kMaxDirections];
};

// One step alone, of any cell, straight from the weights as they are.
template <class S>
struct CellFwd {
  int64_t N, I, H;
  const S* x;     // [N, I]
  const S* h;     // [N, H]
  const S* c;     // [N, H] or null
  const S* w_ih;  // [G * H, I]
  const S* w_hh;  // [G * H, H]
  const S* b_ih;  // [G * H] or null
  const S* b_hh;  // [G * H] or null
  S* h_out;       // [N, H]
  S* c_out;       // [N, H] or null
  S* reserve;     // [N, R * H] or null
};

// The cell's part of its backward: dgates. Products with them are left.
template <class S>
struct CellBwd {
  int64_t N, H;
  const S* reserve;     // [N, R * H]
  const S* state;       // [N, H] c_out of the LSTM, h_out of the others
  const S* state_prev;  // [N, H] c of the LSTM, h of the others
  const S* dh;          // [N, H] or null
  S* carry;   // [N, H]: in: gradient of c_out, or zero; out: what reaches c (GRU: h) beside W
  S* dgates;  // [N, Q * H]
};

}  // namespace fastlstm
