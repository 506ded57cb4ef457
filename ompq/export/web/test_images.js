// Test images with their logits, by which the page proves that it computes what was exported.
//
// The file is the one that lies beside every export (safetensors): `pixels` (uint8, n × channels ×
// height × width), `scale` and `offset` for each channel; an image is pixels · scale + offset in
// float32. `computed` are the logits that the model gave where it was exported; where it was run by
// nobody there, only `logits` are there, those of the network of integers.

const KINDS = {
  U8: Uint8Array,
  F32: Float32Array,
  F64: Float64Array,
};

// Read the test images out of the bytes of their file.
export function readTestImages(buffer) {
  const tensors = readTensors(buffer);
  const [count, channels, height, width] = tensors.pixels.shape;
  const size = channels * height * width;
  const expected = tensors.computed ?? tensors.logits;
  const classes = expected.values.length / count;
  return Array.from({ length: count }, (_, index) => ({
    pixels: tensors.pixels.values.subarray(index * size, (index + 1) * size),
    values: scalePixels(tensors, index, size),
    expected: expected.values.subarray(index * classes, (index + 1) * classes),
  }));
}

// Read a safetensors file: the length of its header, the header in JSON, the bytes of all tensors.
function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    // A copy begins where its type needs it to.
    const [begin, end] = offsets.map((offset) => 8 + length + offset);
    tensors[name] = { shape, values: new KINDS[dtype](buffer.slice(begin, end)) };
  }
  return tensors;
}

// Compute an image: every product and every sum rounded to float32, as where it was exported.
function scalePixels({ pixels, scale, offset }, index, size) {
  const area = size / scale.values.length;
  const values = new Float32Array(size);
  for (let place = 0; place < size; place++) {
    const channel = Math.floor(place / area);
    const product = Math.fround(pixels.values[index * size + place] * scale.values[channel]);
    values[place] = product + offset.values[channel];
  }
  return values;
}

// Find the class of logits: the first of the largest.
export function findClass(logits) {
  return logits.reduce((best, logit, index) => (logit > logits[best] ? index : best), 0);
}

// Compare logits of all images with those that are expected.
export function compare(images, computed) {
  let agreeing = 0;
  let difference = 0;
  images.forEach(({ expected }, index) => {
    agreeing += findClass(computed[index]) === findClass(expected);
    expected.forEach((logit, place) => {
      const distance = Math.abs(computed[index][place] - logit);
      // A logit that is no number differs from any other.
      difference = distance <= difference ? difference : Number.isNaN(distance) ? Infinity : distance;
    });
  });
  return { agreeing, difference, passed: agreeing === images.length && difference < Infinity };
}
