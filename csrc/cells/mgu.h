// The minimal gated unit: Zhou et al. 2016, with its one gate applied after the matrix product as
// in the GRU (gru.h). No public cell: the one of two gates, which tests compile as well.
//
//   f  = sigmoid(igates_f + hgates_f + b_f)      igates = W_ih x, hgates = W_hh h_prev
//   hn = hgates_n + b_hn                         b_f: b_ih + b_hh
//   n  = tanh(igates_n + b_in + f * hn)
//   h  = (1 - f) * h_prev + f * n
//
// Backward, with dh the gradient that reaches h of this step:
//   dn = dh * f          df = dh * (n - h_prev) + da_n * hn
//   da_n = dn * (1 - n^2)    dhn = da_n * f    da_f = df * f * (1 - f)
//   dh_prev = dh * (1 - f)  (beside that through W_hh)
#pragma once

#include "activations.h"
#include "traits.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

enum MguGate { kMguF, kMguN };
enum MguReserve { kMguReserveF, kMguReserveN, kMguReserveHn };
// What W_hh sees comes first.
enum MguDgate { kMguDf, kMguDhn, kMguDn };
enum MguBias { kMguBiasF, kMguBiasIn, kMguBiasHn };

template <class V>
struct MguCell {
  static constexpr CellTraits kTraits = {"MGU",
                                         /*gates=*/2,
                                         /*reserve=*/3,
                                         /*dgates=*/3,
                                         /*separate=*/1,
                                         /*has_c=*/false,
                                         /*has_carry=*/true,
                                         /*fwd_reads_state=*/true,
                                         /*bwd_reads_state=*/false,
                                         /*bwd_reads_prev_state=*/true};
  static constexpr int kGates = kTraits.gates;

  static FASTLSTM_INLINE V fwd(const V (&igates)[2], const V (&hgates)[2], const V (&bias)[3],
                               V& h_prev, V (&reserve)[3]) {
    const V f = sigmoid(igates[kMguF] + (hgates[kMguF] + bias[kMguBiasF]));
    const V hn = hgates[kMguN] + bias[kMguBiasHn];
    const V n = tanh(fma(f, hn, igates[kMguN] + bias[kMguBiasIn]));
    reserve[kMguReserveF] = f;
    reserve[kMguReserveN] = n;
    reserve[kMguReserveHn] = hn;
    return fma(f, n, (V::broadcast(1) - f) * h_prev);
  }

  // carry: dh of this step that came beside W_hh -> the same of the step before.
  static FASTLSTM_INLINE void bwd(const V (&reserve)[3], V, V h_prev, V dh_through_w,
                                  V (&dgates)[3], V& carry) {
    const V f = reserve[kMguReserveF], n = reserve[kMguReserveN];
    const V dh = dh_through_w + carry;
    const V da_n = dh * f * d_tanh(n);
    dgates[kMguDn] = da_n;
    dgates[kMguDhn] = da_n * f;
    dgates[kMguDf] = fma(da_n, reserve[kMguReserveHn], dh * (n - h_prev)) * d_sigmoid(f);
    carry = dh * (V::broadcast(1) - f);
  }
};

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
