// flags: -ffp-contract=off -fno-math-errno -fno-trapping-math
// Groups that grow along the surface: curvature of the nearest points, then the shortest links from the group to the rest of its pool.
//
// Of a round's shortest links each leads to a point whose nearest link is among them, so only the points with the smallest nearest links are
// looked at in full. Nearest links are kept up to date: a round measures them from the members that the round before has added.

#include "common.h"
#include "plane.h"

#include <limits>
#include <numeric>
#include <vector>

namespace mm3dad {
namespace iterative_group_ {

constexpr double kFar = std::numeric_limits<double>::infinity();

struct Link {
  double length;
  int32_t end;   // position in the pool
  int64_t rank;  // member, then end: decides between equal lengths
  bool operator<(const Link& other) const { return length < other.length || (length == other.length && rank < other.rank); }
};

struct Room {
  std::vector<double> x, y, z, nearest, chosen_x, chosen_y, chosen_z, sorted;
  std::vector<int32_t> member, chosen;
  std::vector<Link> links;

  Room(int64_t size, int64_t pool)
      : x(pool), y(pool), z(pool), nearest(pool), chosen_x(pool), chosen_y(pool), chosen_z(pool), sorted(pool), member(size), chosen(pool) {}
};

inline __attribute__((always_inline)) double measure_curvature(const double* points, const int64_t* near, int64_t count) {
  double middle[3], spread[6][1], value[3][1], vector[3][3][1];
  measure_spread(points, points + 1, points + 2, 3, near, count, middle, spread[0]);
  find_axes(spread, value, vector);
  double total = 0, least = kFar;
  for (auto& one : value) {
    one[0] = std::max(one[0], 0.0);
    total += one[0];
    least = std::min(least, one[0]);
  }
  return total > 0 ? least / total : 0.0;
}

// Lowers `nearest` (squared) by the links from new members; members themselves stay infinite.
inline __attribute__((always_inline)) void update_nearest(Room& room, int64_t pool, int64_t from, int64_t to) {
  const double *x = room.x.data(), *y = room.y.data(), *z = room.z.data();
  double* nearest = room.nearest.data();
  for (int64_t m = from; m < to; ++m) {
    const int32_t at = room.member[m];
    const double px = x[at], py = y[at], pz = z[at];
#pragma omp simd
    for (int64_t j = 0; j < pool; ++j) {
      const double u = x[j] - px, v = y[j] - py, w = z[j] - pz, squared = u * u + v * v + w * w;
      nearest[j] = squared < nearest[j] ? squared : nearest[j];
    }
  }
}

// Collects the links of at most `limit` (squared) from all members to the chosen points.
inline __attribute__((always_inline)) void collect_links(Room& room, int64_t members, int64_t chosen, int64_t pool, double limit) {
  const double *x = room.chosen_x.data(), *y = room.chosen_y.data(), *z = room.chosen_z.data();
  double* squared = room.sorted.data();
  room.links.clear();
  for (int64_t m = 0; m < members; ++m) {
    const int32_t at = room.member[m];
    const double px = room.x[at], py = room.y[at], pz = room.z[at];
    double least = kFar;
#pragma omp simd reduction(min : least)
    for (int64_t j = 0; j < chosen; ++j) {
      const double u = x[j] - px, v = y[j] - py, w = z[j] - pz;
      squared[j] = u * u + v * v + w * w;
      least = squared[j] < least ? squared[j] : least;
    }
    if (least > limit) continue;
    for (int64_t j = 0; j < chosen; ++j)
      if (squared[j] <= limit) room.links.push_back({std::sqrt(squared[j]), room.chosen[j], m * pool + room.chosen[j]});
  }
}

inline __attribute__((always_inline)) void grow(const double* points, const int64_t* near, int64_t pool, int64_t size, int64_t step, Room& room,
                                                int64_t* index) {
  for (int64_t j = 0; j < pool; ++j) {
    room.x[j] = points[3 * near[j]];
    room.y[j] = points[3 * near[j] + 1];
    room.z[j] = points[3 * near[j] + 2];
  }
  std::iota(room.member.begin(), room.member.begin() + step, 0);
  std::fill(room.nearest.begin(), room.nearest.end(), kFar);
  std::vector<char> is_member(pool, 0);
  int64_t measured = 0;
  for (int64_t members = step; members < size;) {
    const int64_t missing = std::min(step, size - members);
    update_nearest(room, pool, measured, members);
    for (int64_t m = measured; m < members; ++m) is_member[room.member[m]] = 1;
    measured = members;
    int64_t rest = 0;
    for (int64_t j = 0; j < pool; ++j)
      if (!is_member[j]) room.sorted[rest++] = room.nearest[j];
    double limit = kFar;
    if (rest > missing) {
      std::nth_element(room.sorted.begin(), room.sorted.begin() + missing - 1, room.sorted.begin() + rest);
      limit = room.sorted[missing - 1] * (1 + 1e-15);  // squared lengths this close may have one and the same root
    }
    int64_t chosen = 0;
    for (int32_t j = 0; j < pool; ++j) {
      if (is_member[j] || room.nearest[j] > limit) continue;
      room.chosen[chosen] = j;
      room.chosen_x[chosen] = room.x[j];
      room.chosen_y[chosen] = room.y[j];
      room.chosen_z[chosen++] = room.z[j];
    }
    collect_links(room, members, chosen, pool, limit);
    std::nth_element(room.links.begin(), room.links.begin() + missing - 1, room.links.end());
    std::sort(room.links.begin(), room.links.begin() + missing);
    for (int64_t m = 0; m < missing; ++m) room.member[members + m] = room.links[m].end;
    members += missing;
  }
  for (int64_t m = 0; m < size; ++m) index[m] = near[room.member[m]];
}

MM3DAD_CLONES void group(const double* points, const int64_t* near, int64_t pool, int64_t size, int64_t step, double threshold, int64_t first,
                         int64_t last, int64_t* index, double* curvature) {
  Room room(size, pool);
  for (int64_t g = first; g < last; ++g) {
    const int64_t* mine = near + g * pool;
    curvature[g] = measure_curvature(points, mine + 1, size - 1);
    if (curvature[g] >= threshold) {
      grow(points, mine, pool, size, step, room, index + g * size);
    } else {
      std::copy(mine, mine + size, index + g * size);
    }
  }
}

}  // namespace iterative_group_

std::tuple<Tensor, Tensor> iterative_group(const Tensor& points, const Tensor& near, int64_t size, int64_t step, double threshold,
                                           int64_t threads) {
  check_tensor(points, 2, ScalarType::Double, "points");
  check_tensor(near, 2, ScalarType::Long, "near");
  const int64_t total = points.size(0), groups = near.size(0), pool = near.size(1);
  STD_TORCH_CHECK(points.size(1) == 3 && size >= 2 && size <= pool && step >= 1 && step <= size && pool <= INT32_MAX, "size or step is out of range");
  const int64_t* rows = near.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < groups * pool; ++i) STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < total, "near has a row out of range");
  Tensor index = torch::stable::new_empty(near, {groups, size});
  Tensor curvature = torch::stable::new_empty(points, {groups});
  const double* from = points.const_data_ptr<double>();
  int64_t* to = index.mutable_data_ptr<int64_t>();
  double* bends = curvature.mutable_data_ptr<double>();
  constexpr int64_t block = 16;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < groups; first += block)
    iterative_group_::group(from, rows, pool, size, step, threshold, first, std::min(groups, first + block), to, bends);
  return {index, curvature};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("iterative_group(Tensor points, Tensor near, int size, int step, float threshold, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("iterative_group", TORCH_BOX(&mm3dad::iterative_group)); }
