// The live page: asks for the state once a second while it is seen, draws it, and streams from several models.
"use strict";

const POLL_MS = 1000, SVG = "http://www.w3.org/2000/svg", MOST_ROWS = 200, MEMORY = ["decoded", "device"];
const $ = id => document.getElementById(id);

// ---- drawing -------------------------------------------------------------------------------------------------------

// Makes an element. Text is only ever set as text: nothing that the system tells can become markup.
function h(name, props, ...children) {
  const [tag, ...classes] = name.split("."), node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("--") || ["width", "flex", "opacity"].includes(key)) node.style.setProperty(key, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

// A hue for each model, the same wherever it is shown: golden-angle steps in order of appearance, so that few are alike.
const hues = new Map();
function hue(model) {
  if (!hues.has(model)) hues.set(model, (255 + hues.size * 137.508) % 360);
  return hues.get(model).toFixed(0);
}
const modelOf = revision => revision.split("@")[0];
const swatch = (model, base) => base ? h("span.swatch.base") : h("span.swatch", { "--h": hue(model) });

function bytes(n) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) { n /= 1000; unit++; }
  return `${n >= 100 || unit === 0 ? n.toFixed(0) : n.toPrecision(3)} ${units[unit]}`;
}
function figure(n) {
  if (n >= 10000) return `${(n / 1000).toFixed(n >= 100000 ? 0 : 1)}k`;
  return n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n === 0 ? "0" : n.toFixed(2);
}
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const part = share => `${(100 * share).toFixed(2)}%`;  // as styles want it
function duration(s) {
  if (s < 60) return `${s.toFixed(0)} s`;
  if (s < 3600) return `${(s / 60).toFixed(0)} min`;
  return s < 86400 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(1)} days`;
}

// A line over time; the newest value is at the right edge, and lines that are shorter begin later.
function line(values, floor = 0) {
  const slots = Math.max(values.length, 24);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${slots - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const top = Math.max(...values, floor) || 1, from = slots - values.length;
  const points = values.map((v, i) => `${from + i},${(19 - 17.5 * v / top).toFixed(2)}`);
  if (points.length > 1) {
    for (const [name, d] of [["area", `M${from},20L${points.join("L")}L${slots - 1},20Z`], ["path", `M${points.join("L")}`]]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("d", d);
      svg.append(path);
    }
  }
  return svg;
}

// Replaces what a place shows, if it changed: what did not keeps its focus, selection and hover.
const shown = new Map();
function show(id, data, draw) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  $(id).replaceChildren(...[draw()].flat());
}

// ---- sections ------------------------------------------------------------------------------------------------------

function tile(name, value, note, svg, wide) {
  return h(wide ? "div.tile.wide" : "div.tile", null, svg, h("span.name", null, name), h("span.figure", null, value), h("div.note", null, note));
}

function drawNow(s) {
  const tuned = s.models.filter(m => !m.base), sum = key => tuned.reduce((total, m) => total + m[key], 0);
  const places = s.workers.reduce((total, w) => total + w.places, 0), delta = sum("delta_bytes"), whole = sum("checkpoint_bytes");
  const serving = s.workers.filter(w => w.state === "serving").length;
  return [
    tile("Tokens a second", figure(s.tokens_per_second), `${figure(s.requests_per_second)} requests a second`, line(s.lines.tokens, 1), true),
    tile("Running", `${s.running}`, `of ${places} places`),
    tile("Waiting", `${s.waiting}`, s.waiting ? "in this router's queue" : "the queue is empty", s.lines.waiting.length ? line(s.lines.waiting, 4) : null),
    tile("Fine-tunes", `${tuned.length}`, delta ? `${bytes(delta)} for ${bytes(whole)}` : "none published"),
    tile("Workers", `${serving}`, serving === s.workers.length ? "all serving" : `of ${s.workers.length} known`),
  ];
}

function block(r, budget, worker) {
  const model = modelOf(r.revision), share = r.bytes / Math.max(budget, 1), used = r.in_use ? `, ${r.in_use} in use` : "";
  const wide = share > .06;
  return h(`div.block.${r.tier}${r.in_use ? ".busy" : ""}${wide ? "" : ".slim"}`,
    { "--h": hue(model), width: `${Math.max(100 * share, .4)}%`, title: `${r.revision}: ${bytes(r.bytes)} on ${worker}, ${r.tier}${used}` }, wide ? h("span", null, model) : null);
}

function track(name, kind, blocks, [used, budget]) {
  const caption = budget ? `${bytes(used)} of ${bytes(budget)}` : bytes(used);
  return h(`div.track.${kind}`, null, h("span.label", null, name), h("span.caption", null, caption), h("div.well", null, ...blocks, h("span.free")));
}

function drawWorker(w) {
  const tone = { serving: "good", draining: "warm", away: "bad" }[w.state];
  const of = tiers => w.residency.filter(r => tiers.includes(r.tier)).sort((a, b) => b.in_use - a.in_use || b.bytes - a.bytes);
  const room = w.memory[1] || w.memory[0] || 1, shelf = Math.max(w.disk[0], ...[of(["disk"]).reduce((t, r) => t + r.bytes, 0)], 1);
  const coming = w.arriving.filter(a => a.to_memory).map(a => h("div.block.arriving",
    { "--h": hue(modelOf(a.revision)), "--share": part(a.share), width: "12%", title: `${a.revision} is on its way: ${percent(a.share)}` }, h("span", null, modelOf(a.revision))));
  const host = of(["host"]), disk = of(["disk"]);
  const kv = w.kv_total ? `KV ${percent(1 - w.kv_free / w.kv_total)}` : null;
  const facts = [`${w.running} running`, w.waiting ? `${w.waiting} waiting` : null, kv, w.step_ms ? `${w.step_ms.toFixed(1)} ms a step` : null];
  return h("article.worker", null,
    h("header", null, h("h3", null, w.name), h(`span.state.${tone}`, null, w.state), h("span.facts", null, facts.filter(Boolean).join(" · "))),
    track("memory", "memory", [...of(MEMORY).map(r => block(r, room, w.name)), ...coming], w.memory),
    host.length ? track("host", "host", host.map(r => block(r, room, w.name)), [host.reduce((t, r) => t + r.bytes, 0), 0]) : null,
    disk.length ? track("disk", "disk", disk.map(r => block(r, shelf, w.name)), w.disk) : null);
}

function drawWorkers(workers) {
  if (!workers.length) return h("p.empty", null, "No worker is known yet.");
  const legend = [["", "packed delta"], ["decoded", "decoded"], ["busy", "in use"], ["arriving", "on its way"]];
  $("workers").nextElementSibling?.remove();
  $("workers").after(h("p.legend", null, ...legend.map(([kind, text]) => h("span", null, h(kind ? `i.${kind}` : "i"), text))));
  return [...workers].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true })).map(drawWorker);
}

function drawModel(m, workers) {
  const held = workers.flatMap(w => w.residency.filter(r => modelOf(r.revision) === m.name).map(r => ({ ...r, worker: w.name, old: r.revision !== `${m.name}@${m.revision}` })));
  const memory = held.filter(r => MEMORY.includes(r.tier)).sort((a, b) => a.worker.localeCompare(b.worker, undefined, { numeric: true }));
  const below = held.filter(r => !MEMORY.includes(r.tier));
  const ratio = m.delta_bytes ? m.checkpoint_bytes / m.delta_bytes : 0;
  const quality = m.agreement === null || m.agreement === undefined ? "report" : `${percent(m.agreement, 1)} agree`;
  return h("div.row", null,
    h("div.model", null, swatch(m.name, m.base), h("b", null, m.name), m.base ? h("span.tag", null, "base") : h("span.rev", null, `@${m.revision}`),
      m.pinned ? h("span.tag", null, "pinned") : null, ...(m.aliases || []).map(a => h("span.tag", null, `← ${a}`))),
    h("div.rate", null, line(m.line, .2), h(m.rate > .005 ? "span" : "span.idle", null, m.rate > .005 ? `${figure(m.rate)} /s` : "idle")),
    h(m.in_flight ? "div.flight" : "div.flight.idle.none", null, m.in_flight ? `${m.in_flight} running` : "–"),
    h("div.where", null, m.base ? h("span.idle", null, "every worker") : [
      ...memory.map(r => h("span.place.memory", { "--h": hue(m.name), title: `${r.revision}, ${r.tier}` }, r.old ? `${r.worker} ${r.revision.slice(m.name.length)}` : r.worker)),
      below.length ? h("span.place", { title: below.map(r => `${r.revision} on ${r.worker}: ${r.tier}`).join("\n") }, memory.length ? `+ ${below.length} disk` : `${below.length} on disk`) : null,
      held.length ? null : h("span.idle", null, "store only")]),
    m.base ? h("div.idle.none", null, "–") : h("div.size", { title: `${bytes(m.delta_bytes)} stand for ${bytes(m.checkpoint_bytes)}` },
      h("div.scale", null, h("i", { width: part(m.delta_bytes / Math.max(m.checkpoint_bytes, 1)) })),
      h("span.text", null, bytes(m.delta_bytes), " ", h("span.unit", null, `${ratio.toFixed(1)}×`))),
    m.report ? h("div.quality", null, h("a", { href: `/live/report/${m.name}@${m.revision}`, title: "compression report" }, quality)) : h(`div.quality.idle${m.base ? ".none" : ""}`, null, m.base ? "–" : "no report"));
}

function drawModels(s) {
  const wanted = $("filter").value.trim().toLowerCase();
  const found = s.models.filter(m => !wanted || m.name.includes(wanted) || (m.aliases || []).some(a => a.includes(wanted)));
  const order = [...found].sort((a, b) => b.base - a.base || b.rate - a.rate || a.name.localeCompare(b.name)).slice(0, MOST_ROWS);
  $("model-count").textContent = wanted ? `${found.length} of ${s.models.length}` : `${s.models.length}`;
  show("model-rows", [order, s.workers.map(w => [w.name, w.residency]), wanted], () => [
    h("div.row.head", null, ...["model", "requests", "", "in memory of", "size, times smaller", "quality"].map(t => h("div", null, t))),
    ...(order.length ? order.map(m => drawModel(m, s.workers)) : [h("div.row", null, h("div.idle", null, wanted ? "No model has that in its name." : "Nothing is published yet."))]),
  ]);
}

function drawAlias(a) {
  // routes to one model share its hue and are told apart by how strong it is
  const pieces = a.routes.map((r, i) => h("div.block", { "--h": hue(modelOf(r.target)), flex: `1 1 ${part(r.share)}`, opacity: `${1 - .4 * Math.min(i, 1)}`, title: `${r.target}: ${percent(r.share, 1)}` },
    h("span", null, `${r.target} ${a.routes.length > 1 ? percent(r.share) : ""}`)));
  return h("div.alias", null, h("div", null, h("b", null, a.name), h("small", null, `version ${a.version}`)), h("div.split", null, ...pieces),
    h("div.side", null, a.shadow ? `shadowed by ${a.shadow.target}, ${percent(a.shadow.share)}` : a.routes.length > 1 ? "canary" : ""));
}

function drawShadow(p) {
  const cell = (value, name) => h("div", null, h("b", null, value), h("br"), h("span.idle", null, name));
  return h("div.alias.pair", null, h("div", null, h("b", null, p.shadow), h("br"), h("span.idle", null, `beside ${p.primary}`)),
    cell(p.compared ? percent(p.agreement, 2) : "–", "of tokens agree"), cell(p.compared ? `${p.identical} of ${p.compared}` : "–", "identical answers"),
    cell(p.compared > p.identical ? `${p.mean_divergence.toFixed(1)}` : "–", "tokens to the first difference"));
}

function drawJob(j) {
  const [done, total] = j.layers, kind = { succeeded: "done", failed: "failed", cancelled: "stopped" }[j.state] || "live";
  const share = { succeeded: 1, failed: 1, cancelled: 1 }[j.state] ?? (total ? done / total : j.state === "running" ? .02 : 0);
  const what = j.state === "running" ? `${j.stage}${total ? `, layer ${done} of ${total}` : ""}` : j.state === "succeeded" ? `published ${j.revision}` : j.state;
  return h("div.job", null, h("div", null, h("b", null, j.model), h("small", null, j.id)),
    h(`div.progress.${kind}`, { role: "progressbar", "aria-valuenow": Math.round(100 * share), "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": j.model }, h("i", { width: part(share) })),
    h("div.side", null, what, j.eta !== null ? `, ${duration(j.eta)} left` : ""));
}

function draw(s) {
  show("now", [s.tokens_per_second, s.requests_per_second, s.running, s.waiting, s.lines, s.models.length, s.workers.length], () => drawNow(s));
  show("workers", s.workers, () => drawWorkers(s.workers));
  drawModels(s);
  drawChips(s.models);
  $("rollouts").hidden = !s.aliases.length && !s.shadows.length;
  show("alias-rows", s.aliases, () => s.aliases.map(drawAlias));
  show("shadow-rows", s.shadows, () => s.shadows.map(drawShadow));
  $("jobs").hidden = !s.jobs.length;
  show("job-rows", s.jobs, () => s.jobs.map(drawJob));
}

// ---- state ---------------------------------------------------------------------------------------------------------

let state = null, timer = null;

function tell(tone, text) {
  $("status").className = tone;
  $("status").textContent = text;
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const response = await fetch("/live/state");
    const found = await response.json();
    if (!response.ok) throw new Error(found.error || response.statusText);
    state = found;
    draw(state);
    tell("good", `up ${duration(state.uptime)} · ${state.version}`);
  } catch (error) {
    tell("bad", state ? "no answer, trying again" : `no answer: ${error.message}`);
  }
  timer = setTimeout(poll, POLL_MS);
}

// ---- playground ----------------------------------------------------------------------------------------------------

const chosen = new Set();
let running = null, touched = false;

function drawChips(models) {
  if (!touched && !chosen.size) for (const m of models.slice(0, 3)) chosen.add(m.name);
  const names = models.slice(0, 60).map(m => [m.name, m.base]);
  show("chips", [names, [...chosen]], () => names.map(([name, base]) => h("button.chip", {
    type: "button", "aria-pressed": `${chosen.has(name)}`,
    onclick: () => { touched = true; chosen.has(name) ? chosen.delete(name) : chosen.add(name); drawChips(state.models); },
  }, swatch(name, base), name)));
  $("run").disabled = !running && !chosen.size;
}

class Pane {
  constructor(name, base) {
    this.text = h("pre"), this.meter = h("div.meter", null, "waiting");
    this.who = h("b", null, name);
    this.node = h(`article.pane.running${base ? ".base" : ""}`, { "--h": hue(name) }, h("header", null, this.who), this.meter, this.text);
    this.began = performance.now(), this.first = null, this.tokens = 0, this.model = name;
  }

  async run(request, url, signal) {
    const ticking = setInterval(() => this.tick(), 200);
    try {
      const response = await fetch(url, { method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(request) });
      if (!response.ok) throw new Error((await response.json()).error?.message || response.statusText);
      await this.read(response.body.getReader());
      this.end();
    } catch (error) {
      if (error.name === "AbortError") this.end("stopped");
      else this.text.append(h("span.error", null, error.message)), this.end("failed");
    } finally {
      clearInterval(ticking);
      this.node.classList.remove("running");
    }
  }

  async read(reader) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = events.pop();
      for (const event of events) if (event.startsWith("data: ") && event !== "data: [DONE]") this.take(JSON.parse(event.slice(6)));
    }
  }

  take(data) {
    if (data.error) throw new Error(data.error.message);
    if (data.model && data.model !== this.model) this.who.textContent = this.model = data.model;
    if (data.usage) this.tokens = data.usage.completion_tokens;
    const choice = data.choices?.[0], piece = choice?.text ?? choice?.delta?.content ?? "";
    if (!piece) return;
    this.first ??= performance.now();
    if (!data.usage) this.tokens++;
    const follow = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 30;
    this.text.append(piece);
    if (follow) this.text.scrollTop = this.text.scrollHeight;
  }

  tick() {
    const now = performance.now();
    if (this.first === null) this.meter.textContent = `waiting ${((now - this.began) / 1000).toFixed(1)} s`;
    else this.meter.textContent = this.measured(now);
  }

  measured(now) {
    const seconds = (now - this.first) / 1000, speed = this.tokens > 1 && seconds > .02 ? ` · ${figure((this.tokens - 1) / seconds)} tok/s` : "";
    return `${this.tokens} tokens${speed} · first after ${(this.first - this.began).toFixed(0)} ms`;
  }

  end(why) {
    this.meter.textContent = [why, this.first === null ? (why ? null : "no text") : this.measured(performance.now())].filter(Boolean).join(" · ");
  }
}

async function ask(event) {
  event.preventDefault();
  if (running) return running.abort();
  running = new AbortController();
  $("run").textContent = "Stop";
  const chat = $("chat").checked, prompt = $("prompt").value, names = [...chosen];
  const given = { temperature: Number($("temperature").value), max_tokens: Number($("max-tokens").value), stream: true, stream_options: { include_usage: true } };
  const panes = names.map(name => new Pane(name, state.models.some(m => m.base && m.name === name)));
  $("panes").replaceChildren(...panes.map(pane => pane.node));
  const asked = chat ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const url = chat ? "/v1/chat/completions" : "/v1/completions";
  await Promise.all(panes.map((pane, i) => pane.run({ model: names[i], ...asked, ...given }, url, running.signal)));
  running = null;
  $("run").textContent = "Run";
  drawChips(state.models);
}

$("ask").addEventListener("submit", ask);
$("prompt").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit(); });
$("filter").addEventListener("input", () => { if (state) drawModels(state); });
document.addEventListener("visibilitychange", poll);
poll();
