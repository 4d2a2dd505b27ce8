// What is read off a matrix product of two sets of rows: its minima in both directions, and who may lie at them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace mm3dad {
namespace pair_scan {

constexpr int64_t ROWS = 4, CHUNK = 32, FETCHED = 4096;  // rows taken together, columns looked at together, bytes of a row fetched ahead

template <typename T>
inline __attribute__((always_inline)) T lesser(T a, T b) {
  return a < b ? a : b;
}

// The least of row + columns for each of the rows, and of row + own for each column.
template <typename T>
inline __attribute__((always_inline)) void scan_rows(const T* product, int64_t stride, int64_t rows, int64_t width, const T* own,
                                                     const T* theirs, T* forward, T* backward) {
  constexpr T most = std::numeric_limits<T>::max();
  int64_t p = 0;
  for (; p + 4 <= rows; p += 4) {
    const T *a = product + p * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    const T ua = own[p], ub = own[p + 1], uc = own[p + 2], ud = own[p + 3];
    T ma = most, mb = most, mc = most, md = most;
#pragma omp simd reduction(min : ma, mb, mc, md)
    for (int64_t q = 0; q < width; ++q) {
      const T va = a[q], vb = b[q], vc = c[q], vd = d[q], v = theirs[q];
      ma = lesser(ma, va + v);
      mb = lesser(mb, vb + v);
      mc = lesser(mc, vc + v);
      md = lesser(md, vd + v);
      backward[q] = lesser(backward[q], lesser(lesser(va + ua, vb + ub), lesser(vc + uc, vd + ud)));
    }
    forward[p] = ma, forward[p + 1] = mb, forward[p + 2] = mc, forward[p + 3] = md;
  }
  for (; p < rows; ++p) {
    const T *a = product + p * stride, ua = own[p];
    T ma = most;
#pragma omp simd reduction(min : ma)
    for (int64_t q = 0; q < width; ++q) {
      ma = lesser(ma, a[q] + theirs[q]);
      backward[q] = lesser(backward[q], a[q] + ua);
    }
    forward[p] = ma;
  }
}

// How far the entries of a chunk stay above the limit of their row or of their column; at most 0 where one has to be measured.
template <typename T>
inline __attribute__((always_inline)) T least_room(const T* row, const T* theirs, T own, T limit, const T* limits, int64_t width) {
  T room = std::numeric_limits<T>::max();
#pragma omp simd reduction(min : room)
  for (int64_t q = 0; q < width; ++q) room = lesser(room, lesser(row[q] + theirs[q] - limit, row[q] + own - limits[q]));
  return room;
}

template <typename T>
inline __attribute__((always_inline)) T square_distance(const T* a, const T* b, int64_t channels) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) sum += (a[c] - b[c]) * (a[c] - b[c]);
  return sum;
}

// Ask for a row that will be measured soon: it lies anywhere.
template <typename T>
inline __attribute__((always_inline)) void fetch(const T* row, int64_t channels) {
  const char* place = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < std::min<int64_t>(sizeof(T) * channels, FETCHED); byte += 64) __builtin_prefetch(place + byte);
}

// Write down the columns of one row that have to be measured, and fetch them (0 channels: nothing yet); returns how many there are.
template <typename T>
inline __attribute__((always_inline)) int64_t find_row(const T* row, int64_t width, const T* theirs, int64_t channels, T square,
                                                       const T* squares, T limit, const T* limits, int64_t* columns) {
  int64_t count = 0;
  for (int64_t first = 0; first < width; first += CHUNK) {
    const int64_t last = std::min(first + CHUNK, width);
    if (least_room(row + first, squares + first, square, limit, limits + first, last - first) > 0) continue;
    for (int64_t q = first; q < last; ++q) {
      if (row[q] + squares[q] > limit && row[q] + square > limits[q]) continue;
      fetch(theirs + q * channels, channels);
      columns[count++] = q;
    }
  }
  return count;
}

// Measure the columns written down for one row, and lower what is known of the row and of them.
template <typename T>
inline __attribute__((always_inline)) void measure_row(const T* own, const T* theirs, int64_t channels, const int64_t* columns,
                                                       int64_t count, T& forward, T* backward) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = columns[i];
    if (!(forward > 0 || backward[q] > 0)) continue;  // nothing is nearer than 0: equal rows are not measured again and again
    const T distance = square_distance(own, theirs + q * channels, channels);
    forward = lesser(forward, distance);
    backward[q] = lesser(backward[q], distance);
  }
}

template <typename T>
T largest_norm(const T* squares, int64_t count) {
  return std::sqrt(*std::max_element(squares, squares + count));
}

}  // namespace pair_scan
}  // namespace mm3dad
