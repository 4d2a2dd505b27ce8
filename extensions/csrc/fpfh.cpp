// flags: -ffp-contract=off -fno-math-errno -fno-trapping-math
// Fast point feature histograms from points alone: neighbours, normals, pair angles and the weighted mean in one go.
//
// All is kept in the order of the curve, so that neighbours lie side by side in memory, and neighbours are kept as
// places on it, never as tables of distances. Their order within a neighbourhood does not matter, so it is only split, not sorted.

#include "common.h"
#include "neighbors.h"
#include "plane.h"

namespace mm3dad {
namespace fpfh_ {

constexpr int kBins = 11, kWidth = 3 * kBins;
constexpr int kRow = 48;       // kWidth in whole vectors
constexpr int kBlock = 256;    // points of a task
constexpr double kTiny = std::numeric_limits<double>::min();
constexpr double kEqual = 1e-10;  // cosines closer than this count as equal

struct Cloud {
  const Leaves& leaves;
  int64_t total, fitted, used;   // used: neighbours of a histogram, the point itself not counted
  std::vector<int32_t> position;  // of each row on the curve
  std::vector<int32_t> table;     // (total, used) positions
  std::array<std::vector<double>, 3> normal;

  Cloud(const Leaves& sorted, int64_t count, int64_t normal_neighbors, int64_t neighbors)
      : leaves(sorted), total(count), fitted(normal_neighbors), used(neighbors - 1), position(count), table(count * (neighbors - 1)) {
    for (auto& axis : normal) axis.resize(count);
    for (int64_t i = 0; i < count; ++i) position[sorted.index[i]] = static_cast<int32_t>(i);
  }
  const double* place(int axis) const { return leaves.place[axis].data(); }
};

struct Visit {
  Cloud& cloud;
  int64_t first;
  double* spread;  // of each point's neighbourhood; none where normals are given

  inline __attribute__((always_inline)) void operator()(int64_t i, Candidates& found) const {
    fill_buckets(found);
    split_at(found, 1);
    split_at(found, cloud.used + 1);
    if (spread) split_at(found, cloud.fitted);
    split_at(found, found.wanted);
    const Found* sorted = found.sorted.data();
    int32_t* near = found.bucket.data();  // no longer needed, and large enough
    for (int64_t j = 0; j < found.wanted; ++j) near[j] = cloud.position[sorted[j].index];
    std::copy(near + 1, near + 1 + cloud.used, cloud.table.data() + (first + i) * cloud.used);
    double middle[3];
    if (spread) measure_spread(cloud.place(0), cloud.place(1), cloud.place(2), 1, near, cloud.fitted, middle, spread + 6 * i);
  }
};

MM3DAD_CLONES void find_neighbors(Cloud& cloud, const double* points, int64_t first, int64_t count, bool wants_normals) {
  const int64_t k = std::max(cloud.used + 1, wants_normals ? cloud.fitted : 1);
  std::vector<double> spread(wants_normals ? 6 * count : 0);
  double* room = wants_normals ? spread.data() : nullptr;
  search_along(cloud.leaves, cloud.total, points, &cloud.leaves.index[first], count, k, Visit{cloud, first, room});
  if (!wants_normals) return;
  constexpr double origin[3] = {0, 0, 0};
  auto& to = cloud.normal;
  find_normals_of_rows(room, {cloud.place(0) + first, cloud.place(1) + first, cloud.place(2) + first}, 1, count, origin,
                       {&to[0][first], &to[1][first], &to[2][first]});
}

// Edges of the bins on one side of the middle one: squared cosines and sines of the first angle's, squares of the two ratios.
constexpr int kEdges = kBins / 2;
struct Edges {
  double cosine[kEdges], sine[kEdges], share[kEdges];

  Edges() {
    for (int e = 0; e < kEdges; ++e) {
      const double ratio = (2 * e + 1.0) / kBins, angle = 3.14159265358979323846 * ratio;
      cosine[e] = std::cos(angle) * std::cos(angle);
      sine[e] = std::sin(angle) * std::sin(angle);
      share[e] = ratio * ratio;
    }
  }
};

// Bins of the three angles between a point and its neighbours, `scratch` of 3 * used numbers; counts them in two rows of `histogram`.
//
// An angle lies beyond an edge of its bins where a ratio of lengths does, and ratios are compared as squares: no root, no quotient, no arc
// tangent. The edges lie evenly about the middle bin, so that a bin is the number of edges passed, to the side of the sign.
inline __attribute__((always_inline)) void count_angles(const Cloud& cloud, int64_t i, int32_t* scratch, int32_t* histogram) {
  const int64_t used = cloud.used;
  const int32_t* near = cloud.table.data() + i * used;
  const double *px = cloud.place(0), *py = cloud.place(1), *pz = cloud.place(2);
  const double *nx = cloud.normal[0].data(), *ny = cloud.normal[1].data(), *nz = cloud.normal[2].data();
  const double ox = px[i], oy = py[i], oz = pz[i], a = nx[i], b = ny[i], c = nz[i];
  const double own = a * a + b * b + c * c;
  int32_t *theta = scratch, *alpha = scratch + used, *phi = scratch + 2 * used;
  const Edges edges;
#pragma omp simd
  for (int64_t j = 0; j < used; ++j) {
    const int32_t at = near[j];
    const double x = px[at] - ox, y = py[at] - oy, z = pz[at] - oz;
    const double p = nx[at], q = ny[at], r = nz[at];
    const double length = x * x + y * y + z * z;
    // The line between the two is left at its length; only what counts as equal needs it, and there a few digits are enough.
    const double equal = kEqual * std::sqrt(static_cast<float>(length));
    const double along_point = x * a + y * b + z * c, along_other = x * p + y * q + z * r;
    const double u = y * c - z * b, v = z * a - x * c, w = x * b - y * a;
    const double uo = y * r - z * q, vo = z * p - x * r, wo = x * q - y * p;
    const bool swapped = std::fabs(along_point) < std::fabs(along_other) - equal;
    const double frame = swapped ? uo * uo + vo * vo + wo * wo : u * u + v * v + w * w;
    const double aligned = a * p + b * q + c * r;
    const double height = swapped ? along_other * aligned - along_point * (p * p + q * q + r * r) : along_other * own - along_point * aligned;
    const double turn = u * p + v * q + w * r, lean = swapped ? -along_other : along_point;
    const double high = height * height, level = aligned * aligned * frame, turned = turn * turn, leaned = lean * lean;
    // Where no frame exists (same place, normal along the line) all three angles count as zero.
    const bool defined = (length > 0) & (frame > 0);
    double sectors = 0, turns = 0, leans = 0;
    for (int e = 0; e < 3; ++e) sectors += (aligned <= 0) | (high * edges.cosine[e] > level * edges.sine[e]) ? 1.0 : 0.0;
    for (int e = 3; e < kEdges; ++e) sectors += (aligned < 0) & (high * edges.cosine[e] < level * edges.sine[e]) ? 1.0 : 0.0;
    for (int e = 0; e < kEdges; ++e) {
      turns += turned > frame * edges.share[e] ? 1.0 : 0.0;
      leans += leaned > length * edges.share[e] ? 1.0 : 0.0;
    }
    constexpr double middle = kBins / 2;
    theta[j] = static_cast<int32_t>(defined ? middle + std::copysign(sectors, height) : middle);
    alpha[j] = static_cast<int32_t>(defined ? middle + std::copysign(turns, turn) : middle);
    phi[j] = static_cast<int32_t>(defined ? middle + std::copysign(leans, lean) : middle);
  }
  // Smooth surfaces fill one bin again and again; two histograms in turn do not wait for each other.
  int64_t j = 0;
  for (; j + 1 < used; j += 2) {
    ++histogram[theta[j]];
    ++histogram[kBins + alpha[j]];
    ++histogram[2 * kBins + phi[j]];
    ++histogram[kRow + theta[j + 1]];
    ++histogram[kRow + kBins + alpha[j + 1]];
    ++histogram[kRow + 2 * kBins + phi[j + 1]];
  }
  if (j < used) {
    ++histogram[theta[j]];
    ++histogram[kBins + alpha[j]];
    ++histogram[2 * kBins + phi[j]];
  }
}

template <typename T>
inline __attribute__((always_inline)) void count_block(const Cloud& cloud, int64_t first, int64_t last, T* counts) {
  std::vector<int32_t> scratch(3 * cloud.used);
  for (int64_t i = first; i < last; ++i) {
    int32_t histogram[2 * kRow] = {0};
    count_angles(cloud, i, scratch.data(), histogram);
    for (int bin = 0; bin < kRow; ++bin) counts[i * kRow + bin] = static_cast<T>(histogram[bin] + histogram[kRow + bin]);
  }
}

// The point's own histogram plus the mean of its neighbours', weighted by 1 / squared distance.
template <typename T>
inline __attribute__((always_inline)) void mix_block(const Cloud& cloud, int64_t first, int64_t last, const T* counts, T* out) {
  typedef T Lanes __attribute__((vector_size(64), aligned(sizeof(T))));
  constexpr int lanes = 64 / sizeof(T), parts = kRow / lanes;
  const int64_t used = cloud.used;
  const double *x = cloud.place(0), *y = cloud.place(1), *z = cloud.place(2);
  std::vector<double> weight(used);
  std::vector<T> share(used);
  for (int64_t i = first; i < last; ++i) {
    const int32_t* near = cloud.table.data() + i * used;
    const double ox = x[i], oy = y[i], oz = z[i];
    double* weights = weight.data();
    T* shares = share.data();
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < used; ++j) {
      const double u = x[near[j]] - ox, v = y[near[j]] - oy, w = z[near[j]] - oz, squared = u * u + v * v + w * w;
      const double one = squared >= kTiny ? 1 / squared : 0;
      weights[j] = one;
      sum += one;
    }
    const double scale = 1 / (sum > kTiny ? sum : kTiny);
#pragma omp simd
    for (int64_t j = 0; j < used; ++j) shares[j] = static_cast<T>(weights[j] * scale);
    // Two sums in turn, lest each step wait for the one before.
    Lanes total[parts], other[parts];
    for (int part = 0; part < parts; ++part) {
      total[part] = reinterpret_cast<const Lanes*>(counts + i * kRow)[part];
      other[part] = total[part] * 0;
    }
    int64_t j = 0;
    for (; j + 1 < used; j += 2) {
      const Lanes* one = reinterpret_cast<const Lanes*>(counts + static_cast<int64_t>(near[j]) * kRow);
      const Lanes* two = reinterpret_cast<const Lanes*>(counts + static_cast<int64_t>(near[j + 1]) * kRow);
      const T share = shares[j], next = shares[j + 1];
      for (int part = 0; part < parts; ++part) {
        total[part] += share * one[part];
        other[part] += next * two[part];
      }
    }
    if (j < used) {
      const Lanes* one = reinterpret_cast<const Lanes*>(counts + static_cast<int64_t>(near[j]) * kRow);
      for (int part = 0; part < parts; ++part) total[part] += shares[j] * one[part];
    }
    T values[kRow];
    for (int part = 0; part < parts; ++part) reinterpret_cast<Lanes*>(values)[part] = total[part] + other[part];
    const T unit = static_cast<T>(100.0 / used);
    T* to = out + static_cast<int64_t>(cloud.leaves.index[i]) * kWidth;
    for (int bin = 0; bin < kWidth; ++bin) to[bin] = values[bin] * unit;
  }
}

// target_clones does not go with templates, so the versions are named.
MM3DAD_CLONES void count(const Cloud& cloud, int64_t first, int64_t last, float* counts) { count_block(cloud, first, last, counts); }
MM3DAD_CLONES void count(const Cloud& cloud, int64_t first, int64_t last, double* counts) { count_block(cloud, first, last, counts); }
MM3DAD_CLONES void mix(const Cloud& cloud, int64_t first, int64_t last, const float* counts, float* out) {
  mix_block(cloud, first, last, counts, out);
}
MM3DAD_CLONES void mix(const Cloud& cloud, int64_t first, int64_t last, const double* counts, double* out) {
  mix_block(cloud, first, last, counts, out);
}

template <typename T>
void describe(const Cloud& cloud, int64_t threads, T* out) {
  std::vector<T> counts(cloud.total * kRow);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < cloud.total; first += kBlock)
    count(cloud, first, std::min<int64_t>(cloud.total, first + kBlock), counts.data());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < cloud.total; first += kBlock)
    mix(cloud, first, std::min<int64_t>(cloud.total, first + kBlock), counts.data(), out);
}

}  // namespace fpfh_

// `normals` of no rows: they are estimated, and turned towards the origin. `wide`: float64 out, else float32.
Tensor fpfh(const Tensor& points, const Tensor& normals, int64_t normal_neighbors, int64_t neighbors, bool wide, int64_t threads) {
  check_tensor(points, 2, ScalarType::Double, "points");
  check_tensor(normals, 2, ScalarType::Double, "normals");
  const int64_t total = points.size(0);
  const bool wants_normals = normals.size(0) == 0;
  STD_TORCH_CHECK(points.size(1) == 3 && normals.size(1) == 3 && (wants_normals || normals.size(0) == total), "points, normals must be (N, 3)");
  STD_TORCH_CHECK(total >= 2 && total < kNone && normal_neighbors >= 1 && normal_neighbors <= total, "normal_neighbors must be 1 to N, N >= 2");
  STD_TORCH_CHECK(neighbors >= 2 && neighbors <= total, "neighbors must be 2 to N");
  Tensor out = torch::stable::new_empty(points, {total, fpfh_::kWidth}, wide ? ScalarType::Double : ScalarType::Float);
  const double* from = points.const_data_ptr<double>();
  const Leaves leaves(from, total);
  fpfh_::Cloud cloud(leaves, total, normal_neighbors, neighbors);
  if (!wants_normals) {
    const double* given = normals.const_data_ptr<double>();
    for (int64_t i = 0; i < total; ++i)
      for (int axis = 0; axis < 3; ++axis) cloud.normal[axis][cloud.position[i]] = given[3 * i + axis];
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t first = 0; first < total; first += fpfh_::kBlock)
    fpfh_::find_neighbors(cloud, from, first, std::min<int64_t>(fpfh_::kBlock, total - first), wants_normals);
  if (wide) {
    fpfh_::describe(cloud, threads, out.mutable_data_ptr<double>());
  } else {
    fpfh_::describe(cloud, threads, out.mutable_data_ptr<float>());
  }
  return out;
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def("fpfh(Tensor points, Tensor normals, int normal_neighbors, int neighbors, bool wide, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("fpfh", TORCH_BOX(&mm3dad::fpfh)); }
