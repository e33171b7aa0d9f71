// The live page, which shows each status that the worker sends.
//
// Data from outside becomes text (`textContent`), never markup.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);

// ---- Text

const numbers = new Intl.NumberFormat("en");
const count = (number) => numbers.format(number);
const objects = (number) => `${count(number)} ${number === 1 ? "object" : "objects"}`;

function rate(perSecond) {
  if (perSecond === 0) return "0/s";
  if (perSecond < 0.1) return "<0.1/s";
  if (perSecond < 10) return `${perSecond.toFixed(1)}/s`;
  return `${count(Math.round(perSecond))}/s`;
}

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${unit === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds > 0 && seconds < 0.1) return "<0.1 s";
  if (seconds < 10 && !Number.isInteger(seconds)) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// Escapes control characters, and those that change the direction of text.
function visible(text) {
  const odd = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  return text.replace(odd, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

function shortened(text, most) {
  const letters = Array.from(text);
  if (letters.length <= most) return text;
  const tail = Math.floor(most * 0.6);
  return `${letters.slice(0, most - tail - 1).join("")}…${letters.slice(-tail).join("")}`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// ---- Elements

function element(name, { title, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (title) made.title = title;
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const cell = (text, kind = "number") => element("td", { class: kind }, text);

// The start of a batch's id is its time; its end distinguishes batches.
const batchId = (id) => element("td", { class: "mono", title: id }, `…${id.slice(-8)}`);

const when = (at) => element("time", { datetime: at, title: at });

// A part is redrawn only when it has changed, so that its text can be selected.
const drawn = new Map();
function changed(part, content) {
  const text = JSON.stringify(content);
  if (drawn.get(part) === text) return false;
  drawn.set(part, text);
  return true;
}

function fill(section, list, items, draw) {
  if (!changed(section.id, items)) return;
  section.classList.toggle("is-empty", items.length === 0);
  $(list, section).replaceChildren(...items.map(draw));
}

// ---- Health

function showHealth(status) {
  const { word, reason } = status.condition;
  $("#health").dataset.word = word;
  if (changed("condition", status.condition)) {
    $("#word").textContent = capital(word);
    $("#reason").textContent = capital(visible(reason));
    document.title = `${capital(word)} · Sluice`;
  }
  $("#version").textContent = status.version;
  $("#uptime").textContent = `up for ${duration(status.uptime_seconds)}`;
}

// The minimum width of a picture: a page that has not been laid out yet has none.
const NARROWEST = 200;

// ---- Flow

// The minimum width for a row.
const WIDE = 820;
const MOST_KINDS = 9;
const isAside = (kind) => kind === "rejected" || kind === "unmatched";

// Moves the kinds that are not event types to the end.
function ordered(rows) {
  return [...rows].sort((a, b) => isAside(a.kind) - isAside(b.kind));
}

function kindsShown(status) {
  const kinds = ordered(status.rows_by_kind).map((row) => row.kind);
  const aside = kinds.filter(isAside);
  return [...kinds.slice(0, Math.min(MOST_KINDS, kinds.length) - aside.length), ...aside];
}

class Flow {
  constructor(svg, width, kinds) {
    this.svg = svg;
    this.links = new Map();
    this.texts = new Map();
    this.paths = [];
    this.boxes = [];
    const height = width < WIDE ? this.stack(width, kinds) : this.row(width, kinds);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = `${height}px`;
    svg.replaceChildren(...this.paths, ...this.boxes);
  }

  node(name, label, x, y, width) {
    this.boxes.push(shape("rect", { class: "node", x, y, width, height: 84, rx: 10 }));
    this.text(x + 14, y + 23, "label", label);
    this.texts.set(name, this.text(x + 14, y + 51, "value"));
    this.texts.set(`${name}-note`, this.text(x + 14, y + 71, "label"));
  }

  pill(name, label, x, y, width, kind) {
    this.boxes.push(shape("rect", { class: `node ${kind}`, x, y, width, height: 28, rx: 8 }));
    this.text(x + 12, y + 18.5, "label", shortened(label, 24));
    const side = kind === "side" ? " side" : "";
    const value = this.text(x + width - 12, y + 18.5, `rate${side}`, "", "end");
    this.texts.set(name, value);
  }

  text(x, y, kind, text = "", anchor = "start") {
    const made = shape("text", { x, y, class: kind, "text-anchor": anchor }, text);
    this.boxes.push(made);
    return made;
  }

  link(name, path, kind = "") {
    this.paths.push(shape("path", { class: "link", d: path }));
    const water = shape("path", { class: `water ${kind}`, d: path });
    this.links.set(name, { water, kind });
    this.paths.push(water);
  }

  // Places the nodes side by side, with the tables as a fan to the right.
  row(width, kinds) {
    const fan = Math.min(250, width * 0.24);
    const gap = Math.max(64, width * 0.075);
    const node = (width - fan - gap * 3) / 3;
    const kindsHeight = kinds.length * 36 - 8;
    const height = Math.max(kindsHeight, 168);
    const top = Math.min(height / 2 - 42, height - 154);
    const line = top + 42;
    NODES.forEach(([name, label], index) => {
      const x = index * (node + gap);
      this.node(name, label, x, top, node);
      if (index < 2) {
        const [from, to] = [x + node, x + node + gap];
        this.link(`to-${index}`, `M${from} ${line}H${to}`);
        this.texts.set(`to-${index}-rate`, this.text((from + to) / 2, line - 9, "rate", "", "middle"));
      }
    });
    const [from, right] = [3 * node + 2 * gap, width - fan];
    kinds.forEach((kind, index) => {
      const y = (height - kindsHeight) / 2 + index * 36;
      const bend = (from + right) / 2;
      const aside = isAside(kind);
      this.link(`of ${kind}`, `M${from} ${line}C${bend} ${line} ${bend} ${y + 14} ${right} ${y + 14}`, aside ? "side" : "");
      this.pill(`of ${kind}`, kind, right, y, fan, aside ? "side" : "done");
    });
    BRANCHES.forEach(({ name, label, kind }, index) => {
      const x = index * (node + gap);
      const y = top + 124;
      this.link(name, `M${x + node / 2} ${top + 84}V${y}`, kind);
      this.pill(name, label, x, y, node, "side");
    });
    return height + 2;
  }

  // Places the nodes one below the other, for a narrow page.
  stack(width, kinds) {
    let y = 0;
    const rail = 20;
    const step = 52;
    NODES.forEach(([name, label], index) => {
      this.node(name, label, 0, y, width);
      y += 84;
      const branch = BRANCHES[index];
      this.link(branch.name, `M${width * 0.75} ${y}v12`, branch.kind);
      this.pill(branch.name, branch.label, width / 2, y + 12, width / 2, "side");
      const link = ["to-0", "to-1", "rows"][index];
      const end = link === "rows" ? y + step + 36 * (kinds.length - 1) : y + step;
      this.link(link, `M${rail} ${y}V${end}`);
      this.texts.set(`${link}-rate`, this.text(rail + 12, y + 31, "rate"));
      y += step;
    });
    for (const kind of kinds) {
      const aside = isAside(kind);
      this.link(`of ${kind}`, `M${rail} ${y}v6q0 8 8 8h8`, aside ? "side" : "");
      this.pill(`of ${kind}`, kind, rail + 16, y, width - rail - 16, aside ? "side" : "done");
      y += 36;
    }
    return y;
  }

  set(name, text) {
    const target = this.texts.get(name);
    if (target.textContent !== text) target.textContent = text;
    return target;
  }

  // Shows the rate of a link or a pill; not every layout has all of them.
  rate(name, perSecond) {
    if (!this.texts.has(name)) return;
    this.set(name, rate(perSecond)).classList.toggle("still", perSecond === 0);
  }

  run(name, perSecond) {
    if (!this.links.has(name)) return;
    const { water, kind } = this.links.get(name);
    const speed = perSecond === 0 ? "" : perSecond < 5 ? "slow" : perSecond < 100 ? "brisk" : "fast";
    const value = `water ${kind} ${speed}`;
    if (water.getAttribute("class") !== value) water.setAttribute("class", value);
  }

  show(status) {
    const { queue_away: away, queue_age: age, depth } = status;
    this.set("queue", away ? "Offline" : depth ? count(depth.visible) : "–");
    const dead = depth?.dead_letters;
    const wait = age ? `received after ${duration(age.p50)}` : "no recent messages";
    const letters = `${count(dead)} dead ${dead === 1 ? "letter" : "letters"}`;
    this.set("queue-note", dead ? letters : wait).classList.toggle("bad", dead > 0);
    this.set("held", count(status.messages));
    this.set("held-note", `${objects(status.objects_waiting)} to batch`);
    this.set("loading", count(status.in_flight.length));
    const loading = status.in_flight.reduce((sum, batch) => sum + batch.objects, 0);
    this.set("loading-note", `with ${objects(loading)}`);
    const links = { "to-0": status.received, "to-1": status.loaded, rows: status.rows };
    for (const [name, { per_second }] of Object.entries(links)) {
      this.rate(`${name}-rate`, per_second);
      this.run(name, per_second);
    }
    const pills = status.rows_by_kind.map(({ kind, per_second }) => [`of ${kind}`, per_second]);
    pills.push(...BRANCHES.map(({ name }) => [name, status[name].per_second]));
    for (const [name, perSecond] of pills) {
      this.rate(name, perSecond);
      this.run(name, perSecond);
    }
  }
}

const NODES = [
  ["queue", "Queue"],
  ["held", "Messages in flight"],
  ["loading", "Batches in flight"],
];
// The branch of each node to the side.
const BRANCHES = [
  { name: "deleted", label: "deleted", kind: "" },
  { name: "released", label: "returned", kind: "side" },
  { name: "failed", label: "failed", kind: "side" },
];

let flow;
function showFlow(status) {
  const svg = $("#flow svg");
  const width = Math.max(NARROWEST, Math.floor(svg.clientWidth));
  const kinds = kindsShown(status);
  if (changed("flow", [width, kinds])) flow = new Flow(svg, width, kinds);
  flow.show(status);
}

// ---- Plots

const SHORTEST_SPAN = 60; // Points.
const PLOT = { height: 150, left: 44, right: 6, top: 8, bottom: 20 };

// Returns a round number that is not below `value`.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

// Returns the mean of each point and the four before it: batches come in bursts.
function smoothed(values, stepSeconds) {
  return values.map((_, index) => {
    const some = values.slice(Math.max(0, index - 4), index + 1);
    return some.reduce((sum, value) => sum + value, 0) / some.length / stepSeconds;
  });
}

// Returns a line through the known values, with a break where there are none for half a minute.
function line(values, x, y) {
  let path = "";
  let last = -Infinity;
  values.forEach((value, index) => {
    if (value === null) return;
    path += `${index - last > 15 ? "M" : "L"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    // A single point is drawn as a dot.
    if (index - last > 15) path += "h.01";
    last = index;
  });
  return path;
}

function bands(paused, x) {
  const found = [];
  paused.forEach((is, index) => {
    if (!is) return;
    const last = found.at(-1);
    if (last && last[1] === index - 1) last[1] = index;
    else found.push([index, index]);
  });
  return found.map(([from, to]) => {
    const [left, right] = [x(from - 0.5), x(to + 0.5)];
    return shape("rect", { class: "band", x: left, y: PLOT.top, width: right - left, height: PLOT.height - PLOT.top - PLOT.bottom });
  });
}

class Plot {
  // `curves` returns lines of the history; `label` formats values for reading, `tick` for the axis.
  constructor(figure, { curves, label, tick, least, area }) {
    Object.assign(this, { svg: $("svg", figure), reading: $(".reading", figure), curves, label, tick, least, area });
    this.svg.addEventListener("pointermove", ({ clientX }) => this.point(clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.point(null));
  }

  point(at) {
    this.cursor = at;
    if (this.history) this.show(this.history);
  }

  show(history) {
    this.history = history;
    const width = Math.max(NARROWEST, Math.floor(this.svg.clientWidth));
    const { height, left, right, top, bottom } = PLOT;
    const lines = this.curves(history);
    const length = lines[0].length;
    const span = Math.max(SHORTEST_SPAN, length) - 1;
    const x = (index) => left + ((index + span - length + 1) / span) * (width - left - right);
    const most = roundUp(Math.max(this.least, ...lines.flat()));
    const y = (value) => top + (1 - value / most) * (height - top - bottom);
    const minutes = Math.round((span * history.step_seconds) / 60);
    const parts = [
      ...bands(history.paused, x),
      ...this.grid(most, y, width),
      shape("text", { x: left, y: height - 4 }, `${minutes} min ago`),
      shape("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "now"),
    ];
    const main = line(lines[0], x, y);
    if (this.area && length > 1) parts.push(shape("path", { class: "area", d: `${main}V${y(0)}H${x(0)}Z` }));
    parts.push(...lines.slice(1).map((more) => shape("path", { class: "curve faint", d: line(more, x, y) })));
    parts.push(shape("path", { class: "curve", d: main }), ...this.read(lines, x, history, height));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...parts);
  }

  grid(most, y, width) {
    return [0, 0.5, 1].flatMap((part) => {
      const at = y(most * part);
      return [
        shape("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: at, y2: at }),
        shape("text", { x: PLOT.left - 8, y: at + 4, "text-anchor": "end" }, this.tick(most * part)),
      ];
    });
  }

  // Shows the values at the pointer, or else the latest.
  read(lines, x, history, height) {
    const length = lines[0].length;
    const known = [...Array(length).keys()].filter((index) => lines[0][index] !== null);
    const near = (a, b) => (Math.abs(x(a) - this.cursor) <= Math.abs(x(b) - this.cursor) ? a : b);
    const pointed = this.cursor != null && known.length > 0;
    const index = pointed ? known.reduce(near) : known.at(-1);
    const values = index === undefined ? null : lines.map((values) => values[index]);
    const ago = pointed ? `, ${duration((length - 1 - index) * history.step_seconds)} ago` : "";
    this.reading.textContent = this.label(values) + ago;
    const at = pointed ? x(index) : 0;
    return pointed ? [shape("line", { class: "cursor", x1: at, x2: at, y1: PLOT.top, y2: height - PLOT.bottom })] : [];
  }
}

const plots = [
  new Plot($("#throughput"), {
    curves: (history) => [smoothed(history.rows, history.step_seconds)],
    label: (values) => `${rate(values ? values[0] : 0).replace("/s", "")} rows per second`,
    tick: (value) => (value >= 1000 ? `${value / 1000}k` : `${value}`),
    least: 1,
    area: true,
  }),
  new Plot($("#lag"), {
    curves: (history) => [history.lag_p50, history.lag_max],
    label: (values) => (values ? `median ${duration(values[0])}, longest ${duration(values[1])}` : "nothing loaded recently"),
    tick: (value) => (value < 100 ? `${value} s` : duration(value)),
    least: 1,
  }),
];

// ---- Lists

function showInFlight(batches) {
  const section = $("#in-flight");
  section.classList.toggle("is-empty", batches.length === 0);
  $("tbody", section).replaceChildren(
    ...batches.map((batch) =>
      element("tr", {}, batchId(batch.id), cell(count(batch.objects)), cell(bytes(batch.bytes)), cell(capital(batch.step).replace("_", " "), ""), cell(duration(batch.age_seconds))),
    ),
  );
}

function showRows(rows) {
  const most = Math.max(1, ...rows.map((row) => row.total));
  fill($("#rows"), "tbody", ordered(rows), ({ kind, total, per_second }) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(100 * total) / most}%`;
    const name = element("td", {}, element("bdi", {}, visible(kind)), bar);
    return element("tr", isAside(kind) ? { class: "aside" } : {}, name, cell(count(total)), cell(rate(per_second)));
  });
}

function showBatches(batches) {
  fill($("#batches"), "tbody", batches, (batch) =>
    element(
      "tr",
      {},
      batchId(batch.id),
      cell(count(batch.objects)),
      cell(bytes(batch.bytes), "number wide"),
      cell(count(batch.rows)),
      cell(duration(batch.seconds)),
      element("td", { class: "number" }, when(batch.at)),
    ),
  );
}

function showFailures(failures) {
  fill($("#failures"), "ol", failures, ({ at, what, class: kind, reason }) => {
    const [object, why] = [visible(what), visible(reason)];
    const name = element("bdi", { class: "what mono", title: object }, shortened(object, 90));
    return element(
      "li",
      {},
      element("header", {}, name, when(at)),
      element("p", { class: "reason", title: why }, element("span", { class: "class" }, kind), why),
    );
  });
}

function showTimes(now) {
  for (const time of document.querySelectorAll("time")) {
    const seconds = Math.max(0, (new Date(now) - new Date(time.dateTime)) / 1000);
    const text = seconds < 1 ? "now" : `${duration(Math.floor(seconds))} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
}

// ---- The worker's events

let latest;
function show(status) {
  latest = status;
  showHealth(status);
  showFlow(status);
  plots.forEach((plot) => plot.show(status.history));
  showInFlight(status.in_flight);
  showRows(status.rows_by_kind);
  showBatches(status.batches);
  showFailures(status.failures);
  showTimes(status.at);
}

// An event arrives every second.
const SILENCE = 5000;
const RETRY = 2000;
let source;
let silence;
let lastAt;

function lost() {
  const since = lastAt ? ` since ${lastAt.toLocaleTimeString("en-GB")}` : "";
  $("#connection").textContent = `No response from the worker${since}. Retrying.`;
  $("#connection").hidden = false;
  document.body.classList.add("stale");
}

function connect() {
  source?.close();
  source = new EventSource("events");
  source.onmessage = ({ data }) => {
    lastAt = new Date();
    $("#connection").hidden = true;
    document.body.classList.remove("stale");
    again(SILENCE);
    show(JSON.parse(data));
  };
  source.onerror = () => {
    lost();
    again(RETRY);
  };
  again(SILENCE);
}

// Reconnects after `pause` milliseconds without an event.
function again(pause) {
  clearTimeout(silence);
  silence = setTimeout(() => {
    lost();
    connect();
  }, pause);
}

// A hidden page sends no requests.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return connect();
  source?.close();
  clearTimeout(silence);
});
addEventListener("resize", () => latest && show(latest));
connect();
