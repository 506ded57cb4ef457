
/* Add a line of inputs times a weight to a line of sums; or four lines, each times its own. */
static void add_line_TYPE(int32_t *restrict sums, const TYPE_t *restrict a, int32_t count,
                          int32_t stride, int32_t weight, int32_t offset)
{
    int32_t i;
    if (stride == 1)
        for (i = 0; i < count; i++) sums[i] += weight * a[i] + offset;
    else
        for (i = 0; i < count; i++) sums[i] += weight * a[i * stride] + offset;
}

static void add_four_TYPE(int32_t *restrict sums, const TYPE_t *restrict a,
                          const TYPE_t *restrict b, const TYPE_t *restrict c,
                          const TYPE_t *restrict d, int32_t count, int32_t stride,
                          const int32_t *w, int32_t offset)
{
    const int32_t s = w[0], t = w[1], u = w[2], v = w[3];
    int32_t i, k;
    if (stride == 1)
        for (i = 0; i < count; i++) sums[i] += s * a[i] + t * b[i] + u * c[i] + v * d[i] + offset;
    else
        for (i = k = 0; i < count; i++, k += stride)
            sums[i] += s * a[k] + t * b[k] + u * c[k] + v * d[k] + offset;
}

/* Add `n` maps, each times its weight, to `lines` lines of sums of `count` results each. */
static void add_maps_TYPE(const convolution *c, int32_t *sums, const TYPE_t *const *x,
                          const int32_t *w, int32_t n, int32_t lines, int32_t count, int32_t low)
{
    const int32_t pitch = c->down * c->width;
    int32_t line, k, at = 0;
    for (line = 0; line < lines; line++, sums += c->columns, at += pitch)
        if (n == 4)
            add_four_TYPE(sums, x[0] + at, x[1] + at, x[2] + at, x[3] + at, count, c->across, w,
                          (w[0] + w[1] + w[2] + w[3]) * low);
        else
            for (k = 0; k < n; k++)
                add_line_TYPE(sums, x[k] + at, count, c->across, w[k], w[k] * low);
}

/* Add the filter's products with the inputs (maps of one group) to results of the rows from
   `first` on, below `last`. */
static void add_products_TYPE(const convolution *c, const TYPE_t *x, int32_t low, int32_t first,
                              int32_t last)
{
    const int32_t map = c->height * c->width, taps = c->kernel_height * c->kernel_width;
    const TYPE_t *maps[4];
    int32_t w[4], tap, k, n;
    for (tap = 0; tap < taps; tap++) {
        const int32_t i = tap / c->kernel_width, j = tap % c->kernel_width;
        const span *across = &horizontal[j], *down = &vertical[i];
        const int32_t begin = down->begin > first ? down->begin : first;
        const int32_t lines = (down->end < last ? down->end : last) - begin;
        const int32_t count = across->end - across->begin;
        const int32_t y = begin * c->down - c->above + i * c->reach_down;
        const int32_t at = y * c->width + across->begin * c->across - c->before + j * c->reach_across;
        int32_t *sums;
        if (lines <= 0 || count <= 0) continue;
        sums = row + (begin - first) * c->columns + across->begin;
        for (k = n = 0; k < c->inputs; k++) {
            if (filter[k * taps + tap] == 0) continue;
            w[n] = filter[k * taps + tap];
            maps[n++] = x + k * map + at;
            if (n == 4) {
                add_maps_TYPE(c, sums, maps, w, n, lines, count, low);
                n = 0;
            }
        }
        add_maps_TYPE(c, sums, maps, w, n, lines, count, low);
    }
}

static void convolve_TYPE(const convolution *c, const source *x, const source *operands,
                          const target *y)
{
    const int32_t maps = c->inputs * c->height * c->width, share = c->outputs / c->groups;
    const int32_t block = ROW / c->columns;
    int32_t o, b, first, i;
    find_spans(vertical, c->kernel_height, c->reach_down, c->above, c->down, c->height, c->rows);
    find_spans(horizontal, c->kernel_width, c->reach_across, c->before, c->across, c->width,
               c->columns);
    for (o = 0; o < c->outputs; o++) {
        unpack(&c->weights, o, c->inputs * c->kernel_height * c->kernel_width);
        for (b = 0; b < c->batch; b++) {
            const TYPE_t *in = (const TYPE_t *)x->at + (b * c->groups + o / share) * maps;
            for (first = 0; first < c->rows; first += block) {
                const int32_t last = first + block < c->rows ? first + block : c->rows;
                const int32_t count = (last - first) * c->columns;
                for (i = 0; i < count; i++) row[i] = c->bias ? c->bias[o] : 0;
                add_products_TYPE(c, in, x->low, first, last);
                finish(&c->chain, operands, ((b * c->outputs + o) * c->rows + first) * c->columns,
                       count, 1, y);
            }
        }
    }
}
