// What only a kernel can ask the device for.
#pragma once

#include <stddef.h>

namespace fastlstm {
namespace cuda {

// How many clusters of so many blocks, each with so many threads and so much shared memory, run at
// once on the current device when nothing else does; 0 where it refuses them.
int active_clusters(int cluster_size, int threads, size_t shared_bytes);

}  // namespace cuda
}  // namespace fastlstm
