/* A convolution of `batch` maps; `inputs` are the channels of one group. */
typedef struct {
    weights weights;
    const int32_t *bias;
    int32_t batch, groups, inputs, outputs, height, width, rows, columns;
    int32_t kernel_height, kernel_width, down, across, above, before, reach_down, reach_across;
    chain chain;
} convolution;

/* The results that a row or column of the kernel has an input for: from `begin` on, below `end`. */
typedef struct { int32_t begin, end; } span;

static span vertical[KERNEL], horizontal[KERNEL];

static void find_spans(span *spans, int32_t kernel, int32_t reach, int32_t padding, int32_t stride,
                       int32_t size, int32_t results)
{
    int32_t k;
    for (k = 0; k < kernel; k++) {
        const int32_t shift = k * reach - padding;
        const int32_t end = shift < size ? (size - 1 - shift) / stride + 1 : 0;
        spans[k].begin = shift < 0 ? (stride - 1 - shift) / stride : 0;
        spans[k].end = end < results ? end : results;
    }
}
