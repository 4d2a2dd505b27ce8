// Planes through neighbourhoods: the spread of some points and its axes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mm3dad {

// The sum of the outer products of the offsets from their mean: xx, yy, zz, xy, xz, yz. Coordinates lie `stride` apart.
template <typename Row>
inline __attribute__((always_inline)) void measure_spread(const double* x, const double* y, const double* z, int64_t stride, const Row* rows,
                                                          int64_t count, double* spread) {
  double a = 0, b = 0, c = 0;
#pragma omp simd reduction(+ : a, b, c)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = rows[i] * stride;
    a += x[at];
    b += y[at];
    c += z[at];
  }
  a /= count;
  b /= count;
  c /= count;
  double xx = 0, yy = 0, zz = 0, xy = 0, xz = 0, yz = 0;
#pragma omp simd reduction(+ : xx, yy, zz, xy, xz, yz)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = rows[i] * stride;
    const double u = x[at] - a, v = y[at] - b, w = z[at] - c;
    xx += u * u;
    yy += v * v;
    zz += w * w;
    xy += u * v;
    xz += u * w;
    yz += v * w;
  }
  spread[0] = xx;
  spread[1] = yy;
  spread[2] = zz;
  spread[3] = xy;
  spread[4] = xz;
  spread[5] = yz;
}

// Eigenvalues (any order) and eigenvectors (columns) of a symmetric 3 x 3 matrix, by Jacobi's rotations: accurate where two or three are equal.
inline __attribute__((always_inline)) void find_axes(const double* spread, double* value, double (*vector)[3]) {
  double most = 0;
  for (int i = 0; i < 6; ++i) most = std::max(most, std::fabs(spread[i]));
  const double unit = most > 0 ? most : 1;
  double m[3][3] = {{spread[0] / unit, spread[3] / unit, spread[4] / unit},
                    {spread[3] / unit, spread[1] / unit, spread[5] / unit},
                    {spread[4] / unit, spread[5] / unit, spread[2] / unit}};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) vector[i][j] = i == j;
  for (int sweep = 0; sweep < 12; ++sweep) {
    if (m[0][1] * m[0][1] + m[0][2] * m[0][2] + m[1][2] * m[1][2] < 1e-32) break;
    for (int turn = 0; turn < 3; ++turn) {
      const int p = turn == 2 ? 1 : 0, q = turn == 0 ? 1 : 2, r = 3 - p - q;
      if (m[p][q] == 0) continue;
      const double half = (m[q][q] - m[p][p]) / (2 * m[p][q]);
      const double tangent = (half < 0 ? -1 : 1) / (std::fabs(half) + std::sqrt(half * half + 1));
      const double cosine = 1 / std::sqrt(tangent * tangent + 1), sine = tangent * cosine;
      m[p][p] -= tangent * m[p][q];
      m[q][q] += tangent * m[p][q];
      m[p][q] = m[q][p] = 0;
      const double a = m[p][r], b = m[q][r];
      m[p][r] = m[r][p] = cosine * a - sine * b;
      m[q][r] = m[r][q] = sine * a + cosine * b;
      for (int i = 0; i < 3; ++i) {
        const double u = vector[i][p], v = vector[i][q];
        vector[i][p] = cosine * u - sine * v;
        vector[i][q] = sine * u + cosine * v;
      }
    }
  }
  for (int i = 0; i < 3; ++i) value[i] = m[i][i] * unit;
}

// The axis of the smallest spread, turned towards the viewpoint; where the view grazes, by the first non-zero of -z, -y, -x.
inline __attribute__((always_inline)) void find_normal(const double* spread, const double* place, const double* viewpoint, double* normal) {
  double value[3], vector[3][3];
  find_axes(spread, value, vector);
  const int least = value[0] <= value[1] ? (value[0] <= value[2] ? 0 : 2) : (value[1] <= value[2] ? 1 : 2);
  double view[3], facing = 0, length = 0;
  for (int i = 0; i < 3; ++i) {
    normal[i] = vector[i][least];
    view[i] = viewpoint[i] - place[i];
    facing += normal[i] * view[i];
    length += view[i] * view[i];
  }
  // Rounding alone must not decide a grazing view.
  const double grazing = 1e-9 * std::sqrt(length);
  if (std::fabs(facing) <= grazing)
    for (int axis = 2; axis >= 0 && std::fabs(facing) <= grazing; --axis) facing = -normal[axis];
  if (facing < 0)
    for (int i = 0; i < 3; ++i) normal[i] = -normal[i];
}

}  // namespace mm3dad
