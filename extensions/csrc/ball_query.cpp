// flags: -ffp-contract=off
// The first points, in their own order, within a radius of each centre; short lists repeat their first entry (PointNet++).

#include "common.h"
#include "leaves.h"

namespace mm3dad {
namespace ball_query_ {

struct Found {
  int64_t* index;
  int64_t count, most;
};

// Points of the cloud in their own order, until the list is full.
inline __attribute__((always_inline)) void scan(const double* points, int64_t first, int64_t last, const double* center, double limit,
                                                Found& found) {
  for (int64_t i = first; i < last && found.count < found.most; ++i) {
    const double u = points[3 * i] - center[0], v = points[3 * i + 1] - center[1], w = points[3 * i + 2] - center[2];
    if (u * u + v * v + w * w < limit) found.index[found.count++] = i;
  }
}

// All points within the radius, marked in `marks` leaf by leaf and then read in order.
inline __attribute__((always_inline)) void collect(const Leaves& cloud, const double* center, double limit, std::vector<double>& bound,
                                                   std::vector<uint64_t>& marks, Found& found) {
  distance_to_boxes(cloud.group, 0, cloud.group_count, center, bound.data());
  int64_t low = INT64_MAX, high = -1;
  for (int64_t group = 0; group < cloud.group_count; ++group) {
    if (!(bound[group] < limit)) continue;
    double near[kGroup];
    distance_to_boxes(cloud.leaf, group * kGroup, kGroup, center, near);
    for (int64_t member = 0; member < kGroup; ++member) {
      if (!(near[member] < limit)) continue;
      const int64_t first = (group * kGroup + member) * kLeaf;
      double squared[kLeaf];
      distance_to_points(cloud, first, center, squared);
      for (int i = 0; i < kLeaf; ++i)
        if (squared[i] < limit) {
          const int64_t row = cloud.index[first + i];
          marks[row >> 6] |= 1ull << (row & 63);
          low = std::min(low, row >> 6);
          high = std::max(high, row >> 6);
        }
    }
  }
  for (int64_t word = low; word <= high; ++word) {
    for (uint64_t bits = marks[word]; bits && found.count < found.most; bits &= bits - 1)
      found.index[found.count++] = word * 64 + __builtin_ctzll(bits);
    marks[word] = 0;
  }
}

MM3DAD_CLONES void query(const Leaves& cloud, const double* points, int64_t total, const double* centers, int64_t count, double limit,
                         int64_t most, int64_t* index) {
  std::vector<double> bound(cloud.group_count);
  std::vector<uint64_t> marks((total + 63) / 64, 0);
  // A wide ball is full after a few points of the cloud; looking at them first costs little where it is not.
  const int64_t few = std::min(total, 4 * most);
  for (int64_t q = 0; q < count; ++q) {
    Found found{index + q * most, 0, most};
    scan(points, 0, few, centers + 3 * q, limit, found);
    if (found.count < most && few < total) {
      found.count = 0;
      collect(cloud, centers + 3 * q, limit, bound, marks, found);
    }
    const int64_t first = found.count ? found.index[0] : 0;
    for (int64_t i = found.count; i < most; ++i) found.index[i] = first;
  }
}

}  // namespace ball_query_

Tensor ball_query(const Tensor& centers, const Tensor& points, double radius, int64_t count, int64_t threads) {
  check_tensor(centers, 3, ScalarType::Double, "centers");
  check_tensor(points, 3, ScalarType::Double, "points");
  const int64_t batch = centers.size(0), queries = centers.size(1), total = points.size(1);
  STD_TORCH_CHECK(centers.size(2) == 3 && points.size(2) == 3 && points.size(0) == batch, "centers and points must be (B, N, 3)");
  STD_TORCH_CHECK(total >= 1 && total < kNone && count >= 1, "points must have 1 to 2^31 - 2 rows, count must be positive");
  Tensor index = torch::stable::new_empty(centers, {batch, queries, count}, ScalarType::Long);
  const double* from = centers.const_data_ptr<double>();
  int64_t* to = index.mutable_data_ptr<int64_t>();
  constexpr int64_t block = 64;
  for (int64_t b = 0; b < batch; ++b) {
    const double* place = points.const_data_ptr<double>() + b * total * 3;
    const Leaves cloud(place, total);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < queries; first += block) {
      const int64_t at = b * queries + first;
      ball_query_::query(cloud, place, total, from + 3 * at, std::min(block, queries - first), radius * radius, count, to + at * count);
    }
  }
  return index;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("ball_query(Tensor centers, Tensor points, float radius, int count, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("ball_query", TORCH_BOX(&mm3dad::ball_query)); }
