// The LSTM cell: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, as
// torch.nn.LSTM computes it.
//
//   a = igates + hgates           pre-activations, igates = W_ih x, hgates = W_hh h_prev + b_ih +
//   b_hh i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o) c = f * c_prev + i
//   * g h = o * tanh(c)
//
// Backward, with dh and dc the gradients that reach h and c of this step:
//   do = dh * tanh(c)             dc = dc + dh * o * (1 - tanh(c)^2)
//   di = dc * g    df = dc * c_prev    dg = dc * i    dc_prev = dc * f
//   da = d(gate) * gate'          gate' from the activated value
#pragma once

#include "activations.h"

namespace fastlstm {
FASTLSTM_ISA_LOCAL_BEGIN

// The one definition of the gate order: the blocks of H rows in weight_ih, weight_hh and the
// biases.
enum LstmGate { kLstmI, kLstmF, kLstmG, kLstmO };

template <class V>
struct LstmCell {
  static constexpr int kGates = 4;

  // igates, hgates -> gates (activated), c_inout: c_prev -> c. Returns h.
  static FASTLSTM_INLINE V fwd(const V (&igates)[kGates], const V (&hgates)[kGates],
                               V (&gates)[kGates], V& c_inout) {
    gates[kLstmI] = sigmoid(igates[kLstmI] + hgates[kLstmI]);
    gates[kLstmF] = sigmoid(igates[kLstmF] + hgates[kLstmF]);
    gates[kLstmG] = tanh(igates[kLstmG] + hgates[kLstmG]);
    gates[kLstmO] = sigmoid(igates[kLstmO] + hgates[kLstmO]);
    c_inout = fma(gates[kLstmF], c_inout, gates[kLstmI] * gates[kLstmG]);
    return gates[kLstmO] * tanh(c_inout);
  }

  // gates, c, c_prev, dh -> dgates (of the pre-activations), dc_inout: dc of this step -> dc of the
  // step before.
  static FASTLSTM_INLINE void bwd(const V (&gates)[kGates], V c, V c_prev, V dh,
                                  V (&dgates)[kGates], V& dc_inout) {
    const V tanh_c = tanh(c);
    const V dc = fma(dh * gates[kLstmO], d_tanh(tanh_c), dc_inout);
    dgates[kLstmI] = dc * gates[kLstmG] * d_sigmoid(gates[kLstmI]);
    dgates[kLstmF] = dc * c_prev * d_sigmoid(gates[kLstmF]);
    dgates[kLstmG] = dc * gates[kLstmI] * d_tanh(gates[kLstmG]);
    dgates[kLstmO] = dh * tanh_c * d_sigmoid(gates[kLstmO]);
    dc_inout = dc * gates[kLstmF];
  }
};

FASTLSTM_ISA_LOCAL_END
}  // namespace fastlstm
