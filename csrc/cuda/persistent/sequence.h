// The contract between the host code of a layer on CUDA and the persistent kernels, which compute
// many steps in one launch and keep W_hh on the chip: in one block (block/) or in several that
// exchange their part of each step (group/).
//
// As in step.h, S is the scalar type of the tensors, A that of sums and states; n is a row in the
// order of falling length, b = batch_row[n] its place in the batch. h is not projected: P = H.
//
// Where a row lies at step t: compact tensors hold it at step_begin[t] + n; the buffers of states
// and gradients of y at place(t) + b, place(t) being step_begin[t] if packed (then b = n), else
// t * N. A step has rows [0, step_begin[t + 1] - step_begin[t]).
#pragma once

#include "../step/step.h"

namespace fastlstm {
namespace cuda {

// Which rows the steps have, and where a sequence begins anew.
struct SequenceRows {
  int64_t T, N, H;
  const int64_t* step_begin;  // [T + 1], or null: every step has N rows, step_begin[t] = t * N
  const int64_t* batch_row;   // [N], or null: b = n
  const bool* reset;          // [T, N] by b: no state passes from step t - 1 to step t; or null
  bool packed;
};

template <class S>
struct SequenceFwdDirection {
  using A = Accumulator<S>;
  bool reverse;
  int64_t t_begin, t_end;  // the steps of this launch, t_begin first unless reverse
  const A* igates;         // of the first compact row of step t_begin: [rows, G * H]; with tokens a
                           // table [V, G * H]
  const int64_t* tokens;   // of step 0, at place(t) + b: row of the table, or null
  const S* w_hh;           // [G * H, H], rows w_hh_stride apart
  const A* bias;           // [G + separate, H], or null
  A* state;                // [N, H]: c of the LSTM, h of the GRU, before -> after; null: RNN
  const S* h_begin;        // [N, H]: h as W_hh is to see it, before the first step
  S* h_end;                // likewise, after each row's last step; not h_begin
  S* h;                    // of step 0, at place(t) + b: rows of [.., H], h_stride apart
  A* c;                    // likewise, c_stride apart; null: not kept
  S* reserve;              // of step 0, compact: [rows, R * H]; null: not kept
};

template <class S>
struct SequenceFwd {
  SequenceRows rows;
  int64_t V, w_hh_stride, h_stride, c_stride;
  int directions;
  SequenceFwdDirection<S> direction[kDirections];
};

template <class S>
struct SequenceBwdDirection {
  using A = Accumulator<S>;
  bool reverse;        // as in forward; the steps are taken from the last to the first
  const S* w_hh;       // [G * H, H], rows w_hh_stride apart
  const S* w_hh_t;     // [H, H * G]: of every unit, the columns of all gates; null where not asked
  const S* reserve;    // of step 0, compact: [rows, R * H]
  const S* h;          // of step 0, at place(t) + b: [.., H]
  const S* h_initial;  // at b
  const A* c;          // likewise; null but for the LSTM
  const A* c_initial;
  const S* dy;      // of step 0, at t * dy_t_stride + b * dy_n_stride (packed: place(t) + b
                    // in place of both, dy_n_stride apart); null: zero
  const A* dc_seq;  // likewise, of every c; null: zero
  A* dh;            // [N, H]: gradient of h_n -> of h before the first step, but for carry
  A* carry;         // [N, H]: what goes beside W_hh, likewise; null: nothing does
  S* dgates;        // of step 0, compact: [rows, Q * H]
  S* h_operand;     // of step 0, compact: [rows, H], the h that W_hh saw; null: not asked for
};

template <class S>
struct SequenceBwd {
  SequenceRows rows;
  int64_t w_hh_stride, h_stride, c_stride;
  int64_t dy_t_stride, dy_n_stride, dc_seq_t_stride, dc_seq_n_stride;
  int directions;
  SequenceBwdDirection<S> direction[kDirections];
};

}  // namespace cuda
}  // namespace fastlstm
