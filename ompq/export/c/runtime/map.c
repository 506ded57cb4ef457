/* Take `count` values through the stages, one by one. */
static void map(const chain *c, int32_t count, const source *x, const source *operands,
                const target *y)
{
    int32_t first, run;
    for (first = 0; first < count; first += run) {
        run = count_run(c, first, count - first);
        load(x, first, run, 1, row);
        finish(c, operands, first, run, 1, y);
    }
}
