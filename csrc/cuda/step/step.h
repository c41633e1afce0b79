// The contract between the host code of a layer on CUDA and the kernels of a single step: plain
// structs of pointers, sizes and strides, and the functions that launch the kernels.
//
// No torch include here. S is the scalar type of the layer's tensors; A that of sums and states:
// float where S has 16 bits, else S. Strides are in elements. T, N, I, H: time, batch, input size,
// hidden size. P: width of h, H unless it is projected. G, R, Q: gates, reserve and dgates of the
// cell (cells/traits.h). V: rows of a table.
//
// Row n of a step is that of the n-th longest sequence, batch row b = batch_row[n]; the rows of a
// step are the first ones. "Compact" tensors hold the rows of a step after those of the step
// before, in that order. x, y and their gradients hold them by b, or are compact themselves when
// they are packed (then b = n). Initial states, states between the steps and their gradients are
// [N, ...] in the order of n.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "../../cells/cells.h"

namespace fastlstm {

namespace device {
struct Half;
struct BFloat16;
}  // namespace device

namespace cuda {

template <class S>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class S>
using Accumulator = typename AccumulatorOf<S>::type;

constexpr int kDirections = 2;

template <class S>
struct StepFwdDirection {
  using A = Accumulator<S>;
  int64_t rows;           // of this step; 0: nothing to do
  int64_t continuing;     // the first of them, whose sequences have a step after this one
  const A* igates;        // of row 0: [rows, G * H]; with tokens [V, G * H]
  const int64_t* tokens;  // [b] of this step: row of the table, or null
  const A* hgates;        // [rows, G * H]: W_hh h of the step before
  const A* bias;          // [G + separate, H] (GruBias of cells/gru.h), or null
  A* state;               // [N, H]: c of the LSTM, h of the GRU, before -> after; null: RNN
  S* h_operand;           // [N, P]: h after the step as W_hh is to see it, zero where cut
  S* h;                   // [b] of this step: rows of [.., P], h_stride apart
  A* c;                   // [b] of this step: rows of [.., H], c_stride apart; null: not kept
  S* reserve;             // of row 0: [rows, R * H], reserve_stride apart; null: not kept
  S* h_out;               // null, or h before its projection: [rows, H], h_out_stride apart. Then
                          // h and h_operand are left to project_fwd
  const bool* cut;        // [b]: no state passes to the step after; null: it always does
};

template <class S>
struct StepFwd {
  int64_t H, P, V;
  int64_t reserve_stride, h_stride, c_stride, h_out_stride;
  const int64_t* batch_row;  // [N], or null: b = n
  int directions;
  StepFwdDirection<S> direction[kDirections];
};

template <class S>
void step_fwd(CellKind cell, const StepFwd<S>& p, cudaStream_t stream);

// h of a projected step, from the product with W_hr to where it is needed.
template <class S>
struct ProjectFwd {
  using A = Accumulator<S>;
  int64_t rows, continuing, P;
  int64_t h_stride;
  const A* projected;  // [rows, P]
  S* h_operand;        // [N, P]
  S* h;                // [b] of this step
  const bool* cut;     // [b], or null
  const int64_t* batch_row;
};

template <class S>
void project_fwd(const ProjectFwd<S>& p, cudaStream_t stream);

template <class S>
struct StepBwdDirection {
  using A = Accumulator<S>;
  int64_t rows, continuing;
  int64_t rows_before;  // the first ones, whose states before are those of a step; else initial
  const S* reserve;     // of row 0: [rows, R * H] from forward
  const S* h;           // [b] of this step: rows of [.., P]; null where no cell reads it
  const S* h_before;    // [b] of the step before
  const S* h_initial;   // [b]
  const A* c;           // likewise, of [.., H]; null but for the LSTM
  const A* c_before;
  const A* c_initial;
  const S* dy;      // [b] of this step: gradient of h, dy_stride apart; null: zero
  const A* dc_seq;  // [b] of this step: gradient of c, likewise
  const A* dh;      // [N, P]: gradient that comes from the step after or h_n; with dh_is_whole
                    // [rows, H], all there is, dy and cuts included
  A* carry;         // [N, H]: what goes beside W_hh (CellTraits::has_carry), or null
  S* dgates;        // of row 0: [rows, Q * H]
  S* h_operand;     // of row 0: [rows, P], the h that W_hh saw; null: not asked for
  const bool* cut_before;  // [b]: no state passed from the step before; null: it always did
  const bool* cut_after;   // [b]: none passed to the step after
  bool cut_initial;        // cut_before goes for initial states too
};

template <class S>
struct StepBwd {
  int64_t H, P;
  int64_t reserve_stride, h_stride, c_stride, dy_stride, dc_seq_stride;
  bool dh_is_whole;
  const int64_t* batch_row;
  int directions;
  StepBwdDirection<S> direction[kDirections];
};

template <class S>
void step_bwd(CellKind cell, const StepBwd<S>& p, cudaStream_t stream);

// All that reaches h of a projected step, for the product with W_hr.
template <class S>
struct ProjectBwd {
  using A = Accumulator<S>;
  int64_t rows, continuing, P;
  int64_t dy_stride;
  const S* dy;            // [b] of this step, or null
  const A* dh;            // [N, P] from the step after or h_n
  S* dh_whole;            // [rows, P]
  const bool* cut_after;  // [b], or null
  const int64_t* batch_row;
};

template <class S>
void project_bwd(const ProjectBwd<S>& p, cudaStream_t stream);

// Tables are sent as arguments of kernels: no copy from host memory that would have to be pinned,
// waited for, or kept until a captured graph runs again.
constexpr int kTableChunk = 256;

struct WriteTable {
  int64_t* table;
  int count;
  int64_t values[kTableChunk];
};

// table[0, count) = values.
void write_table(const WriteTable& p, cudaStream_t stream);

// For sequences of several lengths: row of a [T * N, ...] tensor of each compact row.
struct WriteInputRows {
  int64_t* input_row;  // [rows]
  const int64_t* batch_row;
  int64_t N;
  int64_t t_begin;  // of the steps of this call
  int steps;
  int64_t step_begin[kTableChunk + 1];
};

void write_input_rows(const WriteInputRows& p, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastlstm
