// Products of a matrix that stays on the chip with the eight rows of a batch tile, on tensor cores:
// D[M, 8] = W[M, K] X[8, K]^T.
//
// The rows of W come in octets; two octets make a tile of 16 rows for mma. K is cut into blocks of
// 64 bytes of a row. Of each block, lane 4 g + p holds bytes [16 p, 16 p + 16) of row g of every
// octet and of X: its operands of two mma, in one load. So mma sees the columns in another order
// than they have, but in the same for W and X.
#pragma once

#include "../../cells/portable.h"
#include "../device/device.cuh"
#include "../device/float3x.h"
#include "tiles.h"

namespace fastlstm {
namespace cuda {

using device::Word4;

constexpr int kBlockWords = kBlockBytes / 4, kChunkWords = 4;

// How numbers enter a product: 16-bit types as they are, float rounded to TF32, Float3x in two
// parts.
template <class S>
struct Operand {
  static constexpr Operands kKind = Operands::k16Bit;
  static constexpr int kPerWord = 2;
  FASTLSTM_DEVICE static S of(float x) { return S(x); }
  FASTLSTM_DEVICE static uint32_t word(const S (&x)[2]) {
    return x[0].bits | static_cast<uint32_t>(x[1].bits) << 16;
  }
  FASTLSTM_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    device::mma_m16n8k16<S>(d, a, b);
  }
};
template <>
struct Operand<float> {
  static constexpr Operands kKind = Operands::kTf32;
  static constexpr int kPerWord = 1;
  FASTLSTM_DEVICE static uint32_t of(float x) { return device::to_tf32(x); }
  FASTLSTM_DEVICE static uint32_t word(const float (&x)[1]) { return of(x[0]); }
  FASTLSTM_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    device::mma_m16n8k8_tf32(d, a, b);
  }
};

// A number is hi + lo, both TF32, to 2^-22 of it. Of the products lo lo is left out, 2^-22 as well.
// An infinity has no such parts: it makes NaN.
// Every mma begins at zero: tensor cores truncate the sums that they keep, additions here round.
template <>
struct Operand<Float3x> {
  static constexpr Operands kKind = Operands::kTf32x3;
  static constexpr int kPerWord = 1;
  FASTLSTM_DEVICE static uint32_t of(float x) { return device::bit_cast<uint32_t>(x); }
  FASTLSTM_DEVICE static void split(uint32_t bits, uint32_t& hi, uint32_t& lo) {
    const float x = device::bit_cast<float>(bits);
    hi = device::to_tf32(x);
    lo = device::to_tf32(x - device::bit_cast<float>(hi));
  }
  FASTLSTM_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint32_t a_hi[4], a_lo[4], b_hi[2], b_lo[2];
    FASTLSTM_UNROLL
    for (int i = 0; i < 4; ++i) split(a[i], a_hi[i], a_lo[i]);
    FASTLSTM_UNROLL
    for (int i = 0; i < 2; ++i) split(b[i], b_hi[i], b_lo[i]);
    float sum[4] = {};
    device::mma_m16n8k8_tf32(sum, a_lo, b_hi);
    device::mma_m16n8k8_tf32(sum, a_hi, b_lo);
    device::mma_m16n8k8_tf32(sum, a_hi, b_hi);
    FASTLSTM_UNROLL
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }
};

template <class S>
constexpr int kPerChunk = kChunkWords * Operand<S>::kPerWord;

template <class S>
FASTLSTM_HOST_DEVICE int blocks_of(int64_t K) {
  constexpr int kPerBlock = kBlockWords * Operand<S>::kPerWord;
  return static_cast<int>(ceil_div<int64_t>(K, kPerBlock));
}

// X in shared memory. The chunks of 16 bytes of each row are permuted, so that no banks conflict:
// neither for the 8 lanes that load at a time, chunks p of rows 2 i and 2 i + 1, nor for the warp
// that sets 8 adjacent numbers in each of the rows 2 p, or 2 p + 1.
template <class S>
class OperandTile {
 public:
  FASTLSTM_DEVICE OperandTile(uint32_t* words, int row_words)
      : words_(words), row_words_(row_words) {}

  FASTLSTM_DEVICE Word4 chunk(int block) const {
    return *chunk_at(device::lane() / 4, 4 * block + device::lane() % 4);
  }

  // What this lane has of block 0, and of block 1 less the distance of two blocks: as the
  // permutation leaves all but the lowest bit of a block alone, those of other blocks follow 4
  // chunks a block.
  FASTLSTM_DEVICE const Word4* lane_chunks(int parity) const {
    return chunk_at(device::lane() / 4, 4 * parity + device::lane() % 4) - 4 * parity;
  }
  FASTLSTM_DEVICE Word4* chunk_at(int row, int chunk) const {
    return reinterpret_cast<Word4*>(words_ + row * row_words_) + (chunk ^ permutation(row));
  }

  // Numbers k, k + 1, .. of a row.
  template <int kCount>
  FASTLSTM_DEVICE void set(int row, int k, const float (&x)[kCount]) const {
    using Number = decltype(Operand<S>::of(0.0f));
    Number* numbers = reinterpret_cast<Number*>(words_ + row * row_words_);
    auto index = [&](int k) {
      return (k / kPerChunk<S> ^ permutation(row)) * kPerChunk<S> + k % kPerChunk<S>;
    };
    if constexpr (kPerChunk<S> % kCount == 0) {  // one store: k is a multiple of kCount
      struct alignas(kCount * sizeof(Number)) Numbers {
        Number x[kCount];
      } all;
      FASTLSTM_UNROLL
      for (int i = 0; i < kCount; ++i) all.x[i] = Operand<S>::of(x[i]);
      *reinterpret_cast<Numbers*>(numbers + index(k)) = all;
    } else {
      FASTLSTM_UNROLL
      for (int i = 0; i < kCount; ++i) numbers[index(k + i)] = Operand<S>::of(x[i]);
    }
  }

 private:
  FASTLSTM_DEVICE static int permutation(int row) {
    return (row ^ row >> 1) % 2 * 4 + (row >> 1) % 4;
  }

  uint32_t* words_;
  int row_words_;
};

}  // namespace cuda
}  // namespace fastlstm
