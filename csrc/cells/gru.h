// The GRU cell: Cho et al. 2014, in the form of torch.nn.GRU and cuDNN, with the reset gate applied
// after the matrix product and a bias of its own under it.
//
//   r  = sigmoid(igates_r + hgates_r + b_r)      igates = W_ih x, hgates = W_hh h_prev
//   z  = sigmoid(igates_z + hgates_z + b_z)      b_r, b_z: b_ih + b_hh
//   hn = hgates_n + b_hn
//   n  = tanh(igates_n + b_in + r * hn)
//   h  = (1 - z) * n + z * h_prev  =  n + z * (h_prev - n)
//
// Backward, with dh the gradient that reaches h of this step:
//   dz = dh * (h_prev - n)     dn = dh * (1 - z)     dh_prev = dh * z  (beside that through W_hh)
//   da_n = dn * (1 - n^2)      dr = da_n * hn        dhn = da_n * r
//   da_r = dr * r * (1 - r)    da_z = dz * z * (1 - z)
#pragma once

#include "activations.h"
#include "traits.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// The one definition of the gate order,
enum GruGate { kGruR, kGruZ, kGruN };
// of what forward keeps, and of dgates: what W_hh sees comes first.
enum GruReserve { kGruReserveR, kGruReserveZ, kGruReserveN, kGruReserveHn };
enum GruDgate { kGruDr, kGruDz, kGruDhn, kGruDn };
// Biases as cpu/kernels/kernels.h packs them: sums, then b_ih and b_hh of the separate gate.
enum GruBias { kGruBiasR, kGruBiasZ, kGruBiasIn, kGruBiasHn };

template <class V>
struct GruCell {
  static constexpr CellTraits kTraits = {"GRU",
                                         /*gates=*/3,
                                         /*reserve=*/4,
                                         /*dgates=*/4,
                                         /*separate=*/1,
                                         /*has_c=*/false,
                                         /*has_carry=*/true,
                                         /*fwd_reads_state=*/true,
                                         /*bwd_reads_state=*/false,
                                         /*bwd_reads_prev_state=*/true};
  static constexpr int kGates = kTraits.gates;

  static FASTLSTM_INLINE V fwd(const V (&igates)[3], const V (&hgates)[3], const V (&bias)[4],
                               V& h_prev, V (&reserve)[4]) {
    const V r = sigmoid(igates[kGruR] + (hgates[kGruR] + bias[kGruBiasR]));
    const V z = sigmoid(igates[kGruZ] + (hgates[kGruZ] + bias[kGruBiasZ]));
    const V hn = hgates[kGruN] + bias[kGruBiasHn];
    const V n = tanh(fma(r, hn, igates[kGruN] + bias[kGruBiasIn]));
    reserve[kGruReserveR] = r;
    reserve[kGruReserveZ] = z;
    reserve[kGruReserveN] = n;
    reserve[kGruReserveHn] = hn;
    return fma(z, h_prev - n, n);
  }

  // carry: dh of this step that came beside W_hh -> the same of the step before.
  static FASTLSTM_INLINE void bwd(const V (&reserve)[4], V, V h_prev, V dh_through_w,
                                  V (&dgates)[4], V& carry) {
    const V r = reserve[kGruReserveR], z = reserve[kGruReserveZ], n = reserve[kGruReserveN];
    const V dh = dh_through_w + carry;
    const V da_n = dh * (V::broadcast(1) - z) * d_tanh(n);
    dgates[kGruDn] = da_n;
    dgates[kGruDhn] = da_n * r;
    dgates[kGruDr] = da_n * reserve[kGruReserveHn] * d_sigmoid(r);
    dgates[kGruDz] = dh * (h_prev - n) * d_sigmoid(z);
    carry = dh * z;
  }
};

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
