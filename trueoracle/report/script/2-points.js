// Points that can be focused, by pointer or keyboard, and that light up everywhere at once.

const tip = element("div", { class: "tip", hidden: true, "aria-hidden": "true" });
let lit = { ids: new Set(), source: null };

/** What is said of a candidate: what it prunes, its score, its mean and each seed's outcome. */
function candidateLines(network, place) {
  const outcomes = network.outcomes[state.outcome];
  const scores = network.scores[state.criterion];
  const lines = [
    `candidate ${network.ids[place]}: prunes ${network.pruned[place]}`,
    `${state.criterion} ${shown(scores?.[place])}`,
    `${chosen().outcome.name} ${shown(outcomes.mean[place])}`,
  ];
  if (network.seeds.length > 1)
    lines.push(network.seeds.map((seed) => `seed ${seed} ${shown(outcomes[seed]?.[place])}`).join(", "));
  return lines;
}

/** Lights up candidates in every plot and table; `source` is the element that was focused. */
function light(ids, source = null, lines = null) {
  for (const one of document.querySelectorAll(".lit")) one.classList.remove("lit");
  lit = { ids: new Set(ids), source };
  for (const id of ids)
    for (const one of document.querySelectorAll(`[data-candidate="${id}"]`)) one.classList.add("lit");
  source?.classList.add("lit");
  if (source && lines) {
    tip.replaceChildren(...lines.map((line) => element("div", {}, line)));
    tip.hidden = false;
    const at = source.getBoundingClientRect();
    const width = tip.offsetWidth;
    const left = Math.min(at.right + 10, document.documentElement.clientWidth - width - 8);
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    const above = at.top - tip.offsetHeight - 8;
    tip.style.top = `${(above > 0 ? above : at.bottom + 8) + scrollY}px`;
  } else tip.hidden = true;
  drawLitCurves();
}

/**
 * Makes the marks of one Plot mark the options of a list: one stop of the Tab key, arrows move
 * among them from left to right (or up and down), Space or Enter takes one.
 *
 * Each item has `ids` (the candidates that light up), `lines` (what is said), and perhaps `kind`
 * (its class) and `take` (what Space, Enter and a click do; else the candidates are picked).
 */
function focusable(items, label, { along = "x" } = {}) {
  return {
    render(index, scales, values, dimensions, context, next) {
      const group = next(index, scales, values, dimensions, context);
      if (!group) return group;
      const marks = [...group.children];
      group.setAttribute("role", "listbox");
      group.setAttribute("aria-label", label);
      group.setAttribute("aria-multiselectable", "true");
      marks.forEach((mark, order) => {
        const item = items[index[order]];
        mark.item = item;
        mark.setAttribute("role", "option");
        mark.setAttribute("aria-label", item.lines.join("; "));
        mark.setAttribute("tabindex", order ? "-1" : "0");
        mark.classList.add("mark", ...(item.kind ? [item.kind] : []));
        if (item.ids.length === 1) mark.dataset.candidate = item.ids[0];
        showPicked(mark);
      });
      const sorted = marks
        .map((mark, order) => ({ mark, x: values.x?.[index[order]] ?? 0, y: values.y?.[index[order]] ?? 0 }))
        .sort((a, b) => (along === "y" ? a.y - b.y || a.x - b.x : a.x - b.x || a.y - b.y))
        .map((one) => one.mark);
      if (sorted.length) {
        marks[0]?.setAttribute("tabindex", "-1");
        sorted[0].setAttribute("tabindex", "0");
      }
      listen(group, sorted);
      return group;
    },
  };
}

function listen(group, sorted) {
  const focus = (mark) => {
    for (const one of sorted) if (one.getAttribute("tabindex") === "0") one.setAttribute("tabindex", "-1");
    mark.setAttribute("tabindex", "0");
    mark.focus({ preventScroll: false });
  };
  const of = (event) => (event.target.item ? event.target : null);
  group.addEventListener("pointerover", (event) => {
    const mark = of(event);
    if (mark) light(mark.item.ids, mark, mark.item.lines);
  });
  group.addEventListener("pointerout", () => light([]));
  group.addEventListener("focusin", (event) => {
    const mark = of(event);
    if (mark) light(mark.item.ids, mark, mark.item.lines);
  });
  group.addEventListener("focusout", () => light([]));
  group.addEventListener("click", (event) => of(event) && take(of(event)));
  group.addEventListener("keydown", (event) => {
    const mark = of(event);
    if (!mark) return;
    const place = sorted.indexOf(mark);
    const next = {
      ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
      Home: 0, End: sorted.length - 1, PageDown: place + 10, PageUp: place - 10,
    }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      focus(sorted[Math.max(0, Math.min(sorted.length - 1, next))]);
    } else if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      take(mark);
    } else if (event.key === "Escape") choose({ picked: [] });
  });
}

function take(mark) {
  if (mark.item.take) mark.item.take();
  else if (mark.item.ids.length === 1) togglePicked(mark.item.ids[0]);
}

/** Whether a mark is picked, for eyes and screen readers. */
function showPicked(mark) {
  const { item } = mark;
  const picked = item.picked ? item.picked() : item.ids.length === 1 && state.picked.includes(item.ids[0]);
  mark.classList.toggle("picked", picked);
  mark.setAttribute("aria-selected", String(picked));
}

/** What a mark stands for, whatever is said of it. */
const nameOf = (mark) => mark.item?.lines[0].split(":")[0];

/** Draws a plot into an element, as wide as it is; what is no point is hidden from screen readers. */
function draw(root, label, options) {
  const width = Math.max(280, Math.floor(root.clientWidth || 640));
  const keep = root.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  const made = Plot.plot({ width, style: { background: "none", color: "inherit", overflow: "visible" }, ...options });
  const svg = made.tagName === "svg" ? made : made.querySelector("svg");
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", label);
  for (const part of svg.querySelectorAll("g[aria-label]:not([role=listbox]), g[aria-description]")) {
    part.removeAttribute("aria-label");
    part.removeAttribute("aria-description");
    part.setAttribute("aria-hidden", "true");
  }
  root.replaceChildren(made);
  if (keep) [...svg.querySelectorAll(".mark")].find((one) => nameOf(one) === keep)?.focus({ preventScroll: true });
  return svg;
}
