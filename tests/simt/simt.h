// The emulator: CUDA kernels compiled by a C++ compiler, one fiber a CUDA thread. README.md says
// what it finds and what not.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#define FASTLSTM_KERNEL
#define FASTLSTM_DEVICE inline
#define FASTLSTM_LAUNCH_BOUNDS(...)

// Of the running fiber. Not inline variables: every library has an emulator of its own.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

// ---- for tests ----

// Schedules are a function of the seed and of the launches since.
void set_seed(uint64_t seed);
// Multiprocessors, each with room for one block: cooperative launches of more blocks are refused.
// Default: 132, as an H100 has.
void set_max_resident_blocks(int blocks);
int max_resident_blocks();
// A launch fails after so many vain looks at memory in a row, by all threads together, in which no
// thread stored, arrived or left. Default: 10 million.
void set_spin_limit(int64_t looks);

// Memory full of 0xFF bytes (NaN in every type) that ends, to 16 bytes, at a guard page. Freed
// memory stays out of bounds for a while. nullptr for 0 bytes; throws std::bad_alloc.
void* guarded_alloc(size_t bytes);
void guarded_free(void* p);

// ---- for the functions of device.cuh ----

struct LaunchSpec {
  const void* kernel;
  void (*call)(const void* kernel, const void* params);
  const void* params;
  const char* params_type;
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
  int cluster_size;
};
// Throws std::runtime_error when the launch is refused or a thread of it fails.
void run(const LaunchSpec& spec);

// Of multiprocessors with room for one block, each cluster having some of its own. 0 for what run
// refuses.
int max_active_clusters(int cluster_size, int threads, size_t shared_bytes);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
int lane();
int warp();
void* shared_memory();
void sync_block();
void sync_warp();

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, float (*to_float)(uint16_t));
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b);

void cp_async(const char* what, void* shared, const void* global, int size, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

int cluster_size();
void cluster_arrive();
void cluster_wait();
void* cluster_shared(const void* shared, int rank);
void mbarrier_init(uint64_t* barrier, int arrivals);
void mbarrier_expect_tx(uint64_t* barrier, int bytes);
bool mbarrier_try_wait(uint64_t* barrier, int parity);
void store_async(void* remote, const void* value, uint64_t* remote_barrier);

void load(const char* what, const void* address, void* value, int size);
void store_relaxed_16(void* address, const void* value);
void add_release(unsigned* address, unsigned value);

uint16_t half_from_float(float value);
float half_to_float(uint16_t bits);
uint16_t bfloat16_from_float(float value);
float bfloat16_to_float(uint16_t bits);
uint32_t to_tf32(float value);

}  // namespace simt
