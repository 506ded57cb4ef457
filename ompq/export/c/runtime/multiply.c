
static int32_t multiply_row_TYPE(const TYPE_t *x, int32_t count, int32_t low)
{
    int32_t sum = 0, i;
    for (i = 0; i < count; i++) sum += filter[i] * (x[i] + low);
    return sum;
}

static void multiply_TYPE(const product *p, const source *x, const source *operands,
                          const target *y)
{
    const int32_t inputs = p->inputs, outputs = p->outputs;
    int32_t o, first, i;
    for (o = 0; o < outputs; o++) {
        unpack(&p->weights, o, inputs);
        for (first = 0; first < p->positions; first += ROW) {
            const int32_t left = p->positions - first, count = left < ROW ? left : ROW;
            for (i = 0; i < count; i++)
                row[i] = (p->bias ? p->bias[o] : 0)
                         + multiply_row_TYPE((const TYPE_t *)x->at + (first + i) * inputs, inputs,
                                             x->low);
            finish(&p->chain, operands, first * outputs + o, count, outputs, y);
        }
    }
}
