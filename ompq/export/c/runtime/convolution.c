/* A convolution of `batch` maps; `inputs` are the channels of one group. */
typedef struct {
    weights weights;
    const int32_t *bias;
    int32_t batch, groups, inputs, outputs, height, width, rows, columns;
    int32_t kernel_height, kernel_width, down, across, above, before, reach_down, reach_across;
    chain chain;
} convolution;

/* Per kernel column: the first result that it has an input for, and how many. */
static int32_t begins[KERNEL], counts[KERNEL];

static void find_spans(const convolution *c)
{
    int32_t j;
    for (j = 0; j < c->kernel_width; j++) {
        const int32_t shift = j * c->reach_across - c->before;
        const int32_t begin = shift < 0 ? (c->across - 1 - shift) / c->across : 0;
        int32_t end = shift < c->width ? (c->width - 1 - shift) / c->across + 1 : 0;
        end = end < c->columns ? end : c->columns;
        begins[j] = begin;
        counts[j] = end > begin ? end - begin : 0;
    }
}
