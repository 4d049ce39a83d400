// Head by head, in fp32: products with small matrices, and lengths. What a mixer written in plain torch computes.
#include "rows.h"

using namespace rows;

namespace {

// y[r, h] = x[r, h] W[h], with W [heads, depth, width], or one matrix for all heads.
struct HeadProductArgs {
    Rows rows;
    int32_t heads;
    int32_t depth;  // of x
    int32_t width;  // of y
    int32_t unused;
    const float* x;
    int64_t x_stride;
    int64_t x_head_stride;
    const float* weight;
    int64_t weight_head_stride;  // 0: one matrix for all
    float* y;                    // [rows, heads * width]
    int64_t y_stride;
};

int64_t chunks(const HeadProductArgs& a, const Step& step) { return row_chunks(a.rows, step); }

// `N` rows from `r` on, which share what is read of the matrix. A sum runs over the depth in order, whatever N is.
template <int N>
INLINE void head_product(const HeadProductArgs& a, int64_t r) {
    for (int h = 0; h < a.heads; h++) {
        const float* weight = a.weight + h * a.weight_head_stride;
        const float* x = a.x + r * a.x_stride + h * a.x_head_stride;
        float* y = a.y + r * a.y_stride + int64_t(h) * a.width;
        over(a.width, [&](int i, int n) {
            F32 sums[N];
            for (int j = 0; j < N; j++) sums[j] = set1(0.0f);
            for (int k = 0; k < a.depth; k++) {
                F32 w = read(weight + int64_t(k) * a.width + i, n);
                UNROLL for (int j = 0; j < N; j++) sums[j] = fma(set1(x[j * a.x_stride + k]), w, sums[j]);
            }
            for (int j = 0; j < N; j++) write(y + j * a.y_stride + i, sums[j], n);
        });
    }
}

void run(const HeadProductArgs& a, const Step& step, int64_t first, int64_t last) {
    int64_t rows = a.rows.of(&step), end = last * ROWS < rows ? last * ROWS : rows, r = first * ROWS;
    for (; r + 4 <= end; r += 4) head_product<4>(a, r);
    for (; r < end; r++) head_product<1>(a, r);
}

// y[r, h] = |x[r, h]|
struct HeadLengthArgs {
    Rows rows;
    int32_t heads;
    int32_t width;
    const float* x;
    int64_t x_stride;
    int64_t x_head_stride;
    float* y;  // [rows, heads]
    int64_t y_stride;
};

int64_t chunks(const HeadLengthArgs& a, const Step& step) { return row_chunks(a.rows, step); }

void run(const HeadLengthArgs& a, const Step& step, int64_t first, int64_t last) {
    each_row(a, step, first, last, [&](int64_t r) {
        for (int h = 0; h < a.heads; h++) {
            const float* x = a.x + r * a.x_stride + h * a.x_head_stride;
            F32 squares = set1(0.0f);
            over(a.width, [&](int i, int n) {
                F32 v = read(x + i, n);
                squares = fma(v, v, squares);
            });
            a.y[r * a.y_stride + h] = std::sqrt(sum(squares));
        }
    });
}

}  // namespace

STRETTO_OP(head_product, HeadProductArgs, rows, heads, depth, width, unused, x, x_stride, x_head_stride, weight,
           weight_head_stride, y, y_stride)
STRETTO_OP(head_length, HeadLengthArgs, rows, heads, width, x, x_stride, x_head_stride, y, y_stride)
