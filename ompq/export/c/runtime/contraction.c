/* Sums of products of two values x and z. A loop tells its turns, and how far apart the elements of
   each are from one turn to the next; along `columns` those of x stay. */
typedef struct { int32_t size, x, z; } loop;
typedef struct { loop loops[3], columns, summed; chain chain; } contraction;
