// The predictor's page: an image goes to the server once; threshold, kind of score and selection are handled here.
import { Scene, COLOURS } from "/static/scene.js";
import { ask, byId, make, say } from "/static/talk.js";

const SHOWN_AT_FIRST = 8;
const SHARE_OF_BEST = 0.1;
const LISTED = 200;
const NO_INTERACTION = "no_interaction";
const MEGABYTE = 1e6;

let current = null;
// The triplets that are listed and drawn: all but "no interaction", which the JSON holds as well.
let scored = [];
let by = "score";
let thresholds = {};
let pinned = null;
let pointed = null;
let asked = 0;

const scene = byId("predict") && new Scene(byId("scene"), { onPoint: pointAtPair, onPick: pickPair });
const pairOf = (triplet) => `${triplet.human_idx}-${triplet.object_idx}`;
const pairKey = (key) => (key === null ? null : key.split(" ")[0]);
const tripletKey = (triplet) => `${pairOf(triplet)} ${triplet.interaction_idx}`;
// Most scores are small, so the slider is finer there.
const toThreshold = (position) => position ** 2;
const number = (value) => (value > 0 && value < 0.001 ? "<0.001" : value === 0 ? "0" : value.toFixed(value < 0.1 ? 3 : 2));
const many = (count, one, more = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;

async function predict(file) {
  const mine = ++asked;
  say("error", "");
  if (file.size > Number(byId("predict").dataset.maxMb) * MEGABYTE) {
    say("error", `${file.name} is larger than ${byId("predict").dataset.maxMb} MB.`);
    return;
  }
  say("status", `Predicting ${file.name} …`);
  byId("predict").setAttribute("aria-busy", "true");
  try {
    const headers = { "X-File-Name": encodeURIComponent(file.name), "Content-Type": "application/octet-stream" };
    const answer = await ask("/predict", { method: "POST", body: file, headers });
    if (mine === asked) show(answer);
  } catch (error) {
    if (mine === asked) {
      say("status", "");
      say("error", `${file.name}: ${error.message}`);
    }
  } finally {
    if (mine === asked) byId("predict").removeAttribute("aria-busy");
  }
}

function show({ result, picture }) {
  current = result;
  scored = result.triplets.filter(({ verb }) => verb !== NO_INTERACTION);
  pinned = pointed = null;
  thresholds = Object.fromEntries(["score", "teacher_score"].map((name) => [name, firstThreshold(name)]));
  byId("drop").classList.add("small");
  say("drop-strong", "Another image");
  say("drop-how", "drop, choose or paste it");
  for (const id of ["scene", "found", "legend"]) byId(id).hidden = false;
  const people = result.detections.filter(({ object }) => object === "person").length;
  const counts = [many(result.detections.length, "detection"), many(people, "person", "people"), many(scored.length, "scored triplet")];
  say("status", `${result.image_id}: ${counts.join(", ")}.`);
  scene.set([]);
  scene.show(picture, result.size_hw, `${result.image_id} with what is found in it`);
  byId("threshold").value = Math.sqrt(thresholds[by]);
  update();
}

// Shows a handful of triplets, whatever the scale of the scores, and none far below the best.
function firstThreshold(name) {
  const scores = scored.map((triplet) => triplet[name]).sort((a, b) => b - a);
  const at = Math.max(scores[Math.min(SHOWN_AT_FIRST, scores.length) - 1] ?? 0, SHARE_OF_BEST * (scores[0] ?? 0));
  return toThreshold(Math.floor(Math.sqrt(Math.max(at, 0)) * 200) / 200);
}

function update() {
  const threshold = thresholds[by];
  const shown = scored.filter((triplet) => triplet[by] >= threshold).sort((a, b) => b[by] - a[by]);
  const pairs = new Map();
  for (const triplet of shown) {
    const key = pairOf(triplet);
    if (!pairs.has(key)) pairs.set(key, { key, triplets: [], colour: COLOURS[pairs.size % COLOURS.length] });
    pairs.get(key).triplets.push(triplet);
  }
  say("threshold-value", number(threshold));
  byId("threshold").setAttribute("aria-valuetext", number(threshold));
  say("count", `${shown.length} of ${many(scored.length, "triplet")}, ${many(pairs.size, "pair")}`);
  list(shown, pairs);
  const drawn = [...pairs.values()].map(({ key, triplets, colour }) => ({
    key,
    colour,
    human: triplets[0].human_xyxy,
    object: triplets[0].object_xyxy,
    text: `${triplets[0].phrase} ${number(triplets[0][by])}` + (triplets.length > 1 ? ` +${triplets.length - 1}` : ""),
    title: triplets.map((triplet) => `${triplet.phrase} ${number(triplet[by])}`).join("\n"),
  }));
  const boxes = byId("detections").checked
    ? current.detections.map(({ xyxy, object, score }) => ({ box: xyxy, text: `${object} ${number(score)}` }))
    : [];
  scene.set(drawn, boxes, ...highlighted());
  light();
}

function list(shown, pairs) {
  const rows = shown.slice(0, LISTED).map((triplet) => {
    const button = make("button", "triplet");
    button.type = "button";
    button.dataset.key = tripletKey(triplet);
    const swatch = make("span", "swatch");
    swatch.style.background = pairs.get(pairOf(triplet)).colour;
    const bar = make("span", "meter", make("span"));
    bar.firstChild.style.width = `${100 * Math.min(1, Math.max(0, triplet[by]))}%`;
    const boxes = `person ${number(triplet.human_score)} · ${triplet.object} ${number(triplet.object_score)}`;
    const text = make("span", "what", make("span", "phrase", triplet.phrase), make("span", "soft", boxes));
    button.append(swatch, text, make("span", "figure", number(triplet[by])), bar);
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => point(button.dataset.key));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => point(null));
    button.addEventListener("click", () => pick(button.dataset.key));
    return make("li", "", button);
  });
  byId("triplets").replaceChildren(...rows);
  const hidden = shown.length - rows.length;
  const none = scored.length ? "Nothing passes this threshold." : "No person with an object of the vocabulary was found.";
  say("more", hidden > 0 ? `${hidden} more are not listed.` : shown.length ? "" : none);
}

function point(key) {
  pointed = key;
  highlight();
}

function pick(key) {
  pinned = pinned === key ? null : key;
  highlight();
}

const firstOf = (pair) =>
  [...document.querySelectorAll(".triplet")].find(({ dataset }) => pairKey(dataset.key) === pair)?.dataset.key ?? null;

function pointAtPair(pair) {
  point(pair === null ? null : firstOf(pair));
}

function pickPair(pair) {
  const key = firstOf(pair);
  pick(pairKey(pinned) === pair ? pinned : key);
  document.querySelector(`.triplet[data-key="${key}"]`)?.scrollIntoView({ block: "nearest" });
}

// The highlighted pair and its text; nulls for none.
function highlighted() {
  const key = pointed ?? pinned;
  const triplet = key === null ? null : scored.find((one) => tripletKey(one) === key);
  const isShown = triplet && triplet[by] >= thresholds[by];
  return isShown ? [pairKey(key), `${triplet.phrase} ${number(triplet[by])}`] : [null, null];
}

function highlight() {
  light();
  scene.activate(...highlighted());
}

function light() {
  const key = pointed ?? pinned;
  for (const button of document.querySelectorAll(".triplet")) {
    button.classList.toggle("active", key !== null && pairKey(button.dataset.key) === pairKey(key));
    button.setAttribute("aria-pressed", String(button.dataset.key === pinned));
  }
}

function download() {
  const name = `${current.image_id.replace(/\.[^.]*$/, "") || "image"}.json`;
  const address = URL.createObjectURL(new Blob([JSON.stringify(current, null, 1) + "\n"], { type: "application/json" }));
  const link = Object.assign(make("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function connect() {
  const drop = byId("drop");
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files.length) predict(target.files[0]);
    target.value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    window.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) predict(event.dataTransfer.files[0]);
    });
  }
  window.addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData?.files.length) predict(clipboardData.files[0]);
  });
  byId("threshold").addEventListener("input", ({ target }) => {
    thresholds[by] = toThreshold(Number(target.value));
    update();
  });
  for (const radio of document.querySelectorAll("input[name=by]")) {
    radio.addEventListener("change", () => {
      by = radio.value;
      byId("threshold").value = Math.sqrt(thresholds[by]);
      update();
    });
  }
  byId("detections").addEventListener("change", update);
  byId("download").addEventListener("click", download);
  document.addEventListener("keydown", ({ key }) => {
    if (key === "Escape" && current) {
      pinned = pointed = null;
      highlight();
    }
  });
}

if (scene) connect();
