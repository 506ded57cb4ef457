/* What results become by a table: `channel` from one channel's entries to the next's, 0 where all
   have one table; entries are less `low`. */
typedef struct { const TYPE_t *entries; int32_t first, channel, low; } table_TYPE;

static void look_up_TYPE(const void *numbers, int32_t count, int32_t channel, int32_t step)
{
    const table_TYPE *t = numbers;
    int32_t i;
    for (i = 0; i < count; i++, channel += step)
        row[i] = t->entries[t->channel * channel + row[i] - t->first] + t->low;
}
