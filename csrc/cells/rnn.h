// The simple recurrent cell of Elman 1990, as torch.nn.RNN computes it.
//
//   h = f(igates + hgates + bias)     f: tanh or relu; igates = W_ih x, hgates = W_hh h_prev,
//                                     bias = b_ih + b_hh
// Backward:  da = dh * f'             f' from h: 1 - h^2, or 1 where h > 0
#pragma once

#include "activations.h"
#include "traits.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

enum class Nonlinearity { kTanh, kRelu };

template <class V, Nonlinearity kNonlinearity>
struct RnnCell {
  static constexpr bool kIsTanh = kNonlinearity == Nonlinearity::kTanh;
  static constexpr CellTraits kTraits = {kIsTanh ? "RNN_TANH" : "RNN_RELU",
                                         /*gates=*/1,
                                         /*reserve=*/0,
                                         /*dgates=*/1,
                                         /*separate=*/0,
                                         /*has_c=*/false,
                                         /*has_carry=*/false,
                                         /*fwd_reads_state=*/false,
                                         /*bwd_reads_state=*/true,
                                         /*bwd_reads_prev_state=*/false};
  static constexpr int kGates = kTraits.gates;

  static FASTLSTM_INLINE V fwd(const V (&igates)[1], const V (&hgates)[1], const V (&bias)[1], V&,
                               V (&)[1]) {
    const V a = igates[0] + (hgates[0] + bias[0]);
    if constexpr (kIsTanh) return tanh(a);
    // The second argument wins when either is NaN.
    return max(V::broadcast(0), a);
  }

  static FASTLSTM_INLINE void bwd(const V (&)[1], V h, V, V dh, V (&dgates)[1], V&) {
    if constexpr (kIsTanh) {
      dgates[0] = dh * d_tanh(h);
    } else {
      // h is never negative: 0 - h has its sign bit set unless h is 0. A NaN counts as 1, for which
      // min returns its second argument: the gradient passes, as in torch.nn.
      const V positive = min(h, V::broadcast(1));
      dgates[0] = select_negative(V::broadcast(0) - positive, dh, V::broadcast(0));
    }
  }
};

template <class V>
using RnnTanhCell = RnnCell<V, Nonlinearity::kTanh>;
template <class V>
using RnnReluCell = RnnCell<V, Nonlinearity::kRelu>;

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
