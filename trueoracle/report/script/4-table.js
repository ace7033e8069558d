// The table of candidates: sorted, filtered, copied; and the comparison of those that are picked.

const MOST_ROWS = 2000;
const FORMS = { CSV: asCsv, Markdown: asMarkdown, LaTeX: asLatex };

/** The columns: a key, a heading, whether it holds numbers, and the value of a row. */
function columnsOf(network) {
  const outcome = chosen().outcome;
  const outcomes = network.outcomes[state.outcome];
  const scores = network.scores[state.criterion];
  return [
    { key: "id", heading: "candidate", number: true, term: "candidate", value: (row) => network.ids[row], text: (row) => String(network.ids[row]) },
    { key: "pruned", heading: "prunes", value: (row) => network.pruned[row] },
    { key: "score", heading: `score: ${state.criterion}`, number: true, term: "score", value: (row) => scores?.[row] ?? null },
    { key: "outcome", heading: outcome.name, number: true, term: "outcome", value: (row) => outcomes.mean[row], better: outcome.higher },
    ...(network.seeds.length > 1 ? network.seeds.map((seed) => ({ key: `seed-${seed}`, heading: `seed ${seed}`, number: true, value: (row) => outcomes[seed]?.[row] ?? null, better: outcome.higher })) : []),
  ];
}

const cellOf = (column, row) => (column.text ? column.text(row) : column.number ? shown(column.value(row)) : String(column.value(row)));

/** The words of what is pruned in one layer: the commas between filters are none. */
const wordsOf = (text) => text.toLowerCase().split(/[\s,]+/).filter(Boolean);

/**
 * Whether what a candidate prunes is what the filter asks for: of each part (they are parted as
 * layers are, by semicolons, or by a name after numbers), some layer has every word, a number as a
 * whole.
 */
function fits(pruned, wanted) {
  const layers = pruned.split(";").map(wordsOf);
  return wanted.split(/;|(?<=\s\d+),?\s+(?=[^\d\s])/).map(wordsOf).every((words) => layers.some((layer) =>
    words.every((word) => (/^\d+$/.test(word) ? layer.includes(word) : layer.some((one) => one.includes(word))))));
}

/** The rows that the filter leaves, in the order of the chosen column; missing values come last. */
function rowsOf(network, columns) {
  const rows = network.ids.map((_, row) => row).filter((row) => fits(network.pruned[row], state.filter));
  const column = columns.find((one) => one.key === state.sort) ?? columns[3];
  const down = state.down ?? Boolean(column.better);
  const value = (row) => column.value(row);
  return rows.sort((a, b) => {
    const [one, other] = [value(a), value(b)];
    if (one === null || other === null) return (one === null) - (other === null);
    const order = column.number ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });
    return (down ? -order : order) || a - b;
  });
}

function drawTable(root) {
  const { network } = chosen();
  const columns = columnsOf(network);
  const rows = rowsOf(network, columns);
  const down = state.down ?? Boolean((columns.find((one) => one.key === state.sort) ?? columns[3]).better);
  const sorted = columns.some((one) => one.key === state.sort) ? state.sort : "outcome";
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.sort : null;
  const head = element("tr", {}, element("th", { scope: "col", class: "text" }, "pick"), ...columns.map((one) =>
    element("th", { scope: "col", class: one.number ? "" : "text", "aria-sort": one.key === sorted ? (down ? "descending" : "ascending") : "none" },
      element("button", { type: "button", "data-sort": one.key, onclick: () => choose({ sort: one.key, down: one.key === sorted ? !down : Boolean(one.better) }) },
        one.heading, element("span", { "aria-hidden": "true" }, one.key === sorted ? (down ? " ▼" : " ▲") : "")))));
  const stars = new Set(chosen().relation?.chosen ?? []);
  const body = rows.slice(0, MOST_ROWS).map((row) => {
    const id = network.ids[row];
    const made = element("tr", { "data-candidate": id, class: state.picked.includes(id) ? "picked" : "" },
      element("td", { class: "text" }, element("input", { type: "checkbox", "aria-label": `pick candidate ${id}`, checked: state.picked.includes(id), onchange: () => togglePicked(id) }), stars.has(row) ? " ★" : ""),
      ...columns.map((one) => element("td", { class: one.number ? "" : "text" }, cellOf(one, row))));
    made.addEventListener("pointerenter", () => light([id]));
    made.addEventListener("pointerleave", () => light([]));
    made.addEventListener("focusin", () => light([id]));
    made.addEventListener("focusout", () => light([]));
    return made;
  });
  root.querySelector("thead").replaceChildren(head);
  root.querySelector("tbody").replaceChildren(...body);
  const more = rows.length > MOST_ROWS ? `; the first ${MOST_ROWS.toLocaleString("en")} are shown` : "";
  root.querySelector("[data-count]").textContent = `${rows.length.toLocaleString("en")} of ${network.ids.length.toLocaleString("en")} candidates${more}`;
  if (focused) root.querySelector(`[data-sort="${focused}"]`)?.focus();
}

function makeTable(root) {
  const filter = element("input", { type: "search", id: "filter", value: state.filter, autocomplete: "off", oninput: (event) => choose({ filter: event.target.value }) });
  const said = element("span", { role: "status", class: "soft", "data-copied": "" });
  const copy = Object.entries(FORMS).map(([name, form]) =>
    element("button", { type: "button", "data-copy": name, onclick: async () => {
      const { network } = chosen();
      const columns = columnsOf(network);
      const rows = rowsOf(network, columns);
      await copyText(form(columns.map((one) => one.heading), rows.map((row) => columns.map((one) => (one.number && !one.text ? (one.value(row) ?? "") : cellOf(one, row))))));
      said.textContent = `Copied ${rows.length.toLocaleString("en")} rows as ${name}.`;
    } }, `Copy ${name}`));
  root.replaceChildren(
    element("div", { class: "tools" }, element("label", { for: "filter" }, "Filter by what is pruned "), filter, ...copy, said),
    element("p", { class: "soft" }, element("span", { "data-count": "" })),
    element("div", { class: "card scroll tall", tabindex: "0", role: "region", "aria-label": "Candidates, one per row" },
      element("table", { id: "candidate-table" }, element("thead"), element("tbody"))),
    element("p", { class: "only-print soft" }, "On paper, the first 12 rows only."),
  );
  drawTable(root);
}

const quoted = (cell) => (/[",\r\n]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));

/** A text that a spreadsheet would compute has an apostrophe in front, as in exported files. */
function harmless(cell) {
  const computes = typeof cell === "string" && /^'*[=+\-@\t\r\n]/.test(cell) && Number.isNaN(Number(cell));
  return computes ? `'${cell}` : cell;
}

function asCsv(headings, rows) {
  return [headings, ...rows].map((row) => row.map((cell) => quoted(harmless(cell))).join(",")).join("\n") + "\n";
}

function asMarkdown(headings, rows) {
  const line = (row) => `| ${row.map((cell) => String(cell).replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("<", "&lt;").replaceAll(/[\r\n]+/g, " ")).join(" | ")} |`;
  return [line(headings), line(headings.map(() => "---")), ...rows.map(line)].join("\n") + "\n";
}

function asLatex(headings, rows) {
  const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$" };
  const safe = (cell) => String(cell).replaceAll(/[\\~^&%$#_{}−]/g, (one) => special[one] ?? `\\${one}`);
  const line = (row) => `${row.map(safe).join(" & ")} \\\\`;
  return [`\\begin{tabular}{${headings.map(() => "l").join("")}}`, "\\hline", line(headings), "\\hline", ...rows.map(line), "\\hline", "\\end{tabular}"].join("\n") + "\n";
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard, or no leave to write to it
    const area = element("textarea", { class: "away", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

/** The candidates that are picked, side by side: what they prune, and what they come to. */
function drawPicked(root) {
  const { network, outcome } = chosen();
  const rows = state.picked.filter((id) => network.ids.includes(id)).map((id) => network.ids.indexOf(id));
  if (!rows.length) return nothing(root, "None is picked: click points, press Space on them, or tick rows of the table.");
  const used = network.filters.map((_, place) => place).filter((place) => rows.some((row) => network.prunes[row]?.includes(place)));
  const outcomes = network.outcomes[state.outcome];
  const heads = ["candidate", `score: ${state.criterion}`, outcome.name, ...(network.seeds.length > 1 ? network.seeds.map((seed) => `seed ${seed}`) : [])];
  const table = element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((one) => element("th", { scope: "col" }, one)), ...used.map((place) => element("th", { scope: "col" }, network.filters[place])))),
    element("tbody", {}, ...rows.map((row) => element("tr", { "data-candidate": network.ids[row] },
      element("th", { scope: "row" }, `${network.ids[row]} `, element("button", { type: "button", "aria-label": `unpick candidate ${network.ids[row]}`, onclick: () => togglePicked(network.ids[row]) }, "×")),
      element("td", {}, shown(network.scores[state.criterion]?.[row])),
      element("td", {}, shown(outcomes.mean[row])),
      ...(network.seeds.length > 1 ? network.seeds.map((seed) => element("td", {}, shown(outcomes[seed]?.[row]))) : []),
      ...used.map((place) => element("td", {}, network.prunes[row].includes(place) ? "pruned" : "·"))))));
  root.replaceChildren(
    element("div", { class: "card scroll", tabindex: "0", role: "region", "aria-label": "Picked candidates, side by side" }, table),
    element("div", { class: "tools" }, element("button", { type: "button", onclick: () => choose({ picked: [] }) }, "Unpick all")));
}
