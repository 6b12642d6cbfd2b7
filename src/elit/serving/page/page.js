"use strict";
// The page over the server's own interface: no library, and no other host.

const by = (id) => document.getElementById(id);
const SETTLE_MS = 120; // after a change, before it is drawn: a slider that moves on asks for nothing
const PREVIEWS = 8;
const STRIP = 16; // budgets, at most, that are drawn in a row
let facts = null;
let under_way = null; // AbortController of what is being drawn
let timer = 0;

const level = (i) => `${facts.levels[i]}/${facts.latents}`;
const budget = (i) => facts.levels[i] / facts.latents;
const rounded = (x) => (x < 10 ? x.toFixed(2) : x < 100 ? x.toFixed(1) : x.toFixed(0));

const parts = () => [...document.querySelectorAll("select.label")];
const label = () => parts().map((part) => part.value).join("/"); // as the model calls it
const label_said = () => parts().map((part) => part.selectedOptions[0].textContent).join(", ");

function say(text) { by("status").textContent = text; }

function mistake(text) { by("mistake").textContent = text; }

function describe_budget() {
  const i = Number(by("budget").value);
  const share = facts.gflops[i] / facts.gflops[facts.gflops.length - 1];
  const text = `${level(i)} of the latents, ${rounded(facts.gflops[i])} GFLOPs a forward: ${Math.round(100 * share)} % of the full budget`;
  by("budget-said").textContent = text;
  by("budget").setAttribute("aria-valuetext", text);
}

// What is asked of the server for a level. Raises a sentence for fields that cannot be.
function body_of(i) {
  for (const id of ["seed", "guidance", "steps"]) {
    if (!by(id).checkValidity() || by(id).value === "") {
      throw new Error(`${document.querySelector(`label[for=${id}]`).textContent}: ${by(id).validationMessage || "give a number"}`);
    }
  }
  const kind = by("kind").value;
  const body = {
    prompt: label(), budget: budget(i), seed: Number(by("seed").value), steps: Number(by("steps").value),
    sampler: by("sampler").value, guidance_scale: Number(by("guidance").value), alone: true, stream: true,
    partial_images: PREVIEWS, attention: by("attention").checked && facts.latents > 1,
  };
  if (kind !== "cfg" && facts.latents > 1) body.guidance_budget = budget(0);
  if (kind === "auto" && facts.latents > 1) body.autoguidance = true;
  return body;
}

// Draws at a level; `shown(picture, step, steps)` for every preview. Returns the last event.
async function draw(i, signal, shown) {
  const answer = await fetch("v1/images/generations", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body_of(i)), signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended before the picture was done");
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = JSON.parse(part.slice(part.indexOf("data: ") + 6));
      if (data.error) throw new Error(data.error.message);
      if (data.type.endsWith("completed")) return data;
      shown(data.b64_json, data.step, data.steps);
    }
  }
}

function show(figure, i, picture, told) {
  const name = label_said();
  const image = figure.querySelector("img");
  image.src = `data:image/png;base64,${picture}`;
  image.alt = `${name}, drawn at ${level(i)} of the latents${told ? "" : ", not done yet"}`;
  figure.dataset.done = told ? "yes" : "no";
  if (!told) return;
  const ms = told.compute_ms, saved = 1 - told.gflops / told.full_gflops;
  figure.querySelector("strong").textContent = i === facts.levels.length - 1 ? `full budget, ${level(i)}` : `budget ${level(i)}`;
  figure.querySelector("span").textContent =
    `${rounded(told.gflops)} GFLOPs, ${rounded(ms)} ms` + (saved > 0.001 ? `: ${Math.round(100 * saved)} % less compute` : "");
  const link = figure.querySelector("a");
  link.href = image.src;
  link.download = `${name.replace(/[^\w]+/g, "-")}-${facts.levels[i]}-of-${facts.latents}-seed-${told.seed}.png`;
  link.textContent = "Download";
  link.setAttribute("aria-label", `Download the picture at ${level(i)}`);
  overlay(figure, told.attention && told.attention[0]);
}

// Read's attention, light where a token is read most.
function overlay(figure, rows) {
  const frame = figure.querySelector(".frame"), canvas = figure.querySelector("canvas");
  frame.classList.toggle("seen", Boolean(rows));
  if (!rows) return;
  canvas.height = rows.length;
  canvas.width = rows[0].length;
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((share, k) => pixels.data.set([120 * share + 20, 40 + 60 * share, 255 - 200 * share, 60 + 150 * share], 4 * k));
  context.putImageData(pixels, 0, 0);
}

async function redraw() {
  if (under_way) under_way.abort();
  const own = (under_way = new AbortController());
  const i = Number(by("budget").value), last = facts.levels.length - 1;
  mistake("");
  document.body.dataset.drawing = "yes";
  try {
    for (const [figure, at] of [[by("low"), i], [by("full"), last]]) {
      const done = await draw(at, own.signal, (picture, step, steps) => {
        show(figure, at, picture, null);
        say(`Drawing at ${level(at)}: step ${step} of ${steps}.`);
      });
      show(figure, at, done.b64_json, done.elit);
    }
    say(`Done: ${label_said()} at ${level(i)}, beside the full budget.`);
    document.body.dataset.drawing = "no";
  } catch (error) {
    if (error.name === "AbortError" || own.signal.aborted) return;
    mistake(error.message);
    say("");
    document.body.dataset.drawing = "no";
  }
}

async function draw_strip() {
  if (under_way) under_way.abort();
  const own = (under_way = new AbortController());
  by("strip").replaceChildren();
  mistake("");
  try {
    const count = Math.min(facts.levels.length, STRIP);
    for (let k = 1; k <= count; k++) {
      const i = Math.round((k * facts.levels.length) / count) - 1;
      say(`Drawing budget ${k} of ${count}.`);
      const done = await draw(i, own.signal, () => {});
      const item = document.createElement("li"), image = document.createElement("img");
      image.src = `data:image/png;base64,${done.b64_json}`;
      image.alt = `at ${level(i)} of the latents`;
      item.append(image, `${level(i)}`, document.createElement("br"), `${rounded(done.elit.gflops)} GFLOPs`);
      by("strip").append(item);
    }
    say("Every budget is drawn.");
  } catch (error) {
    if (error.name === "AbortError" || own.signal.aborted) return;
    mistake(error.message);
    say("");
  }
}

function changed() {
  describe_budget();
  clearTimeout(timer);
  timer = setTimeout(redraw, SETTLE_MS);
}

// A list of names to choose from for every factor of a label; labels of one factor have one list.
function name_labels() {
  const names = facts.label_names.length ? facts.label_names : Array.from({ length: facts.classes }, (_, k) => String(k));
  const factors = facts.label_factors.length ? facts.label_factors : [names];
  const first = by("label-0").parentElement;
  let before = first;
  factors.forEach((options, k) => {
    const place = k === 0 ? first : first.cloneNode(true);
    const select = place.querySelector("select"), title = place.querySelector("label");
    select.id = title.htmlFor = `label-${k}`;
    if (k > 0) title.textContent = factors.length > 2 ? `with (${k})` : "with";
    select.replaceChildren(...options.map((name) => new Option(facts.texts ? name : name.replaceAll("-", " "), name)));
    if (factors.length > 1) select.add(new Option("any", "*"));
    if (options.includes("heart")) select.value = "heart";
    if (k > 0) before.after(place);
    before = place;
  });
}

// Of a model that is told texts and no labels.
function tell_of_texts() {
  document.querySelector("label[for=label-0]").textContent = "Prompt";
  for (const kind of by("kind").options) kind.textContent = kind.textContent.replace("no label", "no text").replace("label", "text");
}

async function begin() {
  facts = (await (await fetch("v1/models")).json()).data[0].elit;
  name_labels();
  document.documentElement.style.setProperty("--shape", `${facts.width} / ${facts.height}`);
  by("budget").max = facts.levels.length - 1;
  by("budget").value = Math.max(0, Math.floor(facts.levels.length / 4) - 1);
  by("steps").value = facts.steps;
  by("guidance").value = facts.guidance_scale;
  if (facts.texts) tell_of_texts();
  by("attention").disabled = !facts.attention;
  if (facts.latents < 2) for (const id of ["budget", "kind", "attention"]) by(id).disabled = true;
  by("settings").addEventListener("input", changed);
  by("settings").addEventListener("submit", (event) => event.preventDefault());
  by("another").addEventListener("click", () => {
    by("seed").value = Math.floor(Math.random() * 1e9);
    changed();
  });
  by("draw-strip").addEventListener("click", draw_strip);
  describe_budget();
  await redraw();
}

begin().catch((error) => mistake(error.message));
