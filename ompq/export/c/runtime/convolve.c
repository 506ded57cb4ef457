
/* Add four lines of inputs, each times its weight, to a row of sums. */
static void add_lines_TYPE(int32_t *restrict sums, const TYPE_t *const *lines,
                           const int32_t *weights, int32_t count, int32_t stride, int32_t low)
{
    const TYPE_t *restrict a = lines[0], *restrict b = lines[1];
    const TYPE_t *restrict c = lines[2], *restrict d = lines[3];
    const int32_t u = weights[0], v = weights[1], w = weights[2], x = weights[3];
    const int32_t offset = (u + v + w + x) * low;
    int32_t i, k;
    if (stride == 1)
        for (i = 0; i < count; i++)
            sums[i] += u * a[i] + v * b[i] + w * c[i] + x * d[i] + offset;
    else
        for (i = k = 0; i < count; i++, k += stride)
            sums[i] += u * a[k] + v * b[k] + w * c[k] + x * d[k] + offset;
}

/* Add the filter's products with the inputs (maps of one group) to row `place` of its results. */
static void add_products_TYPE(const convolution *c, const TYPE_t *x, int32_t low, int32_t place)
{
    const int32_t across = c->across, width = c->width;
    const int32_t map = c->height * width;
    const TYPE_t *lines[4];
    int32_t weights[4], j, k, i, n;
    for (j = 0; j < c->kernel_width; j++) {
        const int32_t begin = begins[j];
        const int32_t first = begin * across - c->before + j * c->reach_across;
        const WEIGHT *w = filter;
        if (counts[j] == 0) continue;
        for (k = n = 0; k < c->inputs; k++)
            for (i = 0; i < c->kernel_height; i++, w += c->kernel_width) {
                const int32_t y = place * c->down - c->above + i * c->reach_down;
                if (w[j] == 0 || y < 0 || y >= c->height) continue;
                weights[n] = w[j];
                lines[n++] = x + k * map + y * width + first;
                if (n == 4) {
                    add_lines_TYPE(row + begin, lines, weights, counts[j], across, low);
                    n = 0;
                }
            }
        if (n == 0) continue;
        for (; n < 4; n++) {
            weights[n] = 0;
            lines[n] = lines[0];
        }
        add_lines_TYPE(row + begin, lines, weights, counts[j], across, low);
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
