// The one list of cells. What a new one takes is its header and its row here: every table of
// kernels, on the CPU and on CUDA, and all that Python knows of cells (_C.cells()) comes from it.
#pragma once

#include "gru.h"
#include "lstm.h"
#include "rnn.h"
#if defined(FASTLSTM_TEST_CELLS)
#include "mgu.h"
#endif

namespace fastlstm {

// clang-format off
using AllCells = CellList<
    LstmCell
  , GruCell
  , RnnTanhCell
  , RnnReluCell
#if defined(FASTLSTM_TEST_CELLS)
  , MguCell
#endif
>;
// clang-format on

// A place in the list.
enum CellKind : int {};
constexpr int kNumCells = AllCells::kCount;
static constexpr auto& kCellTraits = AllCells::kTraits;

// The cell of that mode, kNumCells where there is none.
static constexpr CellKind kind_of(const char* mode) {
  for (int kind = 0; kind < kNumCells; ++kind) {
    const char *a = kCellTraits[kind].mode, *b = mode;
    while (*a && *a == *b) ++a, ++b;
    if (*a == *b) return static_cast<CellKind>(kind);
  }
  return static_cast<CellKind>(kNumCells);
}

}  // namespace fastlstm
