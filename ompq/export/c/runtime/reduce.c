/* Values of `outer` × `length` × `inner`, reduced along the second dimension. */
typedef struct { int32_t outer, length, inner, choice; chain chain; } reduction;

static int32_t reduce_run(const source *x, int32_t first, int32_t length, int32_t choice)
{
    int32_t value = begin_with(choice), at, i;
    for (at = 0; at < length; at += ROW) {
        const int32_t count = length - at < ROW ? length - at : ROW;
        load(x, first + at, count, 1, operand);
        for (i = 0; i < count; i++) value = combine(choice, value, operand[i]);
    }
    return value;
}

static void reduce(const reduction *r, const source *x, const source *operands, const target *y)
{
    int32_t o, first, k, i;
    for (o = 0; o < r->outer; o++)
        for (first = 0; first < r->inner; first += ROW) {
            const int32_t count = r->inner - first < ROW ? r->inner - first : ROW;
            for (i = 0; i < count; i++) row[i] = begin_with(r->choice);
            if (r->inner == 1) row[0] = reduce_run(x, o * r->length, r->length, r->choice);
            for (k = 0; k < r->length && r->inner > 1; k++) {
                load(x, (o * r->length + k) * r->inner + first, count, 1, operand);
                for (i = 0; i < count; i++) row[i] = combine(r->choice, row[i], operand[i]);
            }
            finish(&r->chain, operands, o * r->inner + first, count, 1, y);
        }
}
