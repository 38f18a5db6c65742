// SPDX-License-Identifier: Apache-2.0
// 3x3 pools with padding 1 and stride 1 or 2, and their gradients, of one image with the channels
// innermost. Rows are flat, a neighbouring column is C elements away, so every lane works at every
// number of channels. The window is taken apart into a pass over rows and one over columns, each
// of three terms; the row between them lies in scratch, whose padding columns replace special cases
// at the borders. At stride 2 such a row is split into its even and its odd columns first.
//
// x is [height, width, channels], y and g are [out_height, out_width, channels] with out = ceil(in
// / stride), all contiguous; `scratch` is pool_scratch(shape) elements, best aligned to 64 bytes,
// need not be initialised, and may not overlap the rest. Nothing else is read or written.
#pragma once

#include "cpu/kernels/vec.h"

namespace darts_fast::cpu::DARTS_CPU_CAPABILITY {

struct PoolShape {
  int64_t channels, height, width, out_height, out_width, stride;
};

// A scratch row has room for the widest row, two padding columns before it and one behind it.
constexpr int64_t kPoolColumnsBefore = 2;
constexpr int64_t kPoolColumnsBehind = 1;
constexpr int64_t kPoolScratchRows = 10;

template <typename T>
static inline int64_t pool_row_size(const PoolShape& s) {
  const int64_t size = (s.width + kPoolColumnsBefore + kPoolColumnsBehind) * s.channels;
  return (size + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <typename T>
static int64_t pool_scratch(const PoolShape& s) {
  return kPoolScratchRows * pool_row_size<T>(s);
}

template <typename T>
static inline void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// Column 0 of a scratch row, the row and its padding columns filled with `value`.
template <typename T>
static T* pool_row(const PoolShape& s, T* scratch, int64_t index, T value) {
  T* row = scratch + index * pool_row_size<T>(s);
  fill(row, pool_row_size<T>(s), value);
  return row + kPoolColumnsBefore * s.channels;
}

template <typename T>
struct WholeVector {
  Vec<T> operator()(const T* from) const { return load(from); }
  void put(T* to, Vec<T> value) const { store(to, value); }
};

template <typename T>
struct PartOfVector {
  int64_t count;
  Vec<T> operator()(const T* from) const {
    Vec<T> value = {};
    std::memcpy(&value, from, count * sizeof(T));
    return value;
  }
  void put(T* to, Vec<T> value) const { std::memcpy(to, &value, count * sizeof(T)); }
};

// body(i, part) for the vectors that cover [0, count): `part` loads and stores the one at i, which
// is not whole at the end of a row that is no multiple of the lanes.
template <typename T, typename Body>
static inline void each_vector(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) body(i, WholeVector<T>{});
  if (i < count) body(i, PartOfVector<T>{count - i});
}

// Where a value is NaN the result is b, unless kNan: then it is NaN.
template <typename T, bool kNan>
static inline Vec<T> larger(Vec<T> a, Vec<T> b) {
  const Vec<T> result = a > b ? a : b;
  if constexpr (kNan) return a != a ? a : result;
  return result;
}

template <typename T>
static bool any_nan(const T* values, int64_t count) {
  // The bits of the comparisons, all zero where none was true.
  decltype(Vec<T>{} != Vec<T>{}) found = {};
  each_vector<T>(count, [&](int64_t i, auto part) {
    const Vec<T> value = part(values + i);
    found |= value != value;
  });
  bool any = false;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) any |= found[lane] != 0;
  return any;
}

// to[p * to_step + c] (+)= from[p * from_step + c].
template <typename T, bool kAdd>
static void move_columns(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t columns,
                         int64_t channels) {
  for (int64_t p = 0; p < columns; ++p, from += from_step, to += to_step) {
    each_vector<T>(channels, [=](int64_t c, auto part) {
      part.put(to + c, kAdd ? part(to + c) + part(from + c) : part(from + c));
    });
  }
}

// The three columns of the window at output column 0; the ones of the next are C elements on.
template <typename T>
struct PoolColumns {
  const T *left, *middle, *right;
};

// `even` and `odd` are scratch rows for stride 2. The padding columns of `row` or of `odd` hold
// what the border is to count as; an odd width has no last odd column, so padding stays there.
template <typename T>
static PoolColumns<T> pool_columns(const PoolShape& s, const T* row, T* even, T* odd) {
  const int64_t c = s.channels;
  if (s.stride == 1) return {row - c, row, row + c};
  move_columns<T, false>(row, 2 * c, even, c, s.out_width, c);
  move_columns<T, false>(row + c, 2 * c, odd, c, s.width / 2, c);
  return {odd - c, even, odd};
}

// How many of the three positions of a window lie inside.
static inline int64_t pool_cells(int64_t position, int64_t size, int64_t stride) {
  const int64_t begin = position * stride - 1, end = begin + 3;
  return (end < size ? end : size) - (begin > 0 ? begin : 0);
}

template <typename T>
static void inverse_columns(const PoolShape& s, T* row) {
  for (int64_t p = 0; p < s.out_width; ++p) {
    fill(row + p * s.channels, s.channels, T(1) / T(pool_cells(p, s.width, s.stride)));
  }
}

template <typename T, bool kNan>
static void max_pool_rows(const PoolShape& s, const T* x, T* scratch, T* y) {
  constexpr T kLowest = -static_cast<T>(__builtin_inf());
  const int64_t in_row = s.width * s.channels, out_row = s.out_width * s.channels;
  T* column_max = pool_row(s, scratch, 0, kLowest);
  T* even = s.stride == 1 ? nullptr : pool_row(s, scratch, 1, kLowest);
  T* odd = s.stride == 1 ? nullptr : pool_row(s, scratch, 2, kLowest);
  for (int64_t o = 0; o < s.out_height; ++o) {
    const int64_t r = o * s.stride;
    const T* centre = x + r * in_row;
    // The maximum does not mind a row twice.
    const T* above = r > 0 ? centre - in_row : centre;
    const T* below = r + 1 < s.height ? centre + in_row : centre;
    each_vector<T>(in_row, [=](int64_t i, auto part) {
      part.put(column_max + i, larger<T, kNan>(larger<T, kNan>(part(above + i), part(centre + i)),
                                               part(below + i)));
    });
    const PoolColumns<T> at = pool_columns<T>(s, column_max, even, odd);
    T* out = y + o * out_row;
    each_vector<T>(out_row, [=](int64_t i, auto part) {
      part.put(out + i, larger<T, kNan>(larger<T, kNan>(part(at.left + i), part(at.middle + i)),
                                        part(at.right + i)));
    });
  }
}

// y = the maximum of each window; NaN where it has one, as torch.
template <typename T>
static void max_pool_image(const PoolShape& s, const T* x, T* scratch, T* y) {
  if (any_nan(x, s.height * s.width * s.channels)) {
    max_pool_rows<T, true>(s, x, scratch, y);
  } else {
    max_pool_rows<T, false>(s, x, scratch, y);
  }
}

// y = the mean of the cells of each window that are inside the image.
template <typename T>
static void avg_pool_image(const PoolShape& s, const T* x, T* scratch, T* y) {
  const int64_t in_row = s.width * s.channels, out_row = s.out_width * s.channels;
  T* column_sum = pool_row(s, scratch, 0, T(0));
  const T* zeros = pool_row(s, scratch, 1, T(0));
  T* inverse = pool_row(s, scratch, 2, T(0));
  T* even = s.stride == 1 ? nullptr : pool_row(s, scratch, 3, T(0));
  T* odd = s.stride == 1 ? nullptr : pool_row(s, scratch, 4, T(0));
  inverse_columns(s, inverse);
  for (int64_t o = 0; o < s.out_height; ++o) {
    const int64_t r = o * s.stride;
    const T* centre = x + r * in_row;
    const T* above = r > 0 ? centre - in_row : zeros;
    const T* below = r + 1 < s.height ? centre + in_row : zeros;
    each_vector<T>(in_row, [=](int64_t i, auto part) {
      part.put(column_sum + i, part(above + i) + part(centre + i) + part(below + i));
    });
    const PoolColumns<T> at = pool_columns<T>(s, column_sum, even, odd);
    const T inverse_rows = T(1) / T(pool_cells(o, s.height, s.stride));
    T* out = y + o * out_row;
    each_vector<T>(out_row, [=](int64_t i, auto part) {
      part.put(out + i, (part(at.left + i) + part(at.middle + i) + part(at.right + i)) *
                            (part(inverse + i) * inverse_rows));
    });
  }
}

// grad_x += the gradient of avg_pool_image at g.
template <typename T>
static void avg_pool_grad_image(const PoolShape& s, const T* g, T* scratch, T* grad_x) {
  const int64_t c = s.channels, in_row = s.width * c, out_row = s.out_width * c;
  T* share = pool_row(s, scratch, 0, T(0));  // of a window's gradient for each of its cells
  const T* zeros = pool_row(s, scratch, 1, T(0));
  T* inverse = pool_row(s, scratch, 2, T(0));
  T* odd = s.stride == 1 ? nullptr : pool_row(s, scratch, 3, T(0));
  inverse_columns(s, inverse);
  for (int64_t r = 0; r < s.height; ++r) {
    // Row r lies in the windows of the output rows from `first` on, up to three of them.
    const int64_t first = s.stride == 1 ? r - 1 : r / 2;
    const int64_t windows = s.stride == 1 ? 3 : 1 + r % 2;
    const T* rows[3] = {zeros, zeros, zeros};
    T inverse_rows[3] = {};
    for (int64_t k = 0; k < windows; ++k) {
      if (first + k < 0 || first + k >= s.out_height) continue;
      rows[k] = g + (first + k) * out_row;
      inverse_rows[k] = T(1) / T(pool_cells(first + k, s.height, s.stride));
    }
    each_vector<T>(out_row, [=](int64_t i, auto part) {
      const Vec<T> sum = part(rows[0] + i) * inverse_rows[0] + part(rows[1] + i) * inverse_rows[1] +
                         part(rows[2] + i) * inverse_rows[2];
      part.put(share + i, sum * part(inverse + i));
    });
    T* out = grad_x + r * in_row;
    if (s.stride == 1) {
      each_vector<T>(in_row, [=](int64_t i, auto part) {
        part.put(out + i,
                 part(out + i) + (part(share + i - c) + part(share + i) + part(share + i + c)));
      });
    } else {
      each_vector<T>(out_row, [=](int64_t i, auto part) {
        part.put(odd + i, part(share + i) + part(share + i + c));
      });
      move_columns<T, true>(share, c, out, 2 * c, s.out_width, c);
      move_columns<T, true>(odd, c, out + c, 2 * c, s.width / 2, c);
    }
  }
}

// The part of g that each of three values gets where `top` is their maximum and the first one equal
// to it takes all; the third needs no comparison of its own. Padding is NaN, equal to nothing.
template <typename T>
static inline Vec<T> first_takes(Vec<T> first, Vec<T> top, Vec<T> g) {
  return first == top ? g : Vec<T>{};
}

template <typename T>
static inline Vec<T> second_takes(Vec<T> first, Vec<T> second, Vec<T> top, Vec<T> g) {
  return first == top ? Vec<T>{} : first_takes<T>(second, top, g);
}

template <typename T>
static inline Vec<T> third_takes(Vec<T> first, Vec<T> second, Vec<T> top, Vec<T> g) {
  const Vec<T> rest = first == top ? Vec<T>{} : g;
  return second == top ? Vec<T>{} : rest;
}

// max_pool_grad_image where there is NaN: the last one of a window, as in torch.
template <typename T>
static void max_pool_grad_nan(const PoolShape& s, const T* x, const T* g, T* grad_x) {
  const int64_t outputs = s.out_height * s.out_width * s.channels;
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t c = i % s.channels, p = i / s.channels % s.out_width;
    const int64_t o = i / s.channels / s.out_width;
    int64_t winner = -1;
    for (int64_t cell = 0; cell < 9; ++cell) {
      const int64_t row = o * s.stride + cell / 3 - 1, column = p * s.stride + cell % 3 - 1;
      if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
      const int64_t at = (row * s.width + column) * s.channels + c;
      if (winner < 0 || x[at] > x[winner] || x[at] != x[at]) winner = at;
    }
    grad_x[winner] += g[i];
  }
}

// grad_x += the gradient of max_pool_image at g; y is what that gave for x. The whole of g goes to
// the first of equal cells of a window in row-major order: the first row whose maximum is y, there
// the first column that equals that. With NaN in a window to the last one of those, as in torch.
template <typename T>
static void max_pool_grad_image(const PoolShape& s, const T* x, const T* y, const T* g, T* scratch,
                                T* grad_x) {
  if (any_nan(y, s.out_height * s.out_width * s.channels)) {
    return max_pool_grad_nan(s, x, g, grad_x);
  }
  constexpr T kNever = static_cast<T>(__builtin_nan(""));
  const int64_t c = s.channels, in_row = s.width * c, out_row = s.out_width * c;
  T* cells = pool_row(s, scratch, 0, kNever);
  const T* zeros = pool_row(s, scratch, 1, T(0));
  T* row_grad = pool_row(s, scratch, 2, T(0));
  T* row_max[3];  // of the rows r, r - 1 and r - 2, in turns; before the image none equals y
  for (int64_t k = 0; k < 3; ++k) row_max[k] = pool_row(s, scratch, 3 + k, kNever);
  T* even = s.stride == 1 ? nullptr : pool_row(s, scratch, 6, kNever);
  T* odd = s.stride == 1 ? nullptr : pool_row(s, scratch, 7, kNever);
  T* even_grad = s.stride == 1 ? nullptr : pool_row(s, scratch, 8, T(0));
  T* odd_grad = s.stride == 1 ? nullptr : pool_row(s, scratch, 9, T(0));
  const auto output_row = [&](const T* map, int64_t o) {
    return o >= 0 && o < s.out_height ? map + o * out_row : zeros;
  };

  for (int64_t r = 0; r < s.height; ++r) {
    std::memcpy(cells, x + r * in_row, in_row * sizeof(T));
    const PoolColumns<T> at = pool_columns<T>(s, cells, even, odd);
    T* here = row_max[r % 3];
    each_vector<T>(out_row, [=](int64_t i, auto part) {
      // Padding is the first argument: it must not win.
      part.put(here + i,
               larger<T, false>(part(at.left + i),
                                larger<T, false>(part(at.right + i), part(at.middle + i))));
    });

    // The output rows whose windows have row r as their third, second and first; -1 is none.
    const int64_t half = r / 2;
    const bool is_odd = r % 2 == 1;
    const int64_t third = s.stride == 1 ? r - 1 : is_odd ? half : -1;
    const int64_t second = s.stride == 1 ? r : is_odd ? -1 : half;
    const int64_t first = s.stride == 1 ? r + 1 : is_odd ? half + 1 : -1;
    const T *one_up = row_max[(r + 2) % 3], *two_up = row_max[(r + 1) % 3];
    const T *y3 = output_row(y, third), *y2 = output_row(y, second), *y1 = output_row(y, first);
    const T *g3 = output_row(g, third), *g2 = output_row(g, second), *g1 = output_row(g, first);
    each_vector<T>(out_row, [=](int64_t i, auto part) {
      const Vec<T> a = part(two_up + i), b = part(one_up + i), v = part(here + i);
      part.put(row_grad + i, third_takes<T>(a, b, part(y3 + i), part(g3 + i)) +
                                 second_takes<T>(b, v, part(y2 + i), part(g2 + i)) +
                                 first_takes<T>(v, part(y1 + i), part(g1 + i)));
    });

    T* out = grad_x + r * in_row;
    if (s.stride == 1) {
      each_vector<T>(in_row, [=](int64_t i, auto part) {
        const Vec<T> a = part(at.left + i - c), b = part(at.left + i), v = part(at.middle + i);
        const Vec<T> sum = third_takes<T>(a, b, part(here + i - c), part(row_grad + i - c)) +
                           second_takes<T>(b, v, part(here + i), part(row_grad + i)) +
                           first_takes<T>(v, part(here + i + c), part(row_grad + i + c));
        part.put(out + i, part(out + i) + sum);
      });
    } else {
      each_vector<T>(out_row, [=](int64_t i, auto part) {
        const Vec<T> a = part(at.left + i), b = part(at.middle + i), v = part(at.right + i);
        const Vec<T> top = part(here + i), grad = part(row_grad + i);
        part.put(even_grad + i, second_takes<T>(a, b, top, grad));
        part.put(odd_grad + i, third_takes<T>(a, b, top, grad) +
                                   first_takes<T>(v, part(here + i + c), part(row_grad + i + c)));
      });
      move_columns<T, true>(even_grad, c, out, 2 * c, s.out_width, c);
      move_columns<T, true>(odd_grad, c, out + c, 2 * c, s.width / 2, c);
    }
  }
}

}  // namespace darts_fast::cpu::DARTS_CPU_CAPABILITY
