/* A linear layer over the last dimension of `positions` rows of inputs. */
typedef struct {
    weights weights;
    const int32_t *bias;
    int32_t positions, inputs, outputs;
    chain chain;
} product;
