// Products of a matrix that stays on the chip with the eight rows of a batch tile, on tensor cores:
// D[M, 8] = W[M, K] X[8, K]^T.
//
// The rows of W come in octets; two octets make a tile of 16 rows for mma. K is cut into blocks of
// 64 bytes of a row. Of each block, lane 4 g + p holds bytes [16 p, 16 p + 16) of row g of every
// octet and of X: its operands of two mma, in one load. So mma sees the columns in another order
// than they have, but in the same for W and X.
#pragma once

#include "../cells/portable.h"
#include "device.cuh"
#include "float3x.h"
#include "group_layout.h"

namespace fastlstm {
namespace cuda {

using device::Word4;

constexpr int kLaneRows = 2;  // of them, 2 p and 2 p + 1, are a lane's columns of D
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

// One of the two mma of a block: sum += of 16 rows of W, low and high those of its two octets.
template <class S>
FASTLSTM_DEVICE void mma_half(float (&sum)[4], const Word4& low, const Word4& high, const Word4& x,
                              int half) {
  const int i = 2 * half, j = i + 1;
  const uint32_t a[4] = {low.w[i], high.w[i], low.w[j], high.w[j]};
  const uint32_t b[2] = {x.w[i], x.w[j]};
  Operand<S>::mma(sum, a, b);
}

// A warp's rows of W: the first blocks of K in registers, the others in shared memory.
template <class S, int kWarps, int kOctets, int kRegisterBlocks>
class ResidentMatrix {
 public:
  // element(octet, k): of row g of the octet; 0 past the end of W.
  // shared: of the block, kOctets * blockDim.x for each of the blocks beyond kRegisterBlocks, and
  // for one at least: registers are filled from there, as computing many addresses at a time takes
  // more of them than there are.
  template <class F>
  FASTLSTM_DEVICE void load(Word4* shared, int blocks, F&& element) {
    blocks_ = blocks;
    shared_ = shared + threadIdx.x;
    FASTLSTM_UNROLL
    for (int block = 0; block < kRegisterBlocks; ++block) {
      load_block(shared_, block, element);
      FASTLSTM_UNROLL
      for (int octet = 0; octet < kOctets; ++octet)
        registers_[block][octet] = shared_[octet * blockDim.x];
    }
    for (int block = kRegisterBlocks; block < blocks; ++block)
      load_block(shared_ + shared_index(block), block, element);
  }

  // d: of row g of each octet and the lane's two rows of X.
  FASTLSTM_DEVICE void multiply(const OperandTile<S>& x, float (&d)[kOctets][kLaneRows]) const {
    float sums[kChains][kTiles][4] = {};
    FASTLSTM_UNROLL
    for (int block = 0; block < kRegisterBlocks; ++block) {
      const Word4 chunk = x.chunk(block);
      const auto& w = registers_[block];
      FASTLSTM_UNROLL
      for (int half = 0; half < 2; ++half) {
        FASTLSTM_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          const int low = 2 * tile, high = low + 1;
          mma_half<S>(sums[(2 * block + half) % kChains][tile], w[low],
                      high < kOctets ? w[high % kOctets] : Word4{}, chunk, half);
        }
      }
    }
#pragma unroll 1
    for (int block = kRegisterBlocks; block < blocks_; ++block) {
      const Word4 chunk = x.chunk(block);
      FASTLSTM_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {  // outermost: few registers hold W at a time
        const Word4* w = shared_ + shared_index(block) + 2 * tile * blockDim.x;
        const Word4 low = *w, high = 2 * tile + 1 < kOctets ? w[blockDim.x] : Word4{};
        FASTLSTM_UNROLL
        for (int half = 0; half < 2; ++half)
          mma_half<S>(sums[half % kChains][tile], low, high, chunk, half);
      }
    }
    FASTLSTM_UNROLL
    for (int octet = 0; octet < kOctets; ++octet) {
      FASTLSTM_UNROLL
      for (int i = 0; i < kLaneRows; ++i) {
        d[octet][i] = 0;
        FASTLSTM_UNROLL
        for (int chain = 0; chain < kChains; ++chain)
          d[octet][i] += sums[chain][octet / 2][octet % 2 * kLaneRows + i];
      }
    }
  }

 private:
  static constexpr int kTiles = (kOctets + 1) / 2;
  // An mma waits for the sum that it adds to. Each of the four tensor cores has four sums under
  // way, those of all warps together, which hides that by the latencies that are known of mma; not
  // measured here.
  static constexpr int kChains = kWarps * kTiles < 16 ? 16 / (kWarps * kTiles) : 1;

  template <class F>
  FASTLSTM_DEVICE static void load_block(Word4* to, int block, F&& element) {
    constexpr int kPerWord = Operand<S>::kPerWord;
#pragma unroll 1
    for (int octet = 0; octet < kOctets; ++octet) {
      Word4 words;
      FASTLSTM_UNROLL
      for (int w = 0; w < kChunkWords; ++w) {
        const int k = (block * kBlockWords + device::lane() % 4 * kChunkWords + w) * kPerWord;
        S numbers[kPerWord];
        FASTLSTM_UNROLL
        for (int i = 0; i < kPerWord; ++i) numbers[i] = element(octet, k + i);
        words.w[w] = Operand<S>::word(numbers);
      }
      to[octet * blockDim.x] = words;
    }
  }

  FASTLSTM_DEVICE static int shared_index(int block) {
    return (block - kRegisterBlocks) * kOctets * static_cast<int>(blockDim.x);
  }

  Word4 registers_[kRegisterBlocks][kOctets];
  Word4* shared_;
  int blocks_;
};

}  // namespace cuda
}  // namespace fastlstm
