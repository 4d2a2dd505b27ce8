// flags: -ffinite-math-only -fno-signed-zeros
// Least squared distances of pairs of samples, in both directions, out of one matrix product that may be a rough one.
//
// The product only says who may be nearest: its minima are read off in a first pass, and whatever lies within twice its stated error of
// them is measured from the difference of the rows in a second one. So a product in bfloat16, which processors with matrix units compute
// several times as fast, leads to the same distances as one in float32.
// The minimum over rows and that over columns each need the whole product; taken apart they read it twice, the second time across its
// rows. Four rows are taken together, so that the column minima, which stay in the first cache, are touched once for the four.

#include "common.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace mm3dad {
namespace pair_minima_ {

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

// Write down the columns of one row that have to be measured, and fetch them: they lie anywhere; returns how many there are.
template <typename T>
inline __attribute__((always_inline)) int64_t find_row(const T* row, int64_t width, const T* theirs, int64_t channels, T square,
                                                       const T* squares, T limit, const T* limits, int64_t* columns) {
  int64_t count = 0;
  for (int64_t first = 0; first < width; first += CHUNK) {
    const int64_t last = std::min(first + CHUNK, width);
    if (least_room(row + first, squares + first, square, limit, limits + first, last - first) > 0) continue;
    for (int64_t q = first; q < last; ++q) {
      if (row[q] + squares[q] > limit && row[q] + square > limits[q]) continue;
      const char* place = reinterpret_cast<const char*>(theirs + q * channels);
      for (int64_t byte = 0; byte < std::min<int64_t>(sizeof(T) * channels, FETCHED); byte += 64) __builtin_prefetch(place + byte);
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

// target_clones does not go with templates, so the versions are named.
#define MM3DAD_PAIR(T)                                                                                                                     \
  MM3DAD_CLONES void scan(const T* product, int64_t stride, int64_t rows, int64_t width, const T* own, const T* theirs, T* forward,        \
                          T* backward) {                                                                                                   \
    scan_rows(product, stride, rows, width, own, theirs, forward, backward);                                                               \
  }                                                                                                                                        \
  MM3DAD_CLONES int64_t find(const T* row, int64_t width, const T* theirs, int64_t channels, T square, const T* squares, T limit,         \
                             const T* limits, int64_t* columns) {                                                                          \
    return find_row(row, width, theirs, channels, square, squares, limit, limits, columns);                                                \
  }                                                                                                                                        \
  MM3DAD_CLONES void measure(const T* own, const T* theirs, int64_t channels, const int64_t* columns, int64_t count, T& forward,           \
                             T* backward) {                                                                                                \
    measure_row(own, theirs, channels, columns, count, forward, backward);                                                                 \
  }
MM3DAD_PAIR(float)
MM3DAD_PAIR(double)

MM3DAD_CLONES void widen(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

// Up to ROWS rows of one pair's product as numbers of the features' type, and the distance between them.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
};
inline Rows<float> read(const float* product, int64_t stride, int64_t, int64_t, float*) { return {product, stride}; }
inline Rows<double> read(const double* product, int64_t stride, int64_t, int64_t, double*) { return {product, stride}; }
inline Rows<float> read(const uint16_t* product, int64_t stride, int64_t rows, int64_t width, float* buffer) {
  for (int64_t p = 0; p < rows; ++p) widen(product + p * stride, buffer + p * width, width);
  return {buffer, width};
}

template <typename T>
T largest_norm(const T* squares, int64_t count) {
  return std::sqrt(*std::max_element(squares, squares + count));
}

template <typename T, typename P>
int64_t reduce(const P* product, const Tensor& own, const Tensor& theirs, const Tensor& own_squares, const Tensor& squares, double slack,
               Tensor& forward, Tensor& backward, int64_t threads) {
  constexpr T most = std::numeric_limits<T>::max();
  const int64_t rows = own.size(0), channels = own.size(1), pairs = theirs.size(0), width = theirs.size(1), stride = pairs * width;
  const T *a = own.const_data_ptr<T>(), *b = theirs.const_data_ptr<T>();
  const T *row_square = own_squares.const_data_ptr<T>(), *column_square = squares.const_data_ptr<T>();
  T *by_row = forward.mutable_data_ptr<T>(), *by_column = backward.mutable_data_ptr<T>();
  // Half a limit's distance from its minimum: the product's error, and the rounding of the sums where the product is a rough one.
  const T share = static_cast<T>(slack), rounding = slack > 0 ? 4 * std::numeric_limits<T>::epsilon() : 0;
  const T longest = largest_norm(row_square, rows);
  std::vector<T> limits(stride, most);
  // A minimum is the same in any order, so that threads may share the rows of one product.
#pragma omp parallel for num_threads(threads)
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t first = rows * thread / threads, last = rows * (thread + 1) / threads;
    std::vector<T> best(width), buffer(ROWS * width);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill(best.begin(), best.end(), most);
      for (int64_t p = first; p < last; p += ROWS) {
        const int64_t count = std::min(ROWS, last - p);
        const Rows<T> some = read(product + p * stride + pair * width, stride, count, width, buffer.data());
        scan(some.data, some.stride, count, width, row_square + p, column_square + pair * width, by_row + pair * rows + p, best.data());
      }
#pragma omp critical(mm3dad_pair_minima)
      for (int64_t q = 0; q < width; ++q) limits[pair * width + q] = std::min(limits[pair * width + q], best[q]);
    }
  }
  for (int64_t i = 0; i < stride; ++i) {
    const T square = column_square[i];
    limits[i] += 2 * (share * longest * std::sqrt(square) + rounding * (longest * longest + square));
  }
  std::fill(by_column, by_column + stride, most);
  int64_t measured = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : measured)
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t first = rows * thread / threads, last = rows * (thread + 1) / threads;
    std::vector<T> best(width), buffer(ROWS * width);
    std::vector<int64_t> columns(ROWS * width);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill(best.begin(), best.end(), most);
      const T most_of_theirs = largest_norm(column_square + pair * width, width);
      for (int64_t p = first; p < last; p += ROWS) {
        const int64_t count = std::min(ROWS, last - p);
        const Rows<T> some = read(product + p * stride + pair * width, stride, count, width, buffer.data());
        int64_t found[ROWS];
        for (int64_t k = 0; k < count; ++k) {
          const T square = row_square[p + k];
          const T error = share * std::sqrt(square) * most_of_theirs + rounding * (square + most_of_theirs * most_of_theirs);
          T& known = by_row[pair * rows + p + k];
          found[k] = find(some.data + k * some.stride, width, b + pair * width * channels, channels, square, column_square + pair * width,
                          known + 2 * error, limits.data() + pair * width, columns.data() + k * width);
          known = most;
          measured += found[k];
        }
        for (int64_t k = 0; k < count; ++k)
          measure(a + (p + k) * channels, b + pair * width * channels, channels, columns.data() + k * width, found[k],
                  by_row[pair * rows + p + k], best.data());
      }
#pragma omp critical(mm3dad_pair_minima)
      for (int64_t q = 0; q < width; ++q) by_column[pair * width + q] = std::min(by_column[pair * width + q], best[q]);
    }
  }
  return measured;
}

}  // namespace pair_minima_

std::tuple<Tensor, Tensor, int64_t> pair_minima(const Tensor& product, const Tensor& own, const Tensor& theirs, const Tensor& own_squares,
                                                const Tensor& squares, double slack, int64_t threads) {
  const ScalarType type = own.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "own must be float32 or float64");
  const bool is_rough = type == ScalarType::Float && product.scalar_type() == ScalarType::BFloat16;
  check_tensor(product, 2, is_rough ? ScalarType::BFloat16 : type, "product");
  check_tensor(own, 2, type, "own");
  check_tensor(theirs, 3, type, "theirs");
  check_tensor(own_squares, 1, type, "own_squares");
  check_tensor(squares, 2, type, "squares");
  STD_TORCH_CHECK(own.size(0) > 0 && theirs.size(0) > 0 && theirs.size(1) > 0 && own.size(1) == theirs.size(2),
                  "own must be (P, C), theirs (K, Q, C)");
  STD_TORCH_CHECK(product.size(0) == own.size(0) && product.size(1) == theirs.size(0) * theirs.size(1), "product must be (P, K * Q)");
  STD_TORCH_CHECK(own_squares.size(0) == own.size(0) && squares.size(0) == theirs.size(0) && squares.size(1) == theirs.size(1),
                  "squares must fit own and theirs");
  Tensor forward = torch::stable::new_empty(own, {theirs.size(0), own.size(0)});
  Tensor backward = torch::stable::new_empty(own, {theirs.size(0), theirs.size(1)});
  threads = std::max<int64_t>(1, std::min(threads, own.size(0)));
  const auto run = [&](const auto* values, auto zero) {
    return pair_minima_::reduce<decltype(zero)>(values, own, theirs, own_squares, squares, slack, forward, backward, threads);
  };
  const int64_t measured = is_rough                     ? run(static_cast<const uint16_t*>(product.const_data_ptr()), float{})
                           : type == ScalarType::Float ? run(product.const_data_ptr<float>(), float{})
                                                       : run(product.const_data_ptr<double>(), double{});
  return {forward, backward, measured};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def(
      "pair_minima(Tensor product, Tensor own, Tensor theirs, Tensor own_squares, Tensor squares, float slack, int threads) "
      "-> (Tensor, Tensor, int)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("pair_minima", TORCH_BOX(&mm3dad::pair_minima)); }
