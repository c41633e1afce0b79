// W_hh on the chip, in a block that has all of it, and its products with a tile.
#pragma once

#include "../operands.cuh"

namespace fastlstm {
namespace cuda {

constexpr int kLaneRows = 2;  // of a tile, 2 p and 2 p + 1, are a lane's columns of D

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
