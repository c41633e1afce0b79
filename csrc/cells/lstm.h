// The LSTM cell: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, as
// torch.nn.LSTM computes it.
//
//   a = igates + hgates + bias    igates = W_ih x, hgates = W_hh h_prev, bias = b_ih + b_hh
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)
//   c = f * c_prev + i * g
//   h = o * tanh(c)
//
// Backward, with dh and dc the gradients that reach h and c of this step:
//   do = dh * tanh(c)             dc = dc + dh * o * (1 - tanh(c)^2)
//   di = dc * g    df = dc * c_prev    dg = dc * i    dc_prev = dc * f
//   da = d(gate) * gate'          gate' from the activated value
#pragma once

#include "activations.h"
#include "traits.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// The one definition of the gate order: the blocks of H rows in weight_ih, weight_hh and the
// biases.
enum LstmGate { kLstmI, kLstmF, kLstmG, kLstmO };

template <class V>
struct LstmCell {
  static constexpr CellTraits kTraits = {"LSTM",
                                         /*gates=*/4,
                                         /*reserve=*/4,
                                         /*dgates=*/4,
                                         /*separate=*/0,
                                         /*has_c=*/true,
                                         /*has_carry=*/true,
                                         /*fwd_reads_state=*/true,
                                         /*bwd_reads_state=*/true,
                                         /*bwd_reads_prev_state=*/true};
  static constexpr int kGates = kTraits.gates;

  // state: c_prev -> c; reserve: the activated gates. Returns h.
  static FASTLSTM_INLINE V fwd(const V (&igates)[4], const V (&hgates)[4], const V (&bias)[4],
                               V& state, V (&reserve)[4]) {
    reserve[kLstmI] = sigmoid(igates[kLstmI] + (hgates[kLstmI] + bias[kLstmI]));
    reserve[kLstmF] = sigmoid(igates[kLstmF] + (hgates[kLstmF] + bias[kLstmF]));
    reserve[kLstmG] = tanh(igates[kLstmG] + (hgates[kLstmG] + bias[kLstmG]));
    reserve[kLstmO] = sigmoid(igates[kLstmO] + (hgates[kLstmO] + bias[kLstmO]));
    state = fma(reserve[kLstmF], state, reserve[kLstmI] * reserve[kLstmG]);
    return reserve[kLstmO] * tanh(state);
  }

  // dgates: of the pre-activations. carry: dc of this step -> dc of the step before.
  static FASTLSTM_INLINE void bwd(const V (&gates)[4], V c, V c_prev, V dh, V (&dgates)[4],
                                  V& carry) {
    const V tanh_c = tanh(c);
    const V dc = fma(dh * gates[kLstmO], d_tanh(tanh_c), carry);
    dgates[kLstmI] = dc * gates[kLstmG] * d_sigmoid(gates[kLstmI]);
    dgates[kLstmF] = dc * c_prev * d_sigmoid(gates[kLstmF]);
    dgates[kLstmG] = dc * gates[kLstmI] * d_tanh(gates[kLstmG]);
    dgates[kLstmO] = dh * tanh_c * d_sigmoid(gates[kLstmO]);
    carry = dc * gates[kLstmF];
  }
};

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
