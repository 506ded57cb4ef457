// An image to the network's input: the shorter side resized, the centre cropped, normalised.
//
// A canvas resamples a little otherwise in every browser, and never as Pillow does, with which this
// toolkit evaluates. So images are resampled here, in Pillow's fixed-point arithmetic: rows first,
// then columns. (From version 13 on Pillow begins with columns where it finds that cheaper, which
// now and then rounds to the value beside, of 255.) What differs beyond that is how a browser decodes
// (JPEG by another decoder, colours under full transparency, 16 bits a channel), and that it turns a
// photograph upright where the file says how.

const WHITE = 255;
// Bits behind the point of a filter's weights.
const PRECISION = 22;
// Shares of red, green and blue in grey (ITU-R BT.601), in 2^-16.
const LUMINANCE = [19595, 38470, 7471];
// Larger images are scaled by the canvas first: telephones have no larger ones.
const LARGEST_CANVAS = 4096 * 4096;

// Filters with the distance at which they end.
const FILTERS = {
  bilinear: { support: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weigh: weighCubic },
};

// Cubic convolution with a = -1/2.
function weighCubic(signed) {
  const x = Math.abs(signed);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// Tell whether images can be read for a network: grey, RGB or RGBA.
export function readsImages(network) {
  return [1, 3, 4].includes(network.input_shape[0]);
}

// Read the pixels of what a canvas can draw (an ImageBitmap, say): RGBA, row by row.
export function readPixels(drawable) {
  const scale = Math.min(1, Math.sqrt(LARGEST_CANVAS / (drawable.width * drawable.height)));
  const width = Math.max(1, Math.floor(drawable.width * scale));
  const height = Math.max(1, Math.floor(drawable.height * scale));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(drawable, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

// Make a network's pixels of an image's (RGBA): height × width × channels, 0 to 255.
export function fitPixels(image, network) {
  const [channels, height, width] = network.input_shape;
  const { resize, interpolation } = network.preprocess;
  const resized = fitSides(image, resize, [height, width]);
  const corner = [halfEven((resized[0] - height) / 2), halfEven((resized[1] - width) / 2)];
  const filter = FILTERS[interpolation];
  const across = findWeights(image.width, resized[1], corner[1], width, filter);
  const down = findWeights(image.height, resized[0], corner[0], height, filter);
  const chosen = chooseChannels(image.data, channels);
  if (channels === 4) premultiply(chosen);
  const narrow = resampleRows(chosen, image.width, channels, across);
  const pixels = resampleColumns(narrow, width * channels, down);
  if (channels === 4) unpremultiply(pixels);
  return pixels;
}

// Normalise pixels (height × width × channels) to float32, channels × height × width.
export function normalise(pixels, network) {
  const [channels, height, width] = network.input_shape;
  const mean = Float32Array.from(network.preprocess.mean);
  const std = Float32Array.from(network.preprocess.std);
  const values = new Float32Array(channels * height * width);
  const area = height * width;
  for (let channel = 0; channel < channels; channel++) {
    for (let place = 0; place < area; place++) {
      const scaled = Math.fround(pixels[place * channels + channel] / WHITE);
      const centred = Math.fround(scaled - mean[channel]);
      values[channel * area + place] = centred / std[channel];
    }
  }
  return values;
}

// Resize the shorter side to `resize`, the longer one in proportion: height, width.
function fitSides(image, resize, least) {
  const { height, width } = image;
  const long = Math.trunc((resize * Math.max(height, width)) / Math.min(height, width));
  const sides = height <= width ? [resize, long] : [long, resize];
  // Only what is wider than high, or higher than wide, may be larger than that.
  const factor = Math.max(1, least[0] / sides[0], least[1] / sides[1]);
  return sides.map((side) => Math.ceil(side * factor));
}

// Round, and halves to the even number beside, as Python does.
function halfEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

// Make grey, RGB or RGBA of RGBA; transparency is dropped but for RGBA.
function chooseChannels(rgba, channels) {
  const count = rgba.length / 4;
  const chosen = new Uint8ClampedArray(count * channels);
  for (let place = 0; place < count; place++) {
    const source = place * 4;
    if (channels === 1) {
      const mixed = LUMINANCE.reduce((sum, share, i) => sum + share * rgba[source + i], 2 ** 15);
      chosen[place] = mixed >> 16;
    } else {
      for (let i = 0; i < channels; i++) chosen[place * channels + i] = rgba[source + i];
    }
  }
  return chosen;
}

// Find what every output pixel of an axis is made of: the first pixel, and the weights from there.
function findWeights(size, resized, first, count, filter) {
  const scale = size / resized;
  const stretch = Math.max(1, scale);
  const support = filter.support * stretch;
  return Array.from({ length: count }, (_, index) => {
    const centre = (first + index + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = new Float64Array(end - start);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) {
      weights[i] = filter.weigh((i + start - centre + 0.5) * (1 / stretch));
      sum += weights[i];
    }
    return { start, weights: weights.map((weight) => roundAway((weight / sum) * 2 ** PRECISION)) };
  });
}

// Round, and halves away from zero, as C's conversion of x ± ½ does.
function roundAway(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

// Resample every row of an image to as many pixels as there are weights.
function resampleRows(pixels, width, channels, across) {
  const rows = pixels.length / (width * channels);
  const result = new Uint8ClampedArray(rows * across.length * channels);
  let target = 0;
  for (let row = 0; row < rows; row++) {
    for (const { start, weights } of across) {
      const source = (row * width + start) * channels;
      for (let channel = 0; channel < channels; channel++) {
        result[target++] = sumUp(pixels, source + channel, channels, weights);
      }
    }
  }
  return result;
}

// Resample every column of an image whose rows hold `length` values.
function resampleColumns(pixels, length, down) {
  const result = new Uint8ClampedArray(down.length * length);
  let target = 0;
  for (const { start, weights } of down) {
    for (let place = 0; place < length; place++) {
      result[target++] = sumUp(pixels, start * length + place, length, weights);
    }
  }
  return result;
}

// Sum values that lie `step` apart by their weights; what takes it clips at 0 and 255.
function sumUp(pixels, first, step, weights) {
  let sum = 2 ** (PRECISION - 1);
  for (let i = 0, place = first; i < weights.length; i++, place += step) {
    sum += pixels[place] * weights[i];
  }
  return sum >> PRECISION;
}

// Multiply colours by their opacity: what is transparent must not tinge its neighbours.
function premultiply(rgba) {
  for (let place = 0; place < rgba.length; place += 4) {
    for (let i = place; i < place + 3; i++) {
      const product = rgba[i] * rgba[place + 3] + 128;
      rgba[i] = ((product >> 8) + product) >> 8;
    }
  }
}

// Divide colours by their opacity.
function unpremultiply(rgba) {
  for (let place = 0; place < rgba.length; place += 4) {
    const opacity = rgba[place + 3];
    if (opacity === 0 || opacity === WHITE) continue;
    for (let i = place; i < place + 3; i++) rgba[i] = Math.trunc((WHITE * rgba[i]) / opacity);
  }
}
