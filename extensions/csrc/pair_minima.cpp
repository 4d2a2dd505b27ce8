// flags: -ffinite-math-only -fno-signed-zeros
// Least squared distances of pairs of samples, in both directions, out of one matrix product.
//
// The product only says who may be nearest: its minima are read off in a first pass, and whatever lies within twice its rounding of
// them is measured from the difference of the rows in a second one.
// The minimum over rows and that over columns each need the whole product; taken apart they read it twice, the second time across its
// rows. Four rows are taken together, so that the column minima, which stay in the first cache, are touched once for the four.

#include "common.h"
#include "pair_scan.h"

#include <vector>

namespace mm3dad {
namespace pair_minima_ {

using namespace pair_scan;

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

template <typename T>
void reduce(const Tensor& scores, const Tensor& own, const Tensor& theirs, const Tensor& own_squares, const Tensor& squares,
            Tensor& forward, Tensor& backward, int64_t threads) {
  constexpr T most = std::numeric_limits<T>::max();
  const int64_t rows = own.size(0), channels = own.size(1), pairs = theirs.size(0), width = theirs.size(1), stride = pairs * width;
  const T *product = scores.const_data_ptr<T>(), *a = own.const_data_ptr<T>(), *b = theirs.const_data_ptr<T>();
  const T *row_square = own_squares.const_data_ptr<T>(), *column_square = squares.const_data_ptr<T>();
  T *by_row = forward.mutable_data_ptr<T>(), *by_column = backward.mutable_data_ptr<T>();
  // The most that a sum of the product's may be wrong by, as a share of |a||b|: its own rounding.
  const T share = channels * std::numeric_limits<T>::epsilon(), rounding = 4 * std::numeric_limits<T>::epsilon();
  const T longest = largest_norm(row_square, rows);
  std::vector<T> limits(stride, most);
  // A minimum is the same in any order, so that threads may share the rows of one product.
#pragma omp parallel for num_threads(threads)
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t first = rows * thread / threads, last = rows * (thread + 1) / threads;
    std::vector<T> best(width);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill(best.begin(), best.end(), most);
      for (int64_t p = first; p < last; p += ROWS) {
        const int64_t count = std::min(ROWS, last - p);
        scan(product + p * stride + pair * width, stride, count, width, row_square + p, column_square + pair * width,
             by_row + pair * rows + p, best.data());
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
#pragma omp parallel for num_threads(threads)
  for (int64_t thread = 0; thread < threads; ++thread) {
    const int64_t first = rows * thread / threads, last = rows * (thread + 1) / threads;
    std::vector<T> best(width);
    std::vector<int64_t> columns(ROWS * width);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill(best.begin(), best.end(), most);
      const T most_of_theirs = largest_norm(column_square + pair * width, width);
      for (int64_t p = first; p < last; p += ROWS) {
        const int64_t count = std::min(ROWS, last - p);
        int64_t found[ROWS];
        for (int64_t k = 0; k < count; ++k) {
          const T square = row_square[p + k];
          const T error = share * std::sqrt(square) * most_of_theirs + rounding * (square + most_of_theirs * most_of_theirs);
          T& known = by_row[pair * rows + p + k];
          found[k] = find(product + (p + k) * stride + pair * width, width, b + pair * width * channels, channels, square,
                          column_square + pair * width, known + 2 * error, limits.data() + pair * width, columns.data() + k * width);
          known = most;
        }
        for (int64_t k = 0; k < count; ++k)
          measure(a + (p + k) * channels, b + pair * width * channels, channels, columns.data() + k * width, found[k],
                  by_row[pair * rows + p + k], best.data());
      }
#pragma omp critical(mm3dad_pair_minima)
      for (int64_t q = 0; q < width; ++q) by_column[pair * width + q] = std::min(by_column[pair * width + q], best[q]);
    }
  }
}

}  // namespace pair_minima_

std::tuple<Tensor, Tensor> pair_minima(const Tensor& product, const Tensor& own, const Tensor& theirs, const Tensor& own_squares,
                                       const Tensor& squares, int64_t threads) {
  const ScalarType type = own.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "own must be float32 or float64");
  check_tensor(product, 2, type, "product");
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
  const auto run = type == ScalarType::Float ? pair_minima_::reduce<float> : pair_minima_::reduce<double>;
  run(product, own, theirs, own_squares, squares, forward, backward, threads);
  return {forward, backward};
}

}  // namespace mm3dad

STABLE_TORCH_LIBRARY_FRAGMENT(mm3dad, m) {
  m.def(
      "pair_minima(Tensor product, Tensor own, Tensor theirs, Tensor own_squares, Tensor squares, int threads) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mm3dad, CPU, m) { m.impl("pair_minima", TORCH_BOX(&mm3dad::pair_minima)); }
