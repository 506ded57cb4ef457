/* What results are multiplied by and what is added to them: one number, or one per channel. */
typedef struct {
    const int32_t *factors;
    int32_t factor_per_channel;
    const int32_t *offsets;
    int32_t offset_per_channel;
} line;

static void multiply_and_add(const void *numbers, int32_t count, int32_t channel, int32_t step)
{
    const line *l = numbers;
    int32_t i;
    for (i = 0; i < count; i++, channel += step)
        row[i] = row[i] * l->factors[l->factor_per_channel * channel]
                 + l->offsets[l->offset_per_channel * channel];
}
