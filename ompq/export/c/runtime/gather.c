/* Put `count` runs of `length` values, of `size` bytes each, one after another, taken from where
   `table` tells; nothing is put where it tells the largest number. */
static void gather_TYPE(uint8_t *to, const uint8_t *from, const TYPE_t *table, int32_t count,
                        int32_t length, int32_t size)
{
    int32_t i;
    for (i = 0; i < count; i++, to += length * size)
        if (table[i] != (TYPE_t)-1) memcpy(to, from + table[i] * size, (size_t)(length * size));
}
