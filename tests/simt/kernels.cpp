// Every kernel of the project, compiled for the emulator.
#include "cuda/step_bf16.cu"
#include "cuda/step_f16.cu"
#include "cuda/step_f32.cu"
#include "cuda/step_f64.cu"
#include "cuda/tables.cu"
