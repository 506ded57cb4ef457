/* Tables that differ between channels in `count` entries from number `begin` on alone: these are in
   `own`, channel after channel; entries are less `low`. */
typedef struct { const TYPE_t *common, *own; int32_t first, begin, count, low; } tables_TYPE;

static void look_up_own_TYPE(const void *numbers, int32_t count, int32_t channel, int32_t step)
{
    const tables_TYPE *t = numbers;
    int32_t i;
    for (i = 0; i < count; i++, channel += step) {
        const int32_t place = row[i] - t->first, own = place - t->begin;
        const int32_t differs = own >= 0 && own < t->count;
        row[i] = (differs ? t->own[t->count * channel + own] : t->common[place]) + t->low;
    }
}
