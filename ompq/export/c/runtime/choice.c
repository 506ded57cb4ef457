/* What becomes of the values of a window. */
enum { LARGEST, LEAST, SUM };

static int32_t begin_with(int32_t choice)
{
    return choice == LARGEST ? INT32_MIN : choice == LEAST ? INT32_MAX : 0;
}

static int32_t combine(int32_t choice, int32_t a, int32_t b)
{
    if (choice == SUM) return a + b;
    return (a > b) == (choice == LARGEST) ? a : b;
}
