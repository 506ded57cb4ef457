/* Values of a row, less their mean if it is `centred`, divided by the root of the sum of their
   squares; `places` are shifted by before, to the left, or to the right if they are negative. */
typedef struct {
    int64_t eps;
    int32_t outer, length, places, centred, spare, factor;
    chain chain;
} norm;

/* Divide, rounded to nearest, halves upwards; the divisor is positive. */
static int64_t divide(int64_t value, int64_t by)
{
    const int64_t upper = 2 * value + by;
    return upper < 0 ? ~(~upper / (2 * by)) : upper / (2 * by);
}

/* The root of a number below 2^62, rounded down. */
static int64_t find_root(int64_t value)
{
    int64_t root = 0, bit = (int64_t)1 << 60;
    while (bit > value) bit >>= 2;
    for (; bit; bit >>= 2) {
        const int64_t next = root + bit;
        root >>= 1;
        if (value >= next) {
            value -= next;
            root += bit;
        }
    }
    return root;
}

/* Read some of `left` values, shifted, less a mean, into `row`; tell how many. */
static int32_t load_shifted(const norm *n, const source *x, int32_t first, int32_t left,
                            int32_t mean)
{
    const int32_t count = count_run(&n->chain, first, left);
    int32_t i;
    load(x, first, count, 1, row);
    for (i = 0; i < count; i++) {
        const int64_t value = row[i];
        const int64_t moved = n->places < 0 ? shift_right(value + ((int64_t)1 << (-n->places - 1)),
                                                          -n->places)
                                            : value * ((int64_t)1 << n->places);
        row[i] = (int32_t)(moved - mean);
    }
    return count;
}

static void normalise(const norm *n, const source *x, const source *operands, const target *y)
{
    int32_t o, at, i, count;
    for (o = 0; o < n->outer; o++) {
        const int32_t first = o * n->length;
        int64_t total = 0, squares = n->eps, root;
        int32_t mean = 0;
        for (at = 0; at < n->length && n->centred; at += count) {
            count = load_shifted(n, x, first + at, n->length - at, 0);
            for (i = 0; i < count; i++) total += row[i];
        }
        if (n->centred) mean = (int32_t)divide(total, n->length);
        for (at = 0; at < n->length; at += count) {
            count = load_shifted(n, x, first + at, n->length - at, mean);
            for (i = 0; i < count; i++) squares += (int64_t)row[i] * row[i];
        }
        root = find_root(squares << n->spare);
        root = root < 1 ? 1 : root;
        for (at = 0; at < n->length; at += count) {
            count = load_shifted(n, x, first + at, n->length - at, mean);
            for (i = 0; i < count; i++)
                row[i] = (int32_t)divide((int64_t)row[i] * n->factor, root);
            finish(&n->chain, operands, first + at, count, 1, y);
        }
    }
}
