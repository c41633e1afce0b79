// What only a kernel can ask the device for.
#pragma once

#include <stddef.h>

namespace fastlstm {
namespace cuda {

// How many clusters of so many blocks, each with so many threads and so much shared memory, run at
// once on the current device when nothing else does; 0 where it refuses them.
int active_clusters(int cluster_size, int threads, size_t shared_bytes);

// 10 * major + minor of the architecture that the kernels which run on the current device were
// compiled for.
int compiled_architecture();

}  // namespace cuda
}  // namespace fastlstm
