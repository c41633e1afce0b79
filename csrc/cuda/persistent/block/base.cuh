// What forward and backward of block.h have in common: which cells a lane has, what is known of the
// rows of coming steps, and W_hh on the chip.
#pragma once

#include "../rows.cuh"
#include "matrix.cuh"
#include "shape.cuh"

namespace fastlstm {
namespace cuda {

// The cells of a lane: a unit of each octet o of its warp, in each row i of its two in the tile, as
// mma leaves their sums (operands.cuh).
template <int kOctets>
struct BlockCells {
  const SequenceRows& layer;
  int H;
  FASTLSTM_DEVICE explicit BlockCells(const SequenceRows& layer)
      : layer(layer), H(static_cast<int>(layer.H)) {}

  // Of the tile, in the batch.
  FASTLSTM_DEVICE static int64_t first_row() { return int64_t{blockIdx.x} * kRowTile; }
  FASTLSTM_DEVICE static int row(int i) { return device::lane() % 4 * kLaneRows + i; }
  FASTLSTM_DEVICE static int unit(int o) {
    return (device::warp() * kOctets + o) * 8 + device::lane() / 4;
  }
  FASTLSTM_DEVICE bool exists(int o) const { return unit(o) < H; }
  FASTLSTM_DEVICE bool is_in_batch(int o, int i) const {
    return first_row() + row(i) < layer.N && exists(o);
  }
  // Of a tensor [N, H].
  FASTLSTM_DEVICE int64_t place(int o, int i) const { return (first_row() + row(i)) * H + unit(o); }

  template <class F>
  FASTLSTM_DEVICE static void for_each(F&& f) {
    FASTLSTM_UNROLL
    for (int o = 0; o < kOctets; ++o) {
      FASTLSTM_UNROLL
      for (int i = 0; i < kLaneRows; ++i) f(o, i);
    }
  }
};

// A batch tile in one direction. Traits say of forward or backward
//   Number, Steps     S, and FwdSteps or BwdSteps of it
//   kShape, kOctets   of the block, and how many octets of rows of the matrix a warp has
//   layout(H)         of shared memory
template <class Traits>
class BlockBase : public Traits {
  using S = typename Traits::Number;

 public:
  using typename Traits::Steps;
  using Params = typename Steps::Params;
  static constexpr int kQueueBytes = kQueueSteps * kRowTile * sizeof(typename Steps::Row);

 protected:
  FASTLSTM_DEVICE explicit BlockBase(const Params& p)
      : p_(p),
        d_(p.direction[blockIdx.y]),
        cells_(p.rows),
        layout_(Traits::layout(p.rows.H)),
        steps_(p, d_, cells_.first_row()),
        queue_(layout_.queue(), cells_.first_row(), kRowTile) {}

  // Tiles of zeros, and the rows of the first two steps: all threads see them at its end.
  FASTLSTM_DEVICE void begin() {
    layout_.clear_tiles();
    queue_.look_up(steps_, 0);
    queue_.push(0);
    queue_.look_up(steps_, 1);
    queue_.push(1);
    device::sync_block();
  }

  const Params& p_;
  const typename Steps::Direction& d_;
  const BlockCells<Traits::kShape.octets> cells_;
  const BlockLayout<S> layout_;
  const Steps steps_;
  RowQueue<Steps> queue_;
  ResidentMatrix<S, Traits::kShape.warps, Traits::kOctets, Traits::kShape.register_blocks> w_;
};

}  // namespace cuda
}  // namespace fastlstm
