// The page: a network is loaded, verified on its test images, and run on images of one's own.

import * as ort from "./ort.wasm.bundle.min.js";
import { formatBytes, make, makeBar, showNetwork } from "./network.js";
import { fitPixels, normalise, readPixels, readsImages } from "./preprocess.js";
import { compare, findClass, readTestImages } from "./test_images.js";

const SHOWN_CLASSES = 5;
// Below this side, pixels of an image are seen one by one.
const COARSE_BELOW = 96;

const byId = (id) => document.getElementById(id);
const pause = () => new Promise((resolve) => setTimeout(resolve));

// Fetch a file of the page; a model that was exported anew is not taken from the browser's cache.
async function fetchFile(name) {
  const answer = await fetch(name, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

// A network that is ready to run.
class LoadedNetwork {
  constructor(described, bytes) {
    this.described = described;
    this.bytes = bytes;
    this.milliseconds = NaN;
    this.waiting = Promise.resolve();
  }

  // Make it ready: a model becomes a session, and runs once, which makes room for all that follow.
  async open(model, values) {
    const begin = performance.now();
    this.session = await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      logSeverityLevel: 3,
    });
    await this.compute(values);
    this.milliseconds = performance.now() - begin;
  }

  // Compute logits of an image (float32, channels × height × width): them, and the milliseconds.
  compute(values) {
    // One at a time: a session runs nothing beside.
    this.waiting = this.waiting.catch(() => {}).then(() => this.run(values));
    return this.waiting;
  }

  async run(values) {
    const { session, described } = this;
    const images = new ort.Tensor("float32", values, [1, ...described.input_shape]);
    const begin = performance.now();
    const outputs = await session.run({ [session.inputNames[0]]: images });
    const milliseconds = performance.now() - begin;
    return { logits: outputs[session.outputNames[0]].data, milliseconds };
  }

  // Return the name of a class: its number, where no names are known.
  nameClass(index) {
    return this.described.class_names[index] ?? `class ${index}`;
  }
}

// Compute probabilities of logits.
function softmax(logits) {
  const largest = logits.reduce((most, logit) => Math.max(most, logit));
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// Return milliseconds for a person to read.
function formatTime(milliseconds) {
  if (milliseconds < 0.1) return "less than 0.1 ms";
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)}\u00a0ms`;
}

function showClasses(network, { logits, milliseconds }) {
  const probabilities = softmax(logits);
  const order = [...probabilities.keys()].sort((a, b) => logits[b] - logits[a]);
  const lines = order.slice(0, SHOWN_CLASSES).map((index) => {
    const percent = `${(100 * probabilities[index]).toFixed(1)} %`;
    const line = makeBar("li", network.nameClass(index), percent, probabilities[index]);
    line.dataset.index = index;
    return line;
  });
  byId("classes").replaceChildren(...lines);
  byId("timing").textContent =
    `${formatTime(milliseconds)} for this image · model of ${formatBytes(network.bytes)} opened in ` +
    formatTime(network.milliseconds);
}

function showProblem(text) {
  byId("problem").hidden = !text;
  byId("problem").textContent = text;
}

// Draw what a network sees: pixels, height × width × channels.
function draw(canvas, pixels, [channels, height, width]) {
  Object.assign(canvas, { width, height });
  canvas.classList.toggle("coarse", width < COARSE_BELOW);
  const image = new ImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    const source = place * channels;
    for (let i = 0; i < 3; i++) image.data[place * 4 + i] = pixels[source + (channels < 3 ? 0 : i)];
    image.data[place * 4 + 3] = channels === 4 ? pixels[source + 3] : 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Make height × width × channels of channels × height × width.
function interleave(pixels, [channels, height, width]) {
  const area = height * width;
  return Uint8ClampedArray.from({ length: area * channels }, (_, place) => {
    return pixels[(place % channels) * area + Math.floor(place / channels)];
  });
}

// Show an image that a network sees, and its classes.
async function classify(network, pixels, values, button = null) {
  showProblem("");
  draw(byId("preview"), pixels, network.described.input_shape);
  for (const each of byId("tests").children) each.setAttribute("aria-pressed", each === button);
  try {
    showClasses(network, await network.compute(values));
  } catch (error) {
    showProblem(`The network cannot be run: ${error.message}`);
  }
}

// Classify the image in a file.
async function classifyFile(network, file) {
  let bitmap;
  try {
    // Pixels as they are in the file, as they were in training.
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    showProblem(`${file.name} is no image that this browser can read.`);
    return;
  }
  const pixels = fitPixels(readPixels(bitmap), network.described);
  bitmap.close();
  await classify(network, pixels, normalise(pixels, network.described));
}

// Put the test images into the page, as buttons.
function showTestImages(network, images) {
  const shape = network.described.input_shape;
  const buttons = images.map(({ pixels, values }, index) => {
    const button = make("button");
    const canvas = make("canvas");
    const interleaved = interleave(pixels, shape);
    draw(canvas, interleaved, shape);
    button.type = "button";
    button.append(canvas);
    button.setAttribute("aria-label", `test image ${index + 1}`);
    button.addEventListener("click", () => classify(network, interleaved, values, button));
    return button;
  });
  byId("tests").replaceChildren(...buttons);
}

// Let files be chosen, dropped anywhere, and pasted, where they are what the network takes.
function takeFiles(network) {
  if (!readsImages(network.described)) {
    byId("file").disabled = true;
    byId("invitation").textContent = "Files hold no images of so many channels: take a test image.";
    return;
  }
  const take = (files) => {
    if (files.length) classifyFile(network, files[0]);
  };
  byId("file").addEventListener("change", ({ target }) => {
    take([...target.files]);
    // The same file may be chosen again.
    target.value = "";
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
}

// Run the test images and say whether they give what they gave where the network was exported.
async function verify(network, images) {
  const computed = [];
  for (const { values } of images) {
    computed.push((await network.compute(values)).logits);
    await pause();
  }
  const { agreeing, difference, passed } = compare(images, computed);
  const logits = difference
    ? `logits differ by ${difference.toPrecision(2)} at most`
    : "every logit is the same";
  Object.assign(byId("verify").dataset, { agreeing, difference });
  setState(
    passed ? "passed" : "failed",
    `${agreeing} of ${images.length} test images give the class that they gave where this was ` +
      `exported; ${logits}.`,
  );
}

function setState(state, text) {
  byId("verify").dataset.state = state;
  byId("verify-text").textContent = text;
}

async function load() {
  const described = await (await fetchFile("network.json")).json();
  setState("waiting", `Loading ${described.network} and ${described.runtime} …`);
  const [model, tests] = await Promise.all(
    ["model.onnx", "model.test.safetensors"].map(async (name) => (await fetchFile(name)).arrayBuffer()),
  );
  showNetwork(described, model.byteLength);
  const network = new LoadedNetwork(described, model.byteLength);
  const images = readTestImages(tests);
  await network.open(model, images[0].values);
  return [network, images];
}

async function start() {
  byId("server").hidden = true;
  try {
    const [network, images] = await load();
    takeFiles(network);
    showTestImages(network, images);
    byId("tests").firstElementChild?.click();
    await verify(network, images);
  } catch (error) {
    setState("failed", `The network cannot be loaded: ${error.message}`);
  }
}

start();
