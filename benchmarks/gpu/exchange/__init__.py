"""What a step costs in which blocks exchange a state, for each scheme a recurrent kernel may use.

A state [N, H] of 16-bit numbers is made anew in every step by all blocks of a group, each its own
slice, and read whole by all of them. One launch makes 2000 steps. The time of a step is that of the
launch, less that of the same loop without the exchange, by the number of steps; what is left is the
way from the registers of the blocks that make the numbers to those of the blocks that read them,
with all that keeps the steps apart. Numbers of one step depend on everything a block has read in
the step before, so that steps cannot overlap.

    counter          all blocks of a group count on one word in global memory (a release, then
                     acquiring looks), and read the state from L2, double-buffered
    grid_sync        the same with cooperative_groups' grid.sync
    flag             a number is its own flag: the buffer [steps, N, H] is full of 0xFF bytes, every
                     address is written once, and who reads looks again until no word is 0xFFFFFFFF
    cluster_barrier  stores into the shared memory of all blocks of a cluster, then its barrier
    cluster_aligned  the same with the barrier's forms for whole warps
    cluster_async    stores that count their bytes on an mbarrier of the block they go to
    cluster_unlimited, cluster_relaxed    the same with looks at the mbarrier that may sleep without
                     limit; and those relaxed, with a fence that leaves the L1 cache as it is (CUDA
                     12.8 and later)
    block            one block alone: shared memory, double-buffered, and one barrier; here every
                     warp reads all of the state
    launch_stream, launch_graph     a launch of an empty kernel, for what steps without all this cost
    max_clusters     no time: how many clusters of a size can be resident with 200 KB a block

A group is a batch tile: it exchanges a state of its own. Each thread keeps a checksum of what it
reads, in which the step counts; the host knows the number, and a launch with another one is an
error, not a time. Loops that wait give up after a number of looks (grid.sync, which is CUDA's own,
does not: a process of its own and a time limit are around each scheme).

    exchange.cuh   parameters, numbers and checksums        schemes.cu   the table, for any machine
    grid.cuh       counter, flag, and the loop alone        gpu.cu       what only nvcc compiles
    cluster.cuh    the two of clusters, and block           run.h        a launch, its time and sums
    faults.cu      the same with a wait or a buffer left out, for tests in the emulator

The Python side: checksums.py, native.py (build, calls), plan.py (what is measured, and its
columns), worker.py (a process for each scheme), and ../../bench_exchange.py.
"""
