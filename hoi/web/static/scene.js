// A picture with pairs drawn over it: boxes, links and labels that stay the same size on the screen at any zoom.
const SVG = "http://www.w3.org/2000/svg";
// Okabe and Ito's colours, which colour-blind people can tell apart; the same as in hoi/drawing.py.
export const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"];
const DARK = new Set(["#0072b2"]);
const LABEL_PX = 13;
const NARROW_PX = 480;
const LABELS = { wide: 14, narrow: 4 };
const pen = document.createElement("canvas").getContext("2d");

export const inkOn = (colour) => (DARK.has(colour) ? "#fff" : "#000");

function shape(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

const middle = ([x1, y1, x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];
const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

export class Scene {
  // `onPoint(key)` is called when the pointer enters a pair, with null when it leaves, `onPick(key)` when it is clicked.
  constructor(holder, { onPoint, onPick } = {}) {
    this.svg = shape("svg", { role: "img" }, holder);
    this.picture = shape("image", { preserveAspectRatio: "none" }, this.svg);
    this.layer = shape("g", {}, this.svg);
    this.pairs = [];
    this.boxes = [];
    this.active = null;
    this.onPoint = onPoint;
    this.onPick = onPick;
    new ResizeObserver(() => this.draw()).observe(holder);
  }

  show(address, [height, width], description) {
    this.size = [width, height];
    for (const [key, value] of Object.entries({ href: address, width, height })) this.picture.setAttribute(key, value);
    this.svg.setAttribute("aria-label", description);
    this.zoomTo(null);
  }

  // Zoom to a box, or to the whole picture with null.
  zoomTo(box) {
    const [width, height] = this.size;
    let view = [0, 0, width, height];
    if (box !== null) {
      const side = Math.max(box[2] - box[0], box[3] - box[1], 24) * 1.3;
      const [wide, high] = [Math.min(side, width), Math.min(side, height)];
      const [x, y] = middle(box);
      const corner = (at, length, whole) => Math.min(Math.max(at - length / 2, 0), whole - length);
      view = [corner(x, wide, width), corner(y, high, height), wide, high];
    }
    this.view = view;
    this.svg.setAttribute("viewBox", view.join(" "));
    this.svg.style.aspectRatio = `${view[2]} / ${view[3]}`;
    // Small pictures are shown larger, but not so large that one scrolls.
    this.svg.style.width = `min(100%, calc(${view[2] / view[3]} * 68vh))`;
    this.draw();
  }

  // pairs: {key, human, object, colour, text, title, tags}; boxes: {box, text}, drawn thin.
  // `active` is the key of the highlighted pair, or null; `text` replaces that pair's own.
  set(pairs, boxes = [], active = null, text = null) {
    this.pairs = pairs;
    this.boxes = boxes;
    this.active = active;
    this.activeText = text;
    this.draw();
  }

  activate(key, text = null) {
    if (this.active === key && this.activeText === text) return;
    this.set(this.pairs, this.boxes, key, text);
  }

  draw() {
    this.layer.replaceChildren();
    const rendered = this.svg.getBoundingClientRect().width;
    if (!this.view || !rendered) return;
    this.unit = this.view[2] / rendered;
    this.labelPx = rendered < NARROW_PX ? LABEL_PX - 1.5 : LABEL_PX;
    this.placed = [];
    // Above all lines, so that none runs through a word.
    this.labels = shape("g", {});
    for (const { box, text } of this.boxes) this.drawBox(box, "thin", "#fff", this.layer, text);
    // The best pairs lie on top and choose their label's place first.
    const groups = this.pairs.map((pair) => [pair, this.group(pair)]);
    for (const [pair, group] of [...groups].reverse()) {
      this.layer.append(group);
      this.drawLines(pair, group);
    }
    const first = groups.find(([pair]) => pair.key === this.active);
    if (first) {
      this.layer.append(first[1]);
      this.label(first[0], this.activeText ?? first[0].text, true);
    }
    let left = rendered < NARROW_PX ? LABELS.narrow : LABELS.wide;
    for (const [pair] of groups) {
      if (pair.key === this.active || !pair.text || (this.active !== null && first)) continue;
      if (left-- > 0) this.label(pair, pair.text, false);
    }
    this.layer.append(this.labels);
  }

  group(pair) {
    const dim = this.active !== null && this.pairs.some(({ key }) => key === this.active) && pair.key !== this.active;
    const group = shape("g", { class: dim ? "pair dim" : "pair", "data-key": pair.key });
    if (pair.title) shape("title", {}, group).textContent = pair.title;
    group.addEventListener("pointerenter", () => this.onPoint?.(pair.key));
    group.addEventListener("pointerleave", () => this.onPoint?.(null));
    group.addEventListener("click", () => this.onPick?.(pair.key));
    return group;
  }

  drawLines(pair, group) {
    const alone = String(pair.human) === String(pair.object);
    const [from, to] = [middle(pair.human), middle(pair.object)];
    if (!alone) this.drawBox(pair.object, "object", pair.colour, group, pair.tags?.[1]);
    this.drawBox(pair.human, "human", pair.colour, group, pair.tags?.[0]);
    if (alone) return;
    for (const part of ["seam", "line"]) {
      const link = { x1: from[0], y1: from[1], x2: to[0], y2: to[1], class: `${part} link` };
      shape("line", part === "line" ? { ...link, stroke: pair.colour } : link, group);
    }
    for (const [x, y] of [from, to]) {
      shape("circle", { cx: x, cy: y, r: 4 * this.unit, class: "end", fill: pair.colour }, group);
    }
  }

  drawBox([x1, y1, x2, y2], kind, colour, parent, text) {
    const box = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    shape("rect", { ...box, class: `seam ${kind}` }, parent);
    shape("rect", { ...box, class: `line ${kind}`, stroke: colour }, parent);
    if (!text) return;
    const outside = [[x1, y1, 0, -1], [x1, y2, 0, 0], [x2, y1, -1, -1], [x2, y2, -1, 0]];
    this.place(text, [...outside, [x1, y1, 0, 0], [x1, y2, 0, -1]], colour, kind === "thin");
  }

  label(pair, text, always) {
    const { human: h, object: o } = pair;
    const both = [Math.min(h[0], o[0]), Math.min(h[1], o[1]), Math.max(h[2], o[2]), Math.max(h[3], o[3])];
    const wishes = [];
    for (const [x1, y1, x2, y2] of [both, o, h]) {
      wishes.push([x1, y1, 0, -1], [x1, y2, 0, 0], [x2, y1, -1, -1], [x2, y2, -1, 0]);
    }
    const [x, y] = middle([...middle(h), ...middle(o)]);
    wishes.push([x, y, -0.5, -0.5], [both[0], both[1], 0, 0], [both[0], both[3], 0, -1]);
    this.place(text, wishes, pair.colour, false, always);
  }

  // A wish is a point and the label's offset from it, in widths and heights of the label; the first free one is taken.
  place(text, wishes, colour, small, always = false) {
    const px = small ? this.labelPx - 1.5 : this.labelPx;
    pen.font = `600 ${px}px system-ui, sans-serif`;
    const [width, height] = [(pen.measureText(text).width + 10) * this.unit, (px + 7) * this.unit];
    const [left, top, wide, high] = this.view;
    if (width > wide && !always) return;
    const into = (at, length, from, whole) => Math.max(Math.min(at, from + whole - length), from);
    const spots = wishes.map(([x, y, dx, dy]) => [
      into(x + dx * width, width, left, wide),
      into(y + dy * height, height, top, high),
    ]);
    const free = spots.find(([x, y]) => !this.placed.some((other) => overlap([x, y, x + width, y + height], other)));
    const [x, y] = free ?? (always ? spots[0] : [null, null]);
    if (x === null) return;
    this.placed.push([x, y, x + width, y + height]);
    const group = shape("g", { class: "label" }, this.labels);
    shape("rect", { x, y, width, height, rx: 3 * this.unit, fill: colour }, group);
    const at = { x: x + 5 * this.unit, y: y + height / 2, "font-size": px * this.unit, fill: inkOn(colour) };
    shape("text", { ...at, "dominant-baseline": "central" }, group).textContent = text;
  }
}
