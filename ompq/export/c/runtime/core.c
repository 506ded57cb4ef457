/* Integers in memory, of 8, 16 or 32 bits; each stands for itself plus `low`. */
enum { U8, I8, U16, I16, I32 };
typedef struct { const uint8_t *at; int32_t low; uint8_t type; } source;
typedef struct { uint8_t *at; int32_t low; uint8_t type; } target;

/* A factor: multiplier / 2^shift, one for all or one per channel; none without multipliers. */
typedef struct { const int32_t *multiplier; const uint8_t *shift; int32_t per_channel; } factor;

/* What `run` does by `numbers`. Where that is NULL: rescaling, a second operand that is rescaled and
   added, and the bounds of the result; per channel these are pairs in `bounds`. Of the second
   operand, if there is any, result i reads number i / inner % size. */
typedef struct {
    void (*run)(const void *numbers, int32_t count, int32_t channel, int32_t step);
    const void *numbers;
    factor own, other;
    int32_t operand, inner, size, low, high;
    const int32_t *bounds;
} stage;

/* What is done to every result before it is stored. The channel of result i is
   i / inner % channels. */
typedef struct { const stage *stages; int32_t count, channels, inner; } chain;

static int32_t row[ROW], operand[ROW];

/* Floor of value / 2^places; C leaves open what >> does to negative numbers. */
static int64_t shift_right(int64_t value, int32_t places)
{
    return value < 0 ? ~(~value >> places) : value >> places;
}

/* Round value * multiplier / 2^shift to the nearest integer, halves upwards. */
static int64_t rescale(int32_t value, int32_t multiplier, int32_t shift)
{
    return shift_right((int64_t)value * multiplier + ((int64_t)1 << (shift - 1)), shift);
}

static int32_t clamp(int64_t value, int32_t low, int32_t high)
{
    value = value < low ? low : value;
    return (int32_t)(value > high ? high : value);
}

/* Read `count` integers, `stride` apart, from number `first` on. */
static void load(const source *x, int32_t first, int32_t count, int32_t stride, int32_t *to)
{
    const int32_t low = x->low;
    int32_t i;
    if (x->type == U8) {
        const uint8_t *at = x->at + first;
        for (i = 0; i < count; i++) to[i] = at[i * stride] + low;
    } else if (x->type == I8) {
        const int8_t *at = (const int8_t *)x->at + first;
        for (i = 0; i < count; i++) to[i] = at[i * stride] + low;
    } else if (x->type == U16) {
        const uint8_t *at = x->at + 2 * first;
        uint16_t value;
        for (i = 0; i < count; i++) {
            memcpy(&value, at + 2 * i * stride, sizeof value);
            to[i] = value + low;
        }
    } else if (x->type == I16) {
        const uint8_t *at = x->at + 2 * first;
        int16_t value;
        for (i = 0; i < count; i++) {
            memcpy(&value, at + 2 * i * stride, sizeof value);
            to[i] = value + low;
        }
    } else {
        const uint8_t *at = x->at + 4 * first;
        for (i = 0; i < count; i++) memcpy(to + i, at + 4 * i * stride, sizeof *to);
    }
}

/* Write `count` integers, `stride` apart, from number `first` on. */
static void store(const target *y, int32_t first, int32_t count, int32_t stride, const int32_t *from)
{
    const int32_t low = y->low;
    int32_t i;
    if (y->type == U8) {
        uint8_t *at = y->at + first;
        for (i = 0; i < count; i++) at[i * stride] = (uint8_t)(from[i] - low);
    } else if (y->type == I8) {
        int8_t *at = (int8_t *)y->at + first;
        for (i = 0; i < count; i++) at[i * stride] = (int8_t)(from[i] - low);
    } else if (y->type == U16) {
        uint8_t *at = y->at + 2 * first;
        for (i = 0; i < count; i++) {
            const uint16_t value = (uint16_t)(from[i] - low);
            memcpy(at + 2 * i * stride, &value, sizeof value);
        }
    } else if (y->type == I16) {
        uint8_t *at = y->at + 2 * first;
        for (i = 0; i < count; i++) {
            const int16_t value = (int16_t)(from[i] - low);
            memcpy(at + 2 * i * stride, &value, sizeof value);
        }
    } else {
        uint8_t *at = y->at + 4 * first;
        for (i = 0; i < count; i++) memcpy(at + 4 * i * stride, from + i, sizeof *from);
    }
}

/* Apply one stage to `row`, whose channels are `step` (0 or 1) apart from `channel` on. */
static void apply(const stage *s, int32_t count, int32_t channel, int32_t step)
{
    const int32_t own = s->own.per_channel, other = s->other.per_channel;
    int32_t i;
    for (i = 0; i < count; i++, channel += step) {
        int64_t value = row[i];
        if (s->own.multiplier)
            value = rescale(row[i], s->own.multiplier[own * channel], s->own.shift[own * channel]);
        if (s->other.multiplier)
            value += rescale(operand[i], s->other.multiplier[other * channel],
                             s->other.shift[other * channel]);
        if (s->bounds)
            row[i] = clamp(value, s->bounds[2 * channel], s->bounds[2 * channel + 1]);
        else
            row[i] = clamp(value, s->low, s->high);
    }
}

/* Rescale a row of one channel: what most stages are. */
static void requantize(const stage *s, int32_t count, int32_t channel)
{
    const int32_t place = s->own.per_channel * channel;
    const int32_t multiplier = s->own.multiplier[place], shift = s->own.shift[place];
    const int32_t low = s->low, high = s->high;
    int32_t i;
    for (i = 0; i < count; i++) row[i] = clamp(rescale(row[i], multiplier, shift), low, high);
}

/* Read what results `first`, `first + stride`, … read of a second operand. */
static void load_operand(const stage *s, const source *x, int32_t first, int32_t count,
                         int32_t stride)
{
    int32_t i, j, run;
    for (i = 0; i < count; i += run) {
        const int32_t at = first + i * stride, place = at / s->inner % s->size;
        const int32_t left = s->inner > 1 ? s->inner - at % s->inner : s->size - place;
        run = (left - 1) / stride + 1;
        run = run < count - i ? run : count - i;
        load(x, place, s->inner > 1 ? 1 : run, stride, operand + i);
        for (j = 1; j < run && s->inner > 1; j++) operand[i + j] = operand[i];
    }
}

/* Take `row` through the stages and store it as results `first`, `first + stride`, … */
static void finish(const chain *c, const source *operands, int32_t first, int32_t count,
                   int32_t stride, const target *y)
{
    const int32_t channel = first / c->inner % c->channels;
    const int32_t step = c->inner == 1 && stride == 1;
    int32_t k;
    for (k = 0; k < c->count; k++) {
        const stage *s = &c->stages[k];
        if (s->size) load_operand(s, &operands[s->operand], first, count, stride);
        if (s->run)
            s->run(s->numbers, count, channel, step);
        else if (s->own.multiplier && !s->other.multiplier && !s->bounds && !step)
            requantize(s, count, channel);
        else
            apply(s, count, channel, step);
    }
    store(y, first, count, stride, row);
}
