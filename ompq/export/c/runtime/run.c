/* Count the results that are computed at once, from `first` on, of `left` ones: those of one channel,
   or of one channel each. */
static int32_t count_run(const chain *c, int32_t first, int32_t left)
{
    const int32_t period = c->inner > 1 ? c->inner : c->channels, run = period - first % period;
    const int32_t most = left < ROW ? left : ROW;
    return run < most ? run : most;
}
