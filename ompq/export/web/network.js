// What is told of a network: its name, its bits and its size.

const MB = 2 ** 20;
const WIDEST = 8;

// Put a network's description into the page; `bytes` is the size of its model.
export function showNetwork(network, bytes) {
  const narrower = network.float_bytes / bytes;
  document.title = `${network.network} in ${describeBits(network)} bits`;
  byId("name").textContent = network.network;
  byId("summary").textContent =
    `Weights in ${describeBits(network)} bits, activations in ${describeWidths(network.activation_bits)}: ` +
    `${formatBytes(bytes)} in place of ${formatBytes(network.float_bytes)} in float, ` +
    `${narrower.toFixed(1)} times smaller.`;
  byId("runtime").textContent = network.runtime;
  showSizes(network, bytes);
  showBits(network.groups);
  showFacts(network, bytes);
}

// Make an element with a class and a text.
export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

// Make a line of a label, a value, and a bar as long as a share of the width.
export function makeBar(tag, label, value, share) {
  const line = make(tag);
  const text = make("div", "label");
  text.append(make("span", "", label), make("span", "", value));
  const track = make("div", "track");
  const bar = make("div", "bar");
  bar.style.width = `${100 * share}%`;
  track.append(bar);
  line.append(text, track);
  return line;
}

// Return bytes for a person to read; as everywhere in this toolkit a MB is 2^20 of them.
export function formatBytes(bytes) {
  // Numbers and their units stay on one line.
  if (bytes < MB) return `${(bytes / 1024).toFixed(1)}\u00a0KB`;
  return `${(bytes / MB).toFixed(bytes < 100 * MB ? 2 : 0)}\u00a0MB`;
}

function byId(id) {
  return document.getElementById(id);
}

function describeBits({ groups }) {
  return describeWidths(groups.map(({ bits }) => bits));
}

function describeWidths(widths) {
  const [least, most] = [Math.min(...widths), Math.max(...widths)];
  return least === most ? `${least}` : `${least} to ${most}`;
}

function showSizes(network, bytes) {
  const lines = [
    ["in float, 32 bits", network.float_bytes],
    ["as its bits promise", network.promised_bytes],
    ["this model, model.onnx", bytes],
  ];
  const longest = Math.max(...lines.map(([, size]) => size));
  const made = lines.map(([label, size]) =>
    makeBar("div", label, formatBytes(size), size / longest),
  );
  made.slice(0, -1).forEach((line) => line.classList.add("other"));
  byId("sizes").replaceChildren(...made);
}

function showBits(groups) {
  const bars = groups.map(({ layers, bits, weights }) => {
    const bar = make("span", "", groups.length <= 32 ? bits : "");
    bar.style.height = `${(100 * bits) / WIDEST}%`;
    bar.title = `${layers.join(", ")}: ${bits} bits, ${weights.toLocaleString("en")} weights`;
    return bar;
  });
  const widths = groups.map(({ bits }) => bits).join(", ");
  byId("bits").replaceChildren(...bars);
  byId("bits").setAttribute("aria-label", `bits of the weights, layer by layer: ${widths}`);
}

function showFacts(network, bytes) {
  const { preprocess } = network;
  const weights = network.groups.reduce((sum, group) => sum + group.weights, 0);
  const all = network.groups.reduce((sum, group) => sum + group.weights * group.bits, 0);
  const colours = { 1: "grey", 3: "RGB", 4: "RGBA" };
  const channels = network.input_shape[0];
  const facts = {
    Model: `${bytes.toLocaleString("en")} bytes`,
    Weights: `${weights.toLocaleString("en")}, of ${(all / weights).toFixed(2)} bits on average`,
    Images:
      `shorter side resized to ${preprocess.resize} pixels (${preprocess.interpolation}), centre of ` +
      `${network.input_shape.slice(1).join(" × ")} cropped, ${colours[channels] ?? `${channels} channels`}`,
    Normalised: `mean ${preprocess.mean.join(", ")}; deviation ${preprocess.std.join(", ")}`,
  };
  const rows = Object.entries(facts).flatMap(([name, fact]) => [
    make("dt", "", name),
    make("dd", "", fact),
  ]);
  byId("facts").replaceChildren(...rows);
}
