/* Windows along one dimension; adaptive ones, which share it out, have a kernel of 0. */
typedef struct { int32_t size, results, kernel, stride, padding, dilation; } side;
typedef struct { side vertical, horizontal; int32_t maps, choice; chain chain; } pooling;

/* Find the inputs of a window: from `first` on, below `end`, `dilation` apart. */
static void find_window(const side *s, int32_t place, int32_t *first, int32_t *end)
{
    if (s->kernel == 0) {
        *first = place * s->size / s->results;
        *end = ((place + 1) * s->size + s->results - 1) / s->results;
        return;
    }
    *first = place * s->stride - s->padding;
    *end = *first + (s->kernel - 1) * s->dilation + 1;
    while (*first < 0) *first += s->dilation;
    if (*end > s->size) *end = s->size;
}

static void pool(const pooling *p, const source *x, const source *operands, const target *y)
{
    const side *v = &p->vertical, *h = &p->horizontal;
    int32_t map, r, i, above, below, line, left, right, at;
    for (map = 0; map < p->maps; map++)
        for (r = 0; r < v->results; r++) {
            for (i = 0; i < h->results; i++) row[i] = begin_with(p->choice);
            find_window(v, r, &above, &below);
            for (line = above; line < below; line += v->dilation) {
                load(x, (map * v->size + line) * h->size, h->size, 1, operand);
                for (i = 0; i < h->results; i++) {
                    find_window(h, i, &left, &right);
                    for (at = left; at < right; at += h->dilation)
                        row[i] = combine(p->choice, row[i], operand[at]);
                }
            }
            finish(&p->chain, operands, (map * v->results + r) * h->results, h->results, 1, y);
        }
}
