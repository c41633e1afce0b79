// How the persistent kernels cut matrices for tensor cores, and what they keep of a row in shared
// memory: the numbers that host code, which chooses among the kernels, computes with as well.
#pragma once

#include "../device/host_device.h"

namespace fastlstm {
namespace cuda {

constexpr int kMmaRows = 16;
constexpr int kRowTile = 8;      // of the batch: n of mma
constexpr int kBlockBytes = 64;  // of a row of W or X, which are multiplied together (operands.cuh)

// How numbers enter mma: the 16-bit types; float32 rounded to TF32; or as a sum of two of TF32, and
// a product as that of three. The last has kernels of grids alone: in those of clusters the
// compiler takes W apart ahead of all steps, and spills.
enum class Operands { k16Bit, kTf32, kTf32x3 };

FASTLSTM_HOST_DEVICE constexpr int bytes_of(Operands operands) {
  return operands == Operands::k16Bit ? 2 : 4;
}

template <class T>
FASTLSTM_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}
FASTLSTM_HOST_DEVICE int round_up(int a, int b) { return ceil_div(a, b) * b; }
// Of a row in shared memory: whole rows of the 32 banks.
FASTLSTM_HOST_DEVICE int padded_row_bytes(int blocks) {
  return round_up(blocks * kBlockBytes, 128);
}

// Of a RowQueue (rows.cuh).
constexpr int kQueueSteps = 4, kQueueRowBytes = 32;

}  // namespace cuda
}  // namespace fastlstm
