/* Multiply results by those of another value. */
static void multiply_values(const void *numbers, int32_t count, int32_t channel, int32_t step)
{
    int32_t i;
    (void)numbers;
    (void)channel;
    (void)step;
    for (i = 0; i < count; i++) row[i] *= operand[i];
}
