// flags: -fmad=false
// Farthest-point sampling, one block per cloud: the picks of the plain algorithm in the precision of the points, ties by the lowest index.

#include "common.cuh"

namespace mm3dad {
namespace {

constexpr int kBlock = 1024;
constexpr int kWarp = 32;

template <typename T>
struct Candidate {
  T distance;
  int index;

  __device__ void take(T other_distance, int other_index) {
    if (other_distance > distance || (other_distance == distance && other_index < index)) {
      distance = other_distance;
      index = other_index;
    }
  }
  __device__ void reduce_warp() {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const T other_distance = __shfl_down_sync(0xffffffffu, distance, offset);
      const int other_index = __shfl_down_sync(0xffffffffu, index, offset);
      take(other_distance, other_index);
    }
  }
};

// `distance` (B, N) is scratch: the squared distance of each point to its nearest pick, -infinity once picked. Each thread reads and writes
// its own points only, so that the two barriers of a step are all that is needed.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    sample_kernel(const T* __restrict__ points, int total, int64_t count, int start, T* __restrict__ distance, int64_t* __restrict__ chosen) {
  __shared__ T best_distance[kBlock / kWarp];
  __shared__ int best_index[kBlock / kWarp];
  __shared__ int next;
  points += static_cast<int64_t>(blockIdx.x) * total * 3;
  distance += static_cast<int64_t>(blockIdx.x) * total;
  chosen += blockIdx.x * count;
  const T infinity = static_cast<T>(INFINITY);
  int pick = start;
  for (int64_t step = 0; step < count; ++step) {
    if (threadIdx.x == 0) chosen[step] = pick;
    const T x = points[3 * pick], y = points[3 * pick + 1], z = points[3 * pick + 2];
    Candidate<T> best{-infinity, INT32_MAX};
    for (int i = threadIdx.x; i < total; i += kBlock) {
      const T u = points[3 * i] - x, v = points[3 * i + 1] - y, w = points[3 * i + 2] - z;
      const T squared = u * u + v * v + w * w;
      T now = step == 0 ? infinity : distance[i];
      now = squared < now ? squared : now;
      now = i == pick ? -infinity : now;
      distance[i] = now;
      best.take(now, i);
    }
    best.reduce_warp();
    if (threadIdx.x % kWarp == 0) {
      best_distance[threadIdx.x / kWarp] = best.distance;
      best_index[threadIdx.x / kWarp] = best.index;
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      best = {best_distance[threadIdx.x], best_index[threadIdx.x]};
      best.reduce_warp();
      if (threadIdx.x == 0) next = best.index;
    }
    __syncthreads();
    pick = next;
  }
}

template <typename T>
Tensor sample(const Tensor& points, int64_t count, int64_t start) {
  const int64_t batch = points.size(0), total = points.size(1);
  Tensor chosen = torch::stable::new_empty(points, {batch, count}, ScalarType::Long);
  if (batch == 0) return chosen;
  Tensor distance = torch::stable::new_empty(points, {batch, total});
  const Launch launch(points);
  sample_kernel<T><<<static_cast<unsigned>(batch), kBlock, 0, launch.stream>>>(points.const_data_ptr<T>(), static_cast<int>(total), count,
                                                                               static_cast<int>(start), distance.mutable_data_ptr<T>(),
                                                                               chosen.mutable_data_ptr<int64_t>());
  launch.check();
  return chosen;
}

}  // namespace

Tensor farthest_point_sample_cuda(const Tensor& points, int64_t count, int64_t start, int64_t) {
  check_floating(points, 3, "points");
  const int64_t total = points.size(1);
  STD_TORCH_CHECK(points.size(2) == 3 && total < INT32_MAX / 3, "points must be (B, N, 3) with 3 N below 2^31");
  STD_TORCH_CHECK(count >= 1 && count <= total && start >= 0 && start < total, "count or start is out of range");
  return MM3DAD_BY_TYPE(points, sample, points, count, start);
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CUDA, m) { m.impl("farthest_point_sample", TORCH_BOX(&mm3dad::farthest_point_sample_cuda)); }
