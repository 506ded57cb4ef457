
static void contract_row_TYPE(const contraction *c, const source *x, int32_t at, const TYPE_t *z,
                              int32_t low, int32_t count)
{
    const int32_t step = c->summed.z, across = c->columns.z;
    int32_t first, i, k;
    memset(row, 0, (size_t)count * sizeof *row);
    for (first = 0; first < c->summed.size; first += ROW) {
        const int32_t left = c->summed.size - first, run = left < ROW ? left : ROW;
        load(x, at + first * c->summed.x, run, c->summed.x, operand);
        for (i = 0; i < count; i++) {
            const TYPE_t *factors = z + i * across + first * step;
            int32_t sum = 0;
            for (k = 0; k < run; k++) sum += operand[k] * (factors[k * step] + low);
            row[i] += sum;
        }
    }
}

static void contract_TYPE(const contraction *c, const source *x, const source *z,
                          const source *operands, const target *y)
{
    const loop *a = c->loops, *b = a + 1, *d = a + 2;
    const int32_t columns = c->columns.size;
    int32_t i, j, k, n, count, place = 0;
    for (i = 0; i < a->size; i++)
        for (j = 0; j < b->size; j++)
            for (k = 0; k < d->size; k++, place += columns) {
                const int32_t at = i * a->x + j * b->x + k * d->x;
                const TYPE_t *factors = (const TYPE_t *)z->at + i * a->z + j * b->z + k * d->z;
                for (n = 0; n < columns; n += count) {
                    count = count_run(&c->chain, place + n, columns - n);
                    contract_row_TYPE(c, x, at, factors + n * c->columns.z, z->low, count);
                    finish(&c->chain, operands, place + n, count, 1, y);
                }
            }
}
