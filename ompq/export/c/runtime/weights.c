/* Weights packed into a stream of bits, the least significant ones first; each is what is in the
   stream plus `base`, or plus one base per output channel. */
typedef struct { const uint8_t *packed; const int16_t *bases; int32_t base, bits; } weights;

static WEIGHT filter[FILTER];

/* Unpack the weights of one output channel, `size` of them. */
static void unpack(const weights *w, int32_t channel, int32_t size)
{
    const int32_t bits = w->bits, base = w->bases ? w->bases[channel] : w->base;
    const uint32_t first = (uint32_t)channel * (uint32_t)size, mask = (1u << bits) - 1u;
    const uint8_t *at = w->packed + first / 8 * (uint32_t)bits + first % 8 * (uint32_t)bits / 8;
    const int32_t skipped = (int32_t)(first % 8 * (uint32_t)bits % 8);
    uint32_t buffer = (uint32_t)*at++ >> skipped;
    int32_t held = 8 - skipped, i;
    for (i = 0; i < size; i++) {
        if (held < bits) {
            buffer |= (uint32_t)*at++ << held;
            held += 8;
        }
        filter[i] = (WEIGHT)((int32_t)(buffer & mask) + base);
        buffer >>= bits;
        held -= bits;
    }
}
