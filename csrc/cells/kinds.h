// The cells there are, and what host code has to know of them. Constants only: host code and every
// instruction set include this file.
#pragma once

namespace fastlstm {

enum CellKind { kLstm, kGru, kRnnTanh, kRnnRelu, kNumCells };

struct CellTraits {
  const char* mode;  // torch.nn's name
  int gates;         // G: blocks of H rows in weight_ih, weight_hh and the biases
  int reserve;       // blocks of H that forward keeps for backward, beside its states
  int dgates;        // blocks of H that backward computes a step
  // Gates, the last ones, that keep the biases of input and hidden state apart. dgates has a block
  // more for each of them: [..., those of hgates, those of igates].
  int separate;
  bool has_c;      // has a cell state beside h
  bool has_carry;  // passes a gradient to the step before beside that through W_hh
};

constexpr CellTraits kCellTraits[kNumCells] = {
    {"LSTM", 4, 4, 4, 0, true, true},
    {"GRU", 3, 4, 4, 1, false, true},
    {"RNN_TANH", 1, 0, 1, 0, false, false},
    {"RNN_RELU", 1, 0, 1, 0, false, false},
};

}  // namespace fastlstm
