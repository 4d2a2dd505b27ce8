// flags: -ffp-contract=off
// Farthest-point sampling, exact: the picks of the plain float64 algorithm, with most distances never computed.
//
// A new pick can only matter to points nearer to it than to all earlier picks. The cloud lies in leaves with boxes; a leaf whose box is not
// nearer than the largest distance inside it is left alone, and so are whole groups of leaves.

#include "common.h"
#include "leaves.h"

namespace mm3dad {
namespace farthest_point {

// Lower the distances of one leaf to those from a new pick; returns the largest that is left.
inline __attribute__((always_inline)) double update(const double* x, const double* y, const double* z, double* distance, const double* pick) {
  double largest[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) largest[lane] = -kInfinity;
  for (int i = 0; i < kLeaf; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const double u = x[i + lane] - pick[0], v = y[i + lane] - pick[1], w = z[i + lane] - pick[2];
      const double squared = u * u + v * v + w * w, before = distance[i + lane];
      const double now = squared < before ? squared : before;
      distance[i + lane] = now;
      largest[lane] = now > largest[lane] ? now : largest[lane];
    }
  double result = largest[0];
  for (int lane = 1; lane < kLanes; ++lane) result = std::max(result, largest[lane]);
  return result;
}

inline __attribute__((always_inline)) double maximum(const double* values, int64_t count) {
  double largest[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) largest[lane] = values[lane];
  for (int64_t i = kLanes; i < count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) largest[lane] = values[i + lane] > largest[lane] ? values[i + lane] : largest[lane];
  return *std::max_element(largest, largest + kLanes);
}

MM3DAD_CLONES void pick_all(const Leaves& cloud, int64_t position, int64_t count, double* distance, double* leaf_most, double* group_most,
                            double* bound, int64_t* chosen) {
  const double *x = cloud.place[0].data(), *y = cloud.place[1].data(), *z = cloud.place[2].data();
  for (int64_t step = 0;; ++step) {
    chosen[step] = cloud.index[position];
    if (step + 1 == count) return;
    const double pick[3] = {x[position], y[position], z[position]};
    distance[position] = -kInfinity;
    leaf_most[position / kLeaf] = kInfinity;  // its largest distance may have been the pick's own
    group_most[position / (kLeaf * kGroup)] = kInfinity;
    distance_to_boxes(cloud.group, 0, cloud.group_count, pick, bound);
    for (int64_t group = 0; group < cloud.group_count; ++group) {
      if (!(bound[group] < group_most[group])) continue;
      double near[kGroup];
      distance_to_boxes(cloud.leaf, group * kGroup, kGroup, pick, near);
      for (int64_t member = 0; member < kGroup; ++member) {
        const int64_t leaf = group * kGroup + member, first = leaf * kLeaf;
        if (near[member] < leaf_most[leaf]) leaf_most[leaf] = update(x + first, y + first, z + first, distance + first, pick);
      }
      group_most[group] = maximum(leaf_most + group * kGroup, kGroup);
    }
    const double most = maximum(group_most, cloud.group_count);
    int32_t lowest = kNone;
    for (int64_t group = 0; group < cloud.group_count; ++group) {
      if (group_most[group] != most) continue;
      for (int64_t leaf = group * kGroup; leaf < (group + 1) * kGroup; ++leaf) {
        if (leaf_most[leaf] != most) continue;
        for (int64_t i = leaf * kLeaf; i < (leaf + 1) * kLeaf; ++i)
          if (distance[i] == most && cloud.index[i] < lowest) {
            lowest = cloud.index[i];
            position = i;
          }
      }
    }
  }
}

void sample(const double* points, int64_t total, int64_t count, int64_t start, int64_t* chosen) {
  const Leaves cloud(points, total);
  std::vector<double> distance(cloud.index.size(), kInfinity), bound(cloud.group_count);
  std::vector<double> leaf_most(cloud.leaf_count, kInfinity), group_most(cloud.group_count, kInfinity);
  for (size_t i = total; i < distance.size(); ++i) distance[i] = -kInfinity;
  for (int64_t leaf = (total + kLeaf - 1) / kLeaf; leaf < cloud.leaf_count; ++leaf) leaf_most[leaf] = -kInfinity;
  for (int64_t group = (total + kLeaf * kGroup - 1) / (kLeaf * kGroup); group < cloud.group_count; ++group) group_most[group] = -kInfinity;
  const int64_t position = std::find(cloud.index.begin(), cloud.index.end(), static_cast<int32_t>(start)) - cloud.index.begin();
  pick_all(cloud, position, count, distance.data(), leaf_most.data(), group_most.data(), bound.data(), chosen);
}

}  // namespace farthest_point

Tensor farthest_point_sample(const Tensor& points, int64_t count, int64_t start, int64_t threads) {
  check_tensor(points, 3, ScalarType::Double, "points");
  const int64_t batch = points.size(0), total = points.size(1);
  STD_TORCH_CHECK(points.size(2) == 3 && total < kNone, "points must be (B, N, 3) with N below 2^31");
  STD_TORCH_CHECK(count >= 1 && count <= total && start >= 0 && start < total, "count or start is out of range");
  Tensor chosen = torch::stable::new_empty(points, {batch, count}, ScalarType::Long);
  const double* from = points.const_data_ptr<double>();
  int64_t* to = chosen.mutable_data_ptr<int64_t>();
  // One cloud, one thread: a team that waits for nothing costs milliseconds on a busy machine.
#pragma omp parallel for num_threads(std::min(threads, batch)) if (batch > 1)
  for (int64_t b = 0; b < batch; ++b) farthest_point::sample(from + b * total * 3, total, count, start, to + b * count);
  return chosen;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("farthest_point_sample(Tensor points, int count, int start, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) {
  m.impl("farthest_point_sample", TORCH_BOX(&mm3dad::farthest_point_sample));
}
