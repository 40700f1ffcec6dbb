// The checking page: the server says which triplet is next and keeps every mark on disk before the next one is shown.
import { Scene } from "/static/scene.js";
import { ask, byId, make, say } from "/static/talk.js";

const COLOUR = "#f0e442";
const KEYS = { y: "right", n: "wrong", s: "skip", u: "undo", z: "near" };

const scene = byId("check") && new Scene(byId("scene"));
let state = null;
let busy = false;
let counting = false;
let stale = false;
let isZoomed = false;

const percent = (value) => (100 * value).toFixed(0);
const article = (word) => (/^[aeiou]/i.test(word) ? "an" : "a");

function show(next) {
  state = next;
  const { triplet, num_asked: all, num_marked: done, num_skipped: skipped } = state;
  byId("progress").max = all;
  byId("progress").value = done;
  say("done", `${done} of ${all} marked${skipped ? `, ${skipped} skipped` : ""}`);
  byId("ask").hidden = triplet === null;
  byId("finished").hidden = triplet !== null;
  const cannot = triplet === null || triplet.error !== undefined;
  for (const id of ["right", "wrong", "near"]) byId(id).disabled = cannot;
  byId("skip").disabled = triplet === null;
  byId("undo").disabled = done === 0;
  say("error", triplet?.error ? `${triplet.image_id} cannot be shown: ${triplet.error}. Skip it.` : "");
  byId("scene").hidden = cannot;
  if (triplet === null) return;
  const words = triplet.object === null ? triplet.verb : `${triplet.verb} ${article(triplet.object)} ${triplet.object}`;
  byId("question").replaceChildren("Does this person ", make("strong", "", words), "?");
  say("file", triplet.image_id);
  if (cannot) return;
  scene.show(`/check/image/${triplet.row}`, triplet.size_hw, `${triplet.image_id}: ${words}?`);
  const tags = ["person", triplet.object];
  scene.set([{ key: "asked", human: triplet.human_xyxy, object: triplet.object_xyxy, colour: COLOUR, tags }]);
  updateZoom();
}

function updateZoom() {
  byId("near").setAttribute("aria-pressed", String(isZoomed));
  if (!state?.triplet?.size_hw) return;
  const { human_xyxy: h, object_xyxy: o } = state.triplet;
  const both = [Math.min(h[0], o[0]), Math.min(h[1], o[1]), Math.max(h[2], o[2]), Math.max(h[3], o[3])];
  scene.zoomTo(isZoomed ? both : null);
}

async function act(name) {
  if (name === "near") {
    isZoomed = !isZoomed;
    updateZoom();
    return;
  }
  // Held keys and double clicks must not mark a triplet before it was seen.
  if (busy || byId(name).disabled) return;
  busy = true;
  const body = name === "undo" ? "{}" : JSON.stringify({ row: state.triplet.row, verdict: name });
  try {
    show(await ask(name === "undo" ? "/check/undo" : "/check/mark", { method: "POST", body }));
    figures();
  } catch (error) {
    say("error", error.message);
  } finally {
    busy = false;
  }
}

// Marks do not wait for the estimates: one request at a time, and another one if marks were given meanwhile.
async function figures() {
  stale = true;
  if (counting) return;
  counting = true;
  try {
    while (stale) {
      stale = false;
      const { rows } = await ask("/check/results");
      byId("results").replaceChildren(...rows.map(line));
    }
  } catch (error) {
    say("error", error.message);
  } finally {
    counting = false;
  }
}

function line({ name, num_marked: marked, num_right: right, num_triplets: all, precision, ap }) {
  const head = make("th", "", name);
  head.scope = "row";
  if (all !== undefined) head.append(make("span", "soft", `${all.toLocaleString("en")} triplets`));
  return make("tr", "", head, make("td", "n", marked === undefined ? "" : `${right} / ${marked}`), share(precision), share(ap));
}

function share(estimate) {
  if (!estimate) return make("td", "n soft", "–");
  const interval = make("span", "soft", `${percent(estimate.low)} to ${percent(estimate.high)}`);
  return make("td", "n", percent(estimate.value), interval);
}

async function write() {
  try {
    const { files } = await ask("/check/export", { method: "POST", body: "{}" });
    say("written", `Written: ${files.join(", ")}`);
  } catch (error) {
    say("written", "");
    say("error", error.message);
  }
}

async function start() {
  for (const id of Object.values(KEYS)) byId(id).addEventListener("click", () => act(id));
  byId("export").addEventListener("click", write);
  document.addEventListener("keydown", (event) => {
    const name = KEYS[event.key.toLowerCase()];
    if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act(name);
  });
  try {
    show(await ask("/check/state"));
    figures();
  } catch (error) {
    say("error", error.message);
  }
}

if (scene) start();
