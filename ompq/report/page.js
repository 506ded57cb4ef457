"use strict";

// What one points at, or comes to by the keyboard, tells its tip.
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
document.body.append(tip);

function showTip(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${y + height + 20 > innerHeight ? Math.max(4, y - height - 8) : y + 16}px`;
}

function tellElement(event) {
  const found = event.target.closest?.("[data-tip]");
  if (!found) {
    tip.hidden = true;
    return;
  }
  const box = found.getBoundingClientRect();
  showTip(found.dataset.tip, event.clientX ?? box.left, event.clientY ?? box.top);
}

document.addEventListener("pointermove", tellElement);
document.addEventListener("pointerdown", tellElement);
document.addEventListener("focusin", tellElement);

// The matrix is a picture: its values are looked up by the pointer's place.
for (const figure of document.querySelectorAll("figure.matrix")) {
  const picture = figure.querySelector("img");
  const { names, values } = JSON.parse(figure.querySelector("script").textContent);
  picture.addEventListener("pointermove", (event) => {
    event.stopPropagation();
    const box = picture.getBoundingClientRect();
    const place = (at, start, length) =>
      Math.min(names.length - 1, Math.floor(((at - start) / length) * names.length));
    const row = place(event.clientY, box.top, box.height);
    const column = place(event.clientX, box.left, box.width);
    const words = `${names[row]}\n${names[column]}\n${values[row][column] / 1000}`;
    showTip(words, event.clientX, event.clientY);
  });
}

// A click on a head sorts its table, a second one the other way round.
function readCell(row, column) {
  const cell = row.cells[column];
  const held = cell.querySelector("[data-value]")?.dataset.value ?? cell.textContent;
  const value = Number(held);
  return held.trim() === "" || Number.isNaN(value) ? held : value;
}

function compareCells(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortTable(head) {
  const body = head.closest("table").tBodies[0];
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const sign = descending ? -1 : 1;
  const column = head.cellIndex;
  const compare = (a, b) => sign * compareCells(readCell(a, column), readCell(b, column));
  body.append(...[...body.rows].sort(compare));
}

document.addEventListener("click", (event) => {
  const head = event.target.closest?.("th");
  if (head) sortTable(head);
});

// A point of a front shows the bits that it stands for.
for (const front of document.querySelectorAll(".front")) {
  const { points, chosen } = JSON.parse(front.querySelector("script").textContent);
  const circles = [...front.querySelectorAll("circle")];
  const shown = front.querySelector(".chosen");
  const choose = (place) => {
    const point = points[place];
    circles.forEach((circle, other) => circle.classList.toggle("now", other === place));
    shown.dataset.place = place;
    shown.setAttribute("aria-label", `${point.model_size_mb} MB: ${point.bits}`);
    shown.replaceChildren(
      ...point.bits.map((bits) => {
        const bar = document.createElement("i");
        bar.style.height = `${bits * 11}px`;
        bar.textContent = bits;
        return bar;
      }),
    );
  };
  circles.forEach((circle, place) => {
    circle.addEventListener("click", () => choose(place));
    circle.addEventListener("keydown", (event) => event.key === "Enter" && choose(place));
  });
  choose(chosen);
}
