// What is chosen: kept in the page's fragment, read by every view. Nothing here computes a statistic.

let data;
const CONTROLS = ["study", "network", "criterion", "outcome", "seed"];
const listeners = [];
const state = {};

/** The candidates of all studies that prune the same have one number: they light up together. */
const numbers = new Map();

/** Takes the values that a page holds; candidates keep their numbers. */
function takeData(page) {
  data = JSON.parse(page.getElementById("data").textContent);
  for (const study of data.studies)
    for (const network of study.networks)
      network.ids = network.pruned.map((words) => {
        if (!numbers.has(words)) numbers.set(words, numbers.size);
        return numbers.get(words);
      });
}
takeData(document);

/** The choices of each control, given what is chosen so far; the first one is the default. */
function choices(control) {
  const study = data.studies[state.study] ?? data.studies[0];
  const network = study.networks[state.network] ?? study.networks[0];
  switch (control) {
    case "study":
      return data.studies.map((one, place) => ({
        value: String(place),
        label: one.badge ? `${one.label} (${one.badge})` : one.label,
      }));
    case "network":
      return study.networks.map((one, place) => ({ value: String(place), label: one.label }));
    case "criterion": {
      const own = data.criteria.filter((one) => one.name in network.scores);
      own.sort((a, b) => (b.name === "oracle") - (a.name === "oracle")); // stable
      return own.map((one) => ({ value: one.name, label: one.name }));
    }
    case "outcome":
      return data.outcomes
        .filter((one) => one.column in network.outcomes)
        .map((one) => ({ value: one.column, label: one.name }));
    case "seed": {
      const several = network.seeds.length > 1;
      const each = network.seeds.map((seed) => ({ value: seed, label: `seed ${seed}` }));
      return [{ value: "mean", label: several ? "mean over seeds" : "the only seed" }, ...(several ? each : [])];
    }
  }
}

/** Reads the fragment; whatever it names that does not exist becomes the default. */
function readFragment() {
  const said = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const control of CONTROLS) {
    const known = choices(control).map((one) => one.value);
    state[control] = known.includes(said.get(control)) ? said.get(control) : known[0];
  }
  const picked = (said.get("picked") ?? "").split(",").filter(Boolean).map(Number);
  state.picked = [...new Set(picked)].filter((one) => Number.isInteger(one) && one >= 0 && one < numbers.size);
  state.sort = said.get("sort") ?? "outcome";
  state.down = said.get("down") === null ? null : said.get("down") === "1";
  state.filter = said.get("filter") ?? "";
}

function writeFragment() {
  const said = new URLSearchParams();
  for (const control of CONTROLS) {
    const known = choices(control);
    if (known.length > 1 && state[control] !== known[0].value) said.set(control, state[control]);
  }
  if (state.picked.length) said.set("picked", state.picked.join(","));
  if (state.sort !== "outcome") said.set("sort", state.sort);
  if (state.down !== null) said.set("down", state.down ? "1" : "0");
  if (state.filter) said.set("filter", state.filter);
  const text = said.toString();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

/** What is chosen and does not exist (any more) becomes the default. */
function settle() {
  for (const control of CONTROLS) {
    const known = choices(control).map((one) => one.value);
    if (!known.includes(state[control])) state[control] = known[0];
  }
}

/** Changes what is chosen, and tells every view which names changed. */
function choose(changes) {
  Object.assign(state, changes);
  settle();
  writeFragment();
  for (const listener of listeners) listener(new Set(Object.keys(changes)));
}

function togglePicked(id) {
  const others = state.picked.filter((one) => one !== id);
  choose({ picked: others.length < state.picked.length ? others : [...others, id] });
}

/** The study, network, outcome and relation that are chosen. */
function chosen() {
  const study = data.studies[state.study];
  const network = study.networks[state.network];
  const outcome = data.outcomes.find((one) => one.column === state.outcome);
  const relation = network.relations[state.criterion]?.[state.outcome]?.[state.seed];
  return { study, network, outcome, relation };
}

/** A number as tables show it; a dash where it is missing. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : value.toPrecision(4);
  return text.replaceAll("-", "−");
}

/** An agreement, as every sentence and table has it. */
function hundredths(value) {
  return value === null || value === undefined ? "–" : value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");
}

/** An element with text and children: names from data are text, never markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}
