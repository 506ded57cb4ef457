/* Exponentials of a row, divided by their sum: `one` is that of its largest value; the others are
   in `table`, by how far values are below it, rescaled. */
typedef struct {
    const uint16_t *table;
    int32_t outer, length, one, last, multiplier, shift, bits;
    chain chain;
} softmax;

static int32_t exponential(const softmax *s, int64_t below)
{
    const int64_t half = (int64_t)1 << (s->shift - 1);
    const int64_t step = shift_right(below * s->multiplier + half, s->shift);
    return step == 0 ? s->one : s->table[(step < s->last ? step : s->last) - 1];
}

static void take_softmax(const softmax *s, const source *x, const source *operands,
                         const target *y)
{
    const int32_t length = s->length;
    int32_t o, at, i, count;
    for (o = 0; o < s->outer; o++) {
        const int32_t first = o * length;
        int32_t largest = INT32_MIN;
        int64_t total = 0;
        for (at = 0; at < length; at += count) {
            count = count_run(&s->chain, first + at, length - at);
            load(x, first + at, count, 1, row);
            for (i = 0; i < count; i++) largest = row[i] > largest ? row[i] : largest;
        }
        for (at = 0; at < length; at += count) {
            count = count_run(&s->chain, first + at, length - at);
            load(x, first + at, count, 1, row);
            for (i = 0; i < count; i++) total += exponential(s, (int64_t)largest - row[i]);
        }
        for (at = 0; at < length; at += count) {
            count = count_run(&s->chain, first + at, length - at);
            load(x, first + at, count, 1, row);
            for (i = 0; i < count; i++) {
                const int64_t part = exponential(s, (int64_t)largest - row[i]);
                row[i] = (int32_t)(((part << s->bits) + total) / (2 * total));
            }
            finish(&s->chain, operands, first + at, count, 1, y);
        }
    }
}
