// Planes through neighbourhoods: the spread of some points and its axes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mm3dad {

constexpr int kSideBySide = 8;  // planes fitted at a time

// The mean, and the sum of the outer products of the offsets from it: xx, yy, zz, xy, xz, yz. Coordinates lie `stride` apart.
template <typename Row>
inline __attribute__((always_inline)) void measure_spread(const double* x, const double* y, const double* z, int64_t stride, const Row* rows,
                                                          int64_t count, double* middle, double* spread) {
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
  middle[0] = a;
  middle[1] = b;
  middle[2] = c;
  spread[0] = xx;
  spread[1] = yy;
  spread[2] = zz;
  spread[3] = xy;
  spread[4] = xz;
  spread[5] = yz;
}

// One rotation of Jacobi's in the plane of p and q, in all lanes; nothing changes where the entry is 0 or the lane is done.
template <int p, int q, int lanes>
inline __attribute__((always_inline)) void rotate(double (&m)[3][3][lanes], double (&vector)[3][3][lanes], const double (&waits)[lanes]) {
  constexpr int r = 3 - p - q;
#pragma omp simd
  for (int l = 0; l < lanes; ++l) {
    const double entry = m[p][q][l];
    const bool turns = (entry != 0) & (waits[l] != 0);
    const double half = (m[q][q][l] - m[p][p][l]) / (2 * (turns ? entry : 1));
    const double most = (half < 0 ? -1 : 1) / (std::fabs(half) + std::sqrt(half * half + 1));
    const double tangent = turns ? most : 0;
    const double cosine = 1 / std::sqrt(tangent * tangent + 1), sine = tangent * cosine;
    m[p][p][l] -= tangent * entry;
    m[q][q][l] += tangent * entry;
    m[p][q][l] = m[q][p][l] = turns ? 0 : entry;
    const double a = m[p][r][l], b = m[q][r][l];
    m[p][r][l] = m[r][p][l] = cosine * a - sine * b;
    m[q][r][l] = m[r][q][l] = sine * a + cosine * b;
    for (int i = 0; i < 3; ++i) {
      const double u = vector[i][p][l], v = vector[i][q][l];
      vector[i][p][l] = cosine * u - sine * v;
      vector[i][q][l] = sine * u + cosine * v;
    }
  }
}

// Eigenvalues (any order) and eigenvectors (columns) of symmetric 3 x 3 matrices side by side, by Jacobi's rotations: accurate where two or
// three are equal. Each lane is what it would be alone.
template <int lanes>
inline __attribute__((always_inline)) void find_axes(const double (&spread)[6][lanes], double (&value)[3][lanes],
                                                     double (&vector)[3][3][lanes]) {
  constexpr int place[3][3] = {{0, 3, 4}, {3, 1, 5}, {4, 5, 2}};
  double m[3][3][lanes], unit[lanes], waits[lanes];
  for (int l = 0; l < lanes; ++l) {
    double most = 0;
    for (int i = 0; i < 6; ++i) most = std::max(most, std::fabs(spread[i][l]));
    unit[l] = most > 0 ? most : 1;
  }
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
#pragma omp simd
      for (int l = 0; l < lanes; ++l) {
        m[i][j][l] = spread[place[i][j]][l] / unit[l];
        vector[i][j][l] = i == j;
      }
  for (int sweep = 0; sweep < 12; ++sweep) {
    double any = 0;
    for (int l = 0; l < lanes; ++l) {
      waits[l] = m[0][1][l] * m[0][1][l] + m[0][2][l] * m[0][2][l] + m[1][2][l] * m[1][2][l] < 1e-32 ? 0 : 1;
      any += waits[l];
    }
    if (any == 0) break;
    rotate<0, 1>(m, vector, waits);
    rotate<0, 2>(m, vector, waits);
    rotate<1, 2>(m, vector, waits);
  }
  for (int i = 0; i < 3; ++i)
    for (int l = 0; l < lanes; ++l) value[i][l] = m[i][i][l] * unit[l];
}

// The axis of the smallest spread, turned towards the viewpoint; where the view grazes, by the first non-zero of -z, -y, -x.
template <int lanes>
inline __attribute__((always_inline)) void find_normals(const double (&spread)[6][lanes], const double (&place)[3][lanes],
                                                        const double* viewpoint, double (&normal)[3][lanes]) {
  double value[3][lanes], vector[3][3][lanes];
  find_axes(spread, value, vector);
  for (int l = 0; l < lanes; ++l) {
    const int least = value[0][l] <= value[1][l] ? (value[0][l] <= value[2][l] ? 0 : 2) : (value[1][l] <= value[2][l] ? 1 : 2);
    double axis[3], facing = 0, length = 0;
    for (int i = 0; i < 3; ++i) {
      axis[i] = vector[i][least][l];
      const double view = viewpoint[i] - place[i][l];
      facing += axis[i] * view;
      length += view * view;
    }
    // Rounding alone must not decide a grazing view.
    const double grazing = 1e-9 * std::sqrt(length);
    if (std::fabs(facing) <= grazing)
      for (int i = 2; i >= 0 && std::fabs(facing) <= grazing; --i) facing = -axis[i];
    for (int i = 0; i < 3; ++i) normal[i][l] = facing < 0 ? -axis[i] : axis[i];
  }
}

// The same of some points in rows: spreads (count, 6); coordinates of places and of normals lie `stride` apart.
inline __attribute__((always_inline)) void find_normals_of_rows(const double* spread, const double* const (&place)[3], int64_t stride,
                                                                int64_t count, const double* viewpoint, double* const (&normal)[3]) {
  for (int64_t i = 0; i < count; i += kSideBySide) {
    double columns[6][kSideBySide] = {{0}}, here[3][kSideBySide] = {{0}}, found[3][kSideBySide];
    const int64_t lanes = std::min<int64_t>(kSideBySide, count - i);
    for (int64_t l = 0; l < lanes; ++l) {
      for (int a = 0; a < 6; ++a) columns[a][l] = spread[6 * (i + l) + a];
      for (int a = 0; a < 3; ++a) here[a][l] = place[a][(i + l) * stride];
    }
    find_normals(columns, here, viewpoint, found);
    for (int64_t l = 0; l < lanes; ++l)
      for (int a = 0; a < 3; ++a) normal[a][(i + l) * stride] = found[a][l];
  }
}

}  // namespace mm3dad
