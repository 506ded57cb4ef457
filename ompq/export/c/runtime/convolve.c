
/* Add one weight times a line of inputs to a row of sums. */
static void add_line_TYPE(int32_t *restrict sums, const TYPE_t *restrict line, int32_t count,
                          int32_t stride, int32_t weight, int32_t offset)
{
    int32_t i;
    if (stride == 1)
        for (i = 0; i < count; i++) sums[i] += weight * line[i] + offset;
    else
        for (i = 0; i < count; i++) sums[i] += weight * line[i * stride] + offset;
}

/* Add the filter's products with the inputs (maps of one group) to row `place` of its results. */
static void add_products_TYPE(const convolution *c, const TYPE_t *x, int32_t low, int32_t place)
{
    const int32_t across = c->across, width = c->width;
    const WEIGHT *w = filter;
    int32_t k, i, j;
    for (k = 0; k < c->inputs; k++, x += c->height * width)
        for (i = 0; i < c->kernel_height; i++, w += c->kernel_width) {
            const int32_t y = place * c->down - c->above + i * c->reach_down;
            if (y < 0 || y >= c->height) continue;
            for (j = 0; j < c->kernel_width; j++) {
                const int32_t weight = w[j], begin = begins[j];
                const int32_t first = begin * across - c->before + j * c->reach_across;
                if (weight && counts[j])
                    add_line_TYPE(row + begin, x + y * width + first, counts[j], across, weight,
                                  weight * low);
            }
        }
}

static void convolve_TYPE(const convolution *c, const source *x, const source *operands,
                          const target *y)
{
    const int32_t maps = c->inputs * c->height * c->width, share = c->outputs / c->groups;
    int32_t o, b, r, i;
    find_spans(c);
    for (o = 0; o < c->outputs; o++) {
        const int32_t bias = c->bias ? c->bias[o] : 0;
        unpack(&c->weights, o, c->inputs * c->kernel_height * c->kernel_width);
        for (b = 0; b < c->batch; b++) {
            const TYPE_t *in = (const TYPE_t *)x->at + (b * c->groups + o / share) * maps;
            for (r = 0; r < c->rows; r++) {
                for (i = 0; i < c->columns; i++) row[i] = bias;
                add_products_TYPE(c, in, x->low, r);
                finish(&c->chain, operands, ((b * c->outputs + o) * c->rows + r) * c->columns,
                       c->columns, 1, y);
            }
        }
    }
}
