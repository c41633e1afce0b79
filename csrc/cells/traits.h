// What a cell says of itself: constants that host code, kernels and Python go by.
#pragma once

namespace fastlstm {

struct CellTraits {
  const char* mode;  // torch.nn's name
  int gates;         // G: blocks of H rows in weight_ih, weight_hh and the biases. 1 to 4
  int reserve;       // R: blocks of H that forward keeps for backward, beside its states
  int dgates;        // Q: blocks of H that backward computes a step
  // Gates, the last ones, that keep the biases of input and hidden state apart. dgates has a block
  // more for each of them: [..., those of hgates, those of igates].
  int separate;
  bool has_c;      // has a cell state beside h
  bool has_carry;  // passes a gradient to the step before beside that through W_hh
  // The state is c, of a cell without one h. That of the step before it,
  bool fwd_reads_state;
  // and in backward that of the step, and of the step before.
  bool bwd_reads_state, bwd_reads_prev_state;
};

// A lane type for what is the same on every one.
struct NoLane {};

// Templates of one cell each, on a lane type V. A list passed to a function lets it make a table
// with an entry for each, in the order of CellKind.
template <template <class> class... Cells>
struct CellList {
  static constexpr int kCount = sizeof...(Cells);
  static constexpr CellTraits kTraits[] = {Cells<NoLane>::kTraits...};
};

}  // namespace fastlstm
