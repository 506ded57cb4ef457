static void fill_zeros(const target *y, int32_t count)
{
    int32_t first;
    memset(row, 0, sizeof row);
    for (first = 0; first < count; first += ROW)
        store(y, first, count - first < ROW ? count - first : ROW, 1, row);
}
