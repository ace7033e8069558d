// Starts the page: controls, views, tables; until this has run, the page is its pictures and tables.

const controls = document.getElementById("controls");
const NAMES = { network: "dense network", criterion: "criterion", outcome: "outcome", seed: "seed" };

function drawControls() {
  controls.replaceChildren(...CONTROLS.flatMap((control) => {
    const known = choices(control);
    if (known.length < 2) return [];
    const select = element("select", { id: `control-${control}`, onchange: (event) => choose({ [control]: event.target.value }) },
      ...known.map((one) => element("option", { value: one.value, selected: one.value === state[control] }, one.label)));
    return [element("span", { class: "control" }, element("label", { for: select.id }, NAMES[control] ?? controls.dataset.study), " ", select)];
  }));
}

/** Shows the tables of the chosen outcome, and marks the row of the chosen criterion. */
function showNumbers() {
  for (const one of document.querySelectorAll("[data-outcome]")) one.hidden = one.dataset.outcome !== state.outcome;
  const { label } = data.studies[state.study];
  for (const row of document.querySelectorAll("tr[data-criterion]"))
    row.classList.toggle("current", row.dataset.criterion === state.criterion && row.dataset.study === label);
}

const drawn = { candidates: drawTable, picked: drawPicked };

function drawAll() {
  for (const root of document.querySelectorAll("[data-view]")) (drawn[root.dataset.view] ?? VIEWS[root.dataset.view])(root);
  showNumbers();
}

/** Draws anew what a change concerns. */
listeners.push((changed) => {
  const only = (...names) => [...changed].every((one) => names.includes(one));
  if (only("sort", "down", "filter")) drawTable(document.querySelector('[data-view="candidates"]'));
  else if (only("picked")) {
    for (const mark of document.querySelectorAll(".mark")) showPicked(mark);
    for (const row of document.querySelectorAll("#candidate-table tr[data-candidate]")) {
      const picked = state.picked.includes(Number(row.dataset.candidate));
      row.classList.toggle("picked", picked);
      row.querySelector("input").checked = picked;
    }
    drawLitCurves();
    drawPicked(document.querySelector('[data-view="picked"]'));
  } else {
    const focused = document.activeElement?.id;
    drawControls();
    drawAll();
    if (focused?.startsWith("control-")) document.getElementById(focused)?.focus();
  }
  for (const mark of document.querySelectorAll(".mark")) if (mark.item.picked) showPicked(mark);
  const filter = document.getElementById("filter");
  if (filter.value !== state.filter) filter.value = state.filter;
});

/** A link within the page keeps the fragment, which holds what is chosen. */
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const target = link && document.getElementById(link.getAttribute("href").slice(1));
  if (!target) return;
  event.preventDefault();
  target.closest("details")?.setAttribute("open", "");
  target.setAttribute("tabindex", "-1");
  target.focus({ preventScroll: true });
  target.scrollIntoView();
});

addEventListener("hashchange", () => {
  if (location.hash && !location.hash.includes("=")) return;
  readFragment();
  document.getElementById("filter").value = state.filter;
  drawControls();
  drawAll();
});

let width = innerWidth;
let waiting;
addEventListener("resize", () => {
  if (width === innerWidth) return;
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(drawAll, 150);
});

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});

/** Shows what the page's values hold, in place of its pictures. */
function start() {
  if (!data.studies.length) return;
  document.documentElement.classList.add("js");
  for (const root of document.querySelectorAll("[data-view]")) root.hidden = false;
  controls.hidden = false;
  drawControls();
  const table = document.querySelector('[data-view="candidates"]');
  if (!table.firstChild) makeTable(table);
  drawAll();
  writeFragment();
}

document.body.append(tip);
if (data.studies.length) readFragment();
start();
